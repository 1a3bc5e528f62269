import json
import os
import re
import shutil
import subprocess
import tomllib
from dataclasses import fields

import kubernetes_validate
import pytest
import yaml

from service.config import ServiceConfig
from service.web.admin import ADMIN_PATHS
from tests.deploy import GAUGES
from tests.deploy.files import COMPONENTS, DEPLOY, KUBERNETES, OVERLAYS, ROOT, dockerfile, image_ports, load, set_values
from tests.deploy.kustomize import MERGE_KEYS, build

# Each overlay alone, with each component, and with all.
VARIANTS = [(overlay, parts) for overlay in OVERLAYS for parts in ((), *((part,) for part in COMPONENTS), COMPONENTS)]
BUILT = {variant: build(KUBERNETES / variant[0], [KUBERNETES / part for part in variant[1]]) for variant in VARIANTS}
BUILTIN = "v1", "apps/v1", "autoscaling/v2", "policy/v1", "networking.k8s.io/v1"
TEXTS = ".conf", ".json", ".md", ".py", ".yaml", ".yml"
OLDEST = "1.30"  # the first with the sleep before a pod ends
AUTOSCALER = ("HorizontalPodAutoscaler", "nocturne")
SCALED_OBJECT = ("ScaledObject", "nocturne")
LABELS = {"app.kubernetes.io/name": "nocturne"}


def pod(variant):
    return BUILT[variant]["Deployment", "nocturne"]["spec"]["template"]["spec"]


def container(variant):
    (only,) = pod(variant)["containers"]
    return only


def environment(variant):
    return set_values(container(variant))


def of_all(*kinds):
    """The manifests of all variants, each once; of these kinds, if any are named."""
    texts = {json.dumps(manifest, sort_keys=True) for built in BUILT.values() for manifest in built.values()}
    manifests = [json.loads(text) for text in sorted(texts)]
    return [manifest for manifest in manifests if not kinds or manifest["kind"] in kinds]


every_variant = pytest.mark.parametrize("variant", VARIANTS, ids=lambda v: " ".join([v[0], *v[1]]))
every_overlay = pytest.mark.parametrize("variant", [(overlay, ()) for overlay in OVERLAYS], ids=lambda v: v[0])


@every_overlay
def test_it_composes_on_as_many_cores_as_its_limit_says(variant):
    taken = {entry["name"]: entry["valueFrom"] for entry in container(variant)["env"] if "valueFrom" in entry}
    assert taken == {"NOCTURNE_CORES": {"resourceFieldRef": {"resource": "limits.cpu"}}}


@pytest.mark.parametrize("version", [OLDEST, kubernetes_validate.latest_version()])
def test_every_manifest_of_every_variant_is_valid_with_no_unknown_field(version):
    manifests = [manifest for manifest in of_all() if manifest["apiVersion"] in BUILTIN]
    assert len(manifests) > 7
    for manifest in manifests:
        kubernetes_validate.validate(manifest, version, strict=True)


def test_a_misspelt_field_would_not_be_valid():
    (service,) = of_all("Service")
    service["spec"]["ports"][0]["targetport"] = "http"
    with pytest.raises(kubernetes_validate.ValidationError):
        kubernetes_validate.validate(service, OLDEST, strict=True)


def test_only_the_kinds_that_are_checked_by_hand_have_no_schema():
    assert {(m["apiVersion"], m["kind"]) for m in of_all() if m["apiVersion"] not in BUILTIN} == {
        ("keda.sh/v1alpha1", "ScaledObject"),
        ("monitoring.coreos.com/v1", "PodMonitor"),
        ("monitoring.coreos.com/v1", "PrometheusRule"),
    }


def test_every_file_belongs_to_its_kustomization():
    for kustomization in KUBERNETES.rglob("kustomization.yaml"):
        listed = load(kustomization)
        named = {*listed.get("resources", ()), *(patch["path"] for patch in listed.get("patches", ()) if "path" in patch)}
        there = {path.name for path in kustomization.parent.glob("*.yaml")} - {"kustomization.yaml"}
        assert there == {name for name in named if name.endswith(".yaml")}, kustomization


def test_everything_lies_in_the_one_namespace():
    for manifest in of_all():
        name = manifest["metadata"]["name"] if manifest["kind"] == "Namespace" else manifest["metadata"]["namespace"]
        assert name == "nocturne", manifest["kind"]


