import re

import pytest

from service.config import ServiceConfig
from tests.deploy.files import ROOT, image_ports, load, set_values

COMPOSE = load(ROOT / "docker-compose.yaml")
SERVICES = COMPOSE["services"]
PODS = load(ROOT / "deploy/kubernetes/base/deployment.yaml")["spec"]["template"]["spec"]


@pytest.mark.parametrize("name", SERVICES)
def test_a_container_has_no_rights_writes_only_to_its_volumes_and_cannot_take_all_memory(name):
    service = SERVICES[name]
    assert service["read_only"]
    assert service["cap_drop"] == ["ALL"]
    assert service["security_opt"] == ["no-new-privileges:true"]
    assert service["mem_limit"]
    assert "user" not in service
    assert all(volume.endswith(":ro") for volume in service.get("volumes", ()) if volume.startswith("."))
    assert not service.keys() & {"privileged", "cap_add", "network_mode", "pid", "devices"}


@pytest.mark.parametrize("name", SERVICES)
def test_ports_are_published_on_this_machine_only(name):
    for port in SERVICES[name]["ports"]:
        assert port.startswith(("127.0.0.1:", "${ADDRESS:-127.0.0.1}:"))


def test_the_admin_port_is_reached_only_from_the_internal_network():
    ports = image_ports()
    assert [port.rpartition(":")[2] for port in SERVICES["nocturne"]["ports"]] == [str(ports["http"])]
    for network in SERVICES["nocturne"]["networks"]:
        beside = {name for name, service in SERVICES.items() if network in service["networks"]} - {"nocturne"}
        if COMPOSE["networks"][network].get("internal"):
            assert beside == {"prometheus", "grafana"}
        else:
            assert not beside


def test_a_service_that_is_stopped_has_time_for_what_is_under_way():
    assert int(SERVICES["nocturne"]["stop_grace_period"].removesuffix("s")) > ServiceConfig().deadline_s + 5


def test_the_service_has_what_a_pod_has():
    (container,) = PODS["containers"]
    limits, given = container["resources"]["limits"], set_values(container)
    assert SERVICES["nocturne"]["cpus"] == f"${{CPUS:-{limits['cpu']}}}"
    assert SERVICES["nocturne"]["mem_limit"] == f"${{MEMORY:-{limits['memory'].removesuffix('i').lower()}}}"
    assert SERVICES["nocturne"]["environment"].items() <= given.items()


def test_images_of_others_have_a_fixed_version_and_ours_is_built_here():
    for name, service in SERVICES.items():
        if "build" in service:
            assert service["build"]["context"] == "."
        else:
            assert re.search(r":v?\d+\.\d+\.\d+$", service["image"]), name


def test_every_file_that_is_mounted_is_there_or_the_operators_own():
    own = {"./keys"}  # Docker makes the folder if it is not there
    for service in SERVICES.values():
        for volume in service.get("volumes", ()):
            source = volume.partition(":")[0]
            if source not in own:
                assert (ROOT / source).exists() if source.startswith(".") else source in COMPOSE["volumes"], volume
    ignored = (ROOT / ".gitignore").read_text(encoding="utf-8").splitlines()
    assert {"keys/", "nocturne.env", ".env"} <= set(ignored), "secrets must not get into the repository"


@pytest.mark.parametrize("name", SERVICES)
def test_no_log_grows_for_ever(name):
    logging = SERVICES[name]["logging"]
    assert logging["driver"] == "local"
    assert logging["options"].keys() == {"max-size", "max-file"}


def test_whoever_looks_at_grafana_may_only_look_and_its_password_is_asked_for():
    environment = SERVICES["grafana"]["environment"]
    assert environment["GF_AUTH_ANONYMOUS_ORG_ROLE"] == "Viewer"
    assert environment["GF_SECURITY_ADMIN_PASSWORD"].startswith("${GRAFANA_PASSWORD:?")


def test_grafana_finds_its_dashboard_and_prometheus_by_the_names_that_compose_gives_them():
    mounts = dict(reversed(volume.split(":")[:2]) for volume in SERVICES["grafana"]["volumes"])
    home = SERVICES["grafana"]["environment"]["GF_DASHBOARDS_DEFAULT_HOME_DASHBOARD_PATH"]
    assert mounts[home] == "./deploy/grafana/nocturne.json"
    provisioning = ROOT / mounts["/etc/grafana/provisioning"]
    (provider,) = load(provisioning / "dashboards/nocturne.yml")["providers"]
    assert home.rpartition("/")[0] == provider["options"]["path"]
    (source,) = load(provisioning / "datasources/prometheus.yml")["datasources"]
    name, port = source["url"].removeprefix("http://").split(":")
    assert [p.rpartition(":")[2] for p in SERVICES[name]["ports"]] == [port]
    assert f"{home.rpartition('/')[0]}/nocturne.json" in mounts
