from dataclasses import fields
from pathlib import Path

import pytest

import service.cores
from service.config import SPARE_THREADS, InvalidSetting, ServiceConfig
from service.cores import available_cores


def read(**environment: str) -> ServiceConfig:
    return ServiceConfig.from_environment(environment)


def test_defaults_hold_where_nothing_is_set_or_the_value_is_empty():
    assert read() == read(NOCTURNE_SLOTS="", PATH="/bin") == ServiceConfig()
    assert ServiceConfig().bind == "127.0.0.1:8000"


def test_every_variable_is_read():
    given = {
        "HOST": "::1",
        "PORT": "9000",
        "ADMIN_PORT": "9001",
        "NOCTURNE_MODEL_DIR": "/models",
        "NOCTURNE_MODEL": "piano",
        "NOCTURNE_PROVIDER": "cpu",
        "NOCTURNE_PRECISION": "float32",
        "NOCTURNE_CORES": "3",
        "NOCTURNE_SLOTS": "4",
        "NOCTURNE_QUEUE": "8",
        "NOCTURNE_CHUNK": "2",
        "NOCTURNE_DEADLINE_S": "5",
        "NOCTURNE_MAX_BODY_BYTES": "2048",
        "NOCTURNE_API_KEYS_FILE": "/keys.toml",
        "NOCTURNE_NOTES_PER_MINUTE": "500",
        "NOCTURNE_PROXIES": "1",
        "NOCTURNE_CORS_ORIGINS": "https://example.org, http://localhost:3000",
        "NOCTURNE_ACCESS_LOG": "off",
        "NOCTURNE_THREADS": "21",
    }
    assert read(**given) == ServiceConfig(
        *("::1", 9000, 9001, Path("/models"), "piano", "cpu", "float32", 3, 4, 8, 2, 5, 2048, Path("/keys.toml"), 500, 1),
        *(("https://example.org", "http://localhost:3000"), "off", 21),
    )
    assert read(**given).bind == "[::1]:9000"
    assert set(given) == {field.metadata["variable"] for field in fields(ServiceConfig)}


def test_every_setting_says_its_unit_and_its_reason():
    for field in fields(ServiceConfig):
        assert field.metadata["unit"], field.name
        assert field.metadata["why"], field.name


@pytest.mark.parametrize(
    ("variable", "value", "message"),
    [
        ("PORT", "http", "`PORT` must be a whole number in [1, 65535]; got http"),
        ("PORT", "65536", "`PORT` must be a whole number in [1, 65535]; got 65536"),
        ("NOCTURNE_SLOTS", "0", "`NOCTURNE_SLOTS` must be a whole number in [1, 1024]; got 0"),
        ("NOCTURNE_SLOTS", "1.5", "`NOCTURNE_SLOTS` must be a whole number in [1, 1024]; got 1.5"),
        ("NOCTURNE_SLOTS", "9" * 9999, "`NOCTURNE_SLOTS` must be a whole number in [1, 1024]; got 999"),
        ("NOCTURNE_CORS_ORIGINS", "example.org", "`NOCTURNE_CORS_ORIGINS` must be origins like https://example.org:8443, with"),
        (
            "NOCTURNE_CORS_ORIGINS",
            "https://a.org/",
            "`NOCTURNE_CORS_ORIGINS` must be origins like https://example.org:8443, with",
        ),
        ("NOCTURNE_PROVIDER", "tpu", "`NOCTURNE_PROVIDER` must be one of auto, cpu, cuda; got tpu"),
        ("NOCTURNE_SLOT", "1", "`NOCTURNE_SLOT` is not a setting; did you mean `NOCTURNE_SLOTS`?"),
        (
            "NOCTURNE_THREADS",
            "256",
            "`NOCTURNE_THREADS` must be more than NOCTURNE_QUEUE and NOCTURNE_CORES times NOCTURNE_SLOTS (",
        ),
    ],
)
def test_bad_values_are_refused_with_variable_limit_and_value(variable, value, message):
    with pytest.raises(InvalidSetting) as caught:
        read(**{variable: value})
    assert str(caught.value).startswith(message)


def test_threads_follow_queue_and_slots():
    assert read(NOCTURNE_QUEUE="1000", NOCTURNE_CORES="4", NOCTURNE_SLOTS="10").threads == 1040 + SPARE_THREADS


@pytest.mark.parametrize(("limit", "cores"), [("max 100000", 8), ("150000 100000", 2), ("50000 100000", 1), ("", 8)])
def test_cores_are_those_that_the_container_may_use(limit, cores, tmp_path, monkeypatch):
    monkeypatch.setattr(service.cores.os, "sched_getaffinity", lambda _: set(range(8)), raising=False)
    monkeypatch.setattr(service.cores, "_CGROUP_LIMIT", tmp_path / "cpu.max")
    (tmp_path / "cpu.max").write_text(limit)
    assert available_cores() == read().cores == cores
    (tmp_path / "cpu.max").unlink()
    assert available_cores() == 8


def test_variables_that_kubernetes_injects_for_a_service_of_our_name_are_no_settings():
    injected = {
        "NOCTURNE_SERVICE_HOST": "10.0.0.1",
        "NOCTURNE_SERVICE_PORT": "80",
        "NOCTURNE_SERVICE_PORT_HTTP": "80",
        "NOCTURNE_PORT": "tcp://10.0.0.1:80",
        "NOCTURNE_PORT_80_TCP_ADDR": "10.0.0.1",
    }
    assert read(**injected) == ServiceConfig()


def test_the_models_are_all_there_are_and_the_first_is_the_one_named(tmp_path):
    def paths(name: str = "", precision: str = "auto", on_gpu: bool = False) -> list[str]:
        config = ServiceConfig(model_dir=tmp_path, model=name, precision=precision)
        return [path.name for path in config.model_paths(on_gpu)]

    with pytest.raises(InvalidSetting, match=r"`NOCTURNE_MODEL_DIR` must be a folder with exported models"):
        paths()
    (tmp_path / "a.onnx").touch()
    assert paths() == paths("a") == paths("a", "float32") == ["a.onnx"]
    with pytest.raises(InvalidSetting, match="`NOCTURNE_PRECISION` must be float32 for the model a; got int8"):
        paths(precision="int8")
    (tmp_path / "a.int8.onnx").touch()
    assert paths() == paths("a") == paths("a", "int8") == ["a.int8.onnx"]
    assert paths("a", "float32") == paths(on_gpu=True) == ["a.onnx"]
    with pytest.raises(InvalidSetting, match="`NOCTURNE_PRECISION` must be auto or float32 on a GPU; got int8"):
        paths(precision="int8", on_gpu=True)
    (tmp_path / "b.onnx").touch()
    assert paths("b") == ["b.onnx", "a.int8.onnx"]
    with pytest.raises(InvalidSetting, match="must be one of a, b; it is not set"):
        paths()
    with pytest.raises(InvalidSetting, match=r"must be one of a, b; got \.\./a"):
        paths("../a")
    (tmp_path / "nocturne.onnx").touch()
    assert paths() == ["nocturne.onnx", "a.int8.onnx", "b.onnx"]