def test_everything_that_selects_pods_selects_these():
    for deployment in of_all("Deployment"):
        template = deployment["spec"]["template"]
        assert template["metadata"]["labels"] == LABELS == deployment["spec"]["selector"]["matchLabels"]
        assert all(entry["labelSelector"]["matchLabels"] == LABELS for entry in template["spec"]["topologySpreadConstraints"])
    for service in of_all("Service"):
        assert service["spec"]["selector"] == LABELS
    for manifest in of_all("PodDisruptionBudget", "PodMonitor"):
        assert manifest["spec"]["selector"]["matchLabels"] == LABELS
    for policy in of_all("NetworkPolicy"):
        assert policy["spec"]["podSelector"]["matchLabels"] == LABELS
    for autoscaler in of_all("HorizontalPodAutoscaler"):
        assert autoscaler["spec"]["scaleTargetRef"] == {"apiVersion": "apps/v1", "kind": "Deployment", "name": "nocturne"}
    for scaled in of_all("ScaledObject"):
        assert scaled["spec"]["scaleTargetRef"] == {"name": "nocturne"}


def test_the_image_is_the_version_of_this_code_and_on_gpus_the_one_built_for_them():
    version = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]["version"]
    assert container(("base", ()))["image"] == f"nocturne:{version}"
    assert container(("overlays/gpu", ()))["image"] == "nocturne:gpu"


@every_variant
def test_ports_and_user_are_those_of_the_image(variant):
    assert {port["name"]: port["containerPort"] for port in container(variant)["ports"]} == image_ports()
    user, group = map(int, dockerfile(r"(?m)^USER (\d+:\d+)$").split(":"))
    context = pod(variant)["securityContext"]
    assert (context["runAsUser"], context["runAsGroup"]) == (user, group)


def test_the_service_publishes_the_api_and_not_the_admin_port():
    (service,) = of_all("Service")
    assert [(port["name"], port["port"], port["targetPort"]) for port in service["spec"]["ports"]] == [("http", 80, "http")]


def test_only_the_namespace_of_prometheus_reaches_the_admin_port_and_the_pods_call_nobody():
    (policy,) = of_all("NetworkPolicy")
    assert policy["spec"]["policyTypes"] == ["Ingress", "Egress"]
    assert policy["spec"]["egress"] == []
    allowed = {port["port"]: rule["from"] for rule in policy["spec"]["ingress"] for port in rule["ports"]}
    assert allowed == {
        "http": [{"namespaceSelector": {}}],
        "admin": [{"namespaceSelector": {"matchLabels": {"kubernetes.io/metadata.name": "monitoring"}}}],
    }


@every_variant
def test_a_pod_has_no_rights_and_writes_nowhere_but_to_memory(variant):
    spec, context = pod(variant), container(variant)["securityContext"]
    assert spec["securityContext"]["runAsNonRoot"]
    assert spec["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
    assert not spec["automountServiceAccountToken"]
    assert not context["allowPrivilegeEscalation"]
    assert context["readOnlyRootFilesystem"]
    assert context["capabilities"] == {"drop": ["ALL"]}
    writable = {mount["name"] for mount in container(variant)["volumeMounts"] if not mount.get("readOnly")}
    volumes = {volume["name"]: volume for volume in spec["volumes"]}
    assert [volumes[name]["emptyDir"]["medium"] for name in writable] == ["Memory"]


def test_every_setting_named_anywhere_is_one():
    settings = {field.metadata["variable"] for field in fields(ServiceConfig)}
    files = [ROOT / "docker-compose.yaml", *(path for path in DEPLOY.rglob("*") if path.suffix in TEXTS)]
    named = {(path.name, name) for path in files for name in re.findall(r"\bNOCTURNE_[A-Z_]+", path.read_text(encoding="utf-8"))}
    assert {(file, name) for file, name in named if name not in settings} == set()
    assert {name for variant in VARIANTS for name in environment(variant) if name.startswith("NOCTURNE_")} <= settings


@every_overlay
def test_the_settings_of_a_pod_have_values_that_the_service_takes(variant):
    config = ServiceConfig.from_environment(environment(variant))
    assert config.provider == ("cuda" if "gpu" in variant[0] else "auto")


@every_variant
def test_a_pod_that_ends_has_time_for_what_is_under_way(variant):
    deadline_s = ServiceConfig.from_environment({"NOCTURNE_DEADLINE_S": environment(variant)["NOCTURNE_DEADLINE_S"]}).deadline_s
    pre_stop_s = container(variant)["lifecycle"]["preStop"]["sleep"]["seconds"]
    assert pod(variant)["terminationGracePeriodSeconds"] > pre_stop_s + deadline_s + 5


@every_variant
def test_probes_ask_the_admin_port_and_a_start_may_take_as_long_as_the_service_allows_itself(variant):
    probes = {name: container(variant)[f"{name}Probe"] for name in ("startup", "readiness", "liveness")}
    paths = {name: probe["httpGet"]["path"] for name, probe in probes.items()}
    assert paths == {"startup": "/readyz", "readiness": "/readyz", "liveness": "/livez"}
    assert set(paths.values()) <= set(ADMIN_PATHS)
    assert {probe["httpGet"]["port"] for probe in probes.values()} == {"admin"}
    if "gpu" in variant[0]:
        (timeout_s,) = re.findall(r"(?m)^timeout = (\d+)", (ROOT / "service/gunicorn.conf.py").read_text(encoding="utf-8"))
        assert probes["startup"]["failureThreshold"] * probes["startup"]["periodSeconds"] > int(timeout_s)


def test_a_gpu_is_asked_for_where_the_provider_is_cuda():
    assert container(("overlays/gpu", ()))["resources"]["limits"]["nvidia.com/gpu"] == "1"
    assert "nvidia.com/gpu" not in container(("base", ()))["resources"]["limits"]
    (toleration,) = pod(("overlays/gpu", ()))["tolerations"]
    assert toleration["key"] == "nvidia.com/gpu"


def targets(autoscaler):
    return {m["pods"]["metric"]["name"]: int(m["pods"]["target"]["averageValue"]) for m in autoscaler["spec"]["metrics"]}


@every_overlay
def test_pods_are_added_before_their_slots_are_full_and_as_soon_as_a_quarter_as_many_wait(variant):
    batches = 1 if "gpu" in variant[0] else int(container(variant)["resources"]["limits"]["cpu"])
    slots = batches * ServiceConfig().slots
    found = targets(BUILT[variant][AUTOSCALER])
    assert found == {"nocturne_queue_length": slots // 4, "nocturne_slots_in_use": slots // 2}
    assert found.keys() <= set(GAUGES)


@every_overlay
def test_the_last_pod_is_never_moved_and_pods_come_faster_than_they_go(variant):
    autoscaler = BUILT[variant][AUTOSCALER]["spec"]
    assert autoscaler["maxReplicas"] > autoscaler["minReplicas"] > 1
    assert BUILT[variant]["PodDisruptionBudget", "nocturne"]["spec"]["maxUnavailable"] == 1
    assert "replicas" not in BUILT[variant]["Deployment", "nocturne"]["spec"]
    up, down = autoscaler["behavior"]["scaleUp"], autoscaler["behavior"]["scaleDown"]
    assert up["stabilizationWindowSeconds"] == 0
    assert down["stabilizationWindowSeconds"] >= 300
    assert max(policy["periodSeconds"] for policy in up["policies"]) < min(policy["periodSeconds"] for policy in down["policies"])


def test_an_update_takes_no_pod_away_but_where_a_pod_more_would_need_a_gpu_more():
    def rolling(overlay):
        return BUILT[overlay, ()]["Deployment", "nocturne"]["spec"]["strategy"]["rollingUpdate"]

    assert rolling("base") == {"maxUnavailable": 0, "maxSurge": 1}
    assert rolling("overlays/gpu") == {"maxUnavailable": 1, "maxSurge": 0}


def test_keda_takes_the_place_of_the_autoscaler_with_the_same_figures():
    built = BUILT["base", ("components/keda",)]
    autoscaler, scaled = BUILT["base", ()][AUTOSCALER], built[SCALED_OBJECT]["spec"]
    assert AUTOSCALER not in built
    assert scaled["minReplicaCount"] == autoscaler["spec"]["minReplicas"]
    assert scaled["maxReplicaCount"] == autoscaler["spec"]["maxReplicas"]
    assert scaled["minReplicaCount"] <= scaled["fallback"]["replicas"] <= scaled["maxReplicaCount"]
    assert scaled["advanced"]["horizontalPodAutoscalerConfig"]["behavior"] == autoscaler["spec"]["behavior"]
    assert {trigger["type"] for trigger in scaled["triggers"]} == {"prometheus"}
    assert {trigger["metadata"]["query"]: trigger["metadata"]["threshold"] for trigger in scaled["triggers"]} == {
        f'sum({name}{{namespace="nocturne"}})': str(target) for name, target in targets(autoscaler).items()
    }
    for trigger in scaled["triggers"]:
        assert set(trigger["metadata"]) == {"serverAddress", "query", "threshold", "ignoreNullValues"}
        assert all(isinstance(value, str) for value in trigger["metadata"].values())
        assert trigger["metadata"]["serverAddress"].partition("//")[2].split(".")[1] == "monitoring"


def test_the_operator_scrapes_the_admin_port_of_the_pods_under_the_name_that_the_alerts_know():
    spec = BUILT["base", ("components/monitoring",)]["PodMonitor", "nocturne"]["spec"]
    assert set(spec) == {"jobLabel", "selector", "podMetricsEndpoints"}
    assert LABELS[spec["jobLabel"]] == load(DEPLOY / "prometheus/prometheus.yml")["scrape_configs"][0]["job_name"]
    (endpoint,) = spec["podMetricsEndpoints"]
    assert endpoint["port"] == "admin"
    assert endpoint["path"] in ADMIN_PATHS


def test_the_secret_with_the_keys_is_mounted_where_the_setting_looks_and_a_pod_without_it_does_not_start():
    variant = ("base", ("components/api-keys",))
    (mount,) = (mount for mount in container(variant)["volumeMounts"] if mount["name"] == "api-keys")
    (volume,) = (volume for volume in pod(variant)["volumes"] if volume["name"] == "api-keys")
    assert mount["readOnly"]
    assert environment(variant)["NOCTURNE_API_KEYS_FILE"] == mount["mountPath"] + "/keys.toml"
    assert not volume["secret"].get("optional")
    assert volume["secret"]["defaultMode"] == 0o440
    assert pod(variant)["securityContext"]["fsGroup"] == int(dockerfile(r"(?m)^USER (\d+):\d+$"))


def test_the_readme_names_files_that_are_there_and_the_name_of_the_secret():
    text = (DEPLOY / "README.md").read_text(encoding="utf-8")
    for name in re.findall(r"`((?:\.\./|kubernetes/|prometheus/|grafana/)[\w./-]+)`", text):
        assert (DEPLOY / name).exists(), name
    for name in re.findall(r"\bdeploy/[\w./-]+", text):
        assert (ROOT / name).exists() or "/mine" in name, name
    (secret,) = {m["secret"]["secretName"] for m in pod(("base", COMPONENTS))["volumes"] if "secret" in m}
    assert f"kubectl create secret generic {secret} --namespace nocturne --from-file=keys.toml" in text


def ordered(value, key=""):
    """The same with merged lists in one order: kustomize puts what a patch adds first, these tests put it last."""
    if isinstance(value, dict):
        return {name: ordered(part, name) for name, part in value.items()}
    if not isinstance(value, list):
        return value
    items = [ordered(item) for item in value]
    return sorted(items, key=lambda item: str(item.get(MERGE_KEYS[key]))) if key in MERGE_KEYS else items


@pytest.mark.skipif(shutil.which("kubectl") is None, reason="needs kubectl")
@every_variant
def test_kustomize_itself_makes_the_same_manifests(variant, tmp_path):
    def relative(name):
        return os.path.relpath(KUBERNETES / name, tmp_path.resolve())

    kustomization = {"resources": [relative(variant[0])], "components": [relative(part) for part in variant[1]]}
    (tmp_path / "kustomization.yaml").write_text(yaml.safe_dump(kustomization), encoding="utf-8")
    made = subprocess.run(["kubectl", "kustomize", str(tmp_path)], check=True, capture_output=True, text=True, timeout=60).stdout
    manifests = {(m["kind"], m["metadata"]["name"]): m for m in yaml.safe_load_all(made)}
    assert ordered(manifests) == ordered(BUILT[variant])
