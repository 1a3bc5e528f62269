import importlib.metadata
import json
import platform
import re
import shlex
import subprocess
import sys
import tomllib
from pathlib import Path, PurePosixPath

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import Version

from service.config import ServiceConfig
from service.web.contract import DOCUMENT
from tests.deploy.files import ROOT

PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
EXTRAS = PROJECT["optional-dependencies"]


def lines(name):
    """The lines of a file in which there is something, without the space around them."""
    return [line.strip() for line in (ROOT / name).read_text(encoding="utf-8").splitlines() if line.strip()]


def instructions():
    """The Dockerfile as (instruction, what follows), comments left out and continued lines joined."""
    text = "\n".join(line for line in lines("Dockerfile") if not line.startswith("#")).replace("\\\n", " ")
    found = [line.split(maxsplit=1) for line in text.splitlines()]
    return [(word.upper(), rest) for word, rest in found]


def stages():
    """The instructions of each stage; what stands before the first FROM is left out."""
    found = []
    for instruction in instructions():
        if instruction[0] == "FROM":
            found.append([])
        if found:
            found[-1].append(instruction)
    return found


BUILD, FINAL = stages()
RULES = lines(".dockerignore")


def values(stage, word):
    return [rest for name, rest in stage if name == word]


def pairs(stage, word):
    """What ENV or LABEL set."""
    return dict(part.split("=", 1) for rest in values(stage, word) for part in shlex.split(rest))


def copies(stage):
    """Where COPY puts what, of the build context or of a path in another stage."""
    found = {}
    for rest in values(stage, "COPY"):
        *sources, target = [word for word in rest.split() if not word.startswith("--")]
        for source in sources:
            found[source] = target + PurePosixPath(source).name if target.endswith("/") else target
    return found


def ignored(path, rules=RULES):
    """Whether .dockerignore keeps a path out of the build: the last rule that fits it, or a folder above it, decides."""
    out = False
    for rule in rules:
        if not rule.startswith("#"):
            pattern = re.escape(rule.removeprefix("!")).replace(r"\*\*/", "(.*/)?").replace(r"\*", "[^/]*")
            if re.fullmatch(rf"{pattern}(/.*)?", path):
                out = not rule.startswith("!")
    return out


def pinned(file="constraints.txt"):
    """The version of each package in a file of constraints."""
    found = [line.split("==") for line in lines(file) if not line.startswith("#")]
    return {canonicalize_name(name): Version(version) for name, version in found}


def test_the_base_has_one_version_and_can_be_pinned_by_its_digest():
    ((word, base), *_) = instructions()
    name, _, default = base.partition("=")
    assert (word, name) == ("ARG", "BASE")
    assert re.fullmatch(r"python:3\.\d+-slim-[a-z]+(@sha256:[0-9a-f]{64})?", default)
    assert values(BUILD, "FROM") == ["${BASE} AS build"]
    assert values(FINAL, "FROM") == ["${BASE}"]


def test_the_image_runs_as_a_user_without_rights_who_cannot_change_it():
    assert re.fullmatch(r"[1-9]\d{3,}:[1-9]\d{3,}", values(FINAL, "USER")[-1])
    assert all("--chown" not in rest and "--chmod" not in rest for rest in values(FINAL, "COPY"))
    assert not values(FINAL, "VOLUME")


def test_the_image_needs_no_shell():
    (command,) = values(FINAL, "CMD")
    (health,) = values(FINAL, "HEALTHCHECK")
    assert json.loads(command) == ["python", "-m", "gunicorn", "-c", "service/gunicorn.conf.py"]
    program, option, code = json.loads(health.partition("CMD ")[2])
    assert (program, option) == ("python", "-c")
    compile(code, "HEALTHCHECK", "exec")
    assert "int(os.environ['ADMIN_PORT']) or os.environ['PORT']" in code, "without an admin port the other has the probes"
    assert values(FINAL, "STOPSIGNAL") == ["SIGTERM"]
    assert not values(FINAL, "RUN") + values(FINAL, "ENTRYPOINT") + values(FINAL, "SHELL")


def test_the_ports_of_the_image_are_those_that_it_exposes():
    environment = pairs(FINAL, "ENV")
    config = ServiceConfig.from_environment({name: value for name, value in environment.items() if name != "PATH"})
    assert environment["HOST"] == "0.0.0.0"
    assert values(FINAL, "EXPOSE") == [f"{environment['PORT']} {environment['ADMIN_PORT']}"]
    assert [str(config.port), str(config.admin_port)] == values(FINAL, "EXPOSE")[0].split()


def test_what_the_service_reads_lies_in_the_image_as_it_does_here():
    build, final = copies(BUILD), copies(FINAL)
    assert final == {"/opt/venv": "/opt/venv", "/app": "/app"}
    assert values(FINAL, "WORKDIR") == ["/app"]
    for path in (DOCUMENT, ServiceConfig().model_dir, ROOT / "service", ROOT / "LICENSE"):
        name = path.relative_to(ROOT).as_posix()
        assert build[name] == f"/app/{name}"
    assert all((ROOT / name).exists() for name in build)


def test_nothing_is_fetched_but_packages_in_versions_that_were_tested():
    assert not values(BUILD, "ADD") + values(FINAL, "ADD")
    for rest in values(BUILD, "RUN"):
        assert not re.search(r"\b(curl|wget|apt|apt-get|git)\b|://", rest)
        for step in rest.split("&&"):
            assert " install " not in step or {"pip", "-c", "constraints.txt"} <= set(step.split())


def test_the_bill_of_materials_is_that_of_what_is_installed_and_its_tool_stays_behind():
    (step,) = [step for rest in values(BUILD, "RUN") for step in rest.split("&&") if "cyclonedx-py" in step]
    words = shlex.split(step)
    assert words[0].startswith("/opt/sbom/")
    assert words[-1] == "/opt/venv"
    assert words[words.index("-o") + 1] == "/app/sbom.cdx.json"
    assert "--output-reproducible" in words


def test_labels_say_what_it_is_and_under_which_licences():
    labels = pairs(FINAL, "LABEL")
    assert labels["org.opencontainers.image.title"] == PROJECT["name"]
    assert labels["org.opencontainers.image.licenses"].split(" AND ") == [PROJECT["license"], "CC-BY-SA-4.0"]
    assert "CC BY-SA 4.0" in (ROOT / "exported/MODEL_CARD.md").read_text(encoding="utf-8")
    assert labels["org.opencontainers.image.description"]


@pytest.mark.parametrize(
    "path",
    [
        ".git/HEAD", ".venv/bin/python", ".venv/audit/log", ".env", "data/train.npz", "runs/piano/last.pt", "tests/conftest.py",
        "training/fit.py", "bench/http.py", "deploy/README.md", "nocturne.cdx.json", "Dockerfile", "service/__pycache__/x.pyc",
        "service/web/__pycache__/app.pyc", "exported/nocturne.pt", "exported/report/report.json", "exported/examples/02-bach.mid",
    ],
)  # fmt: skip
def test_what_the_image_does_not_need_stays_out(path):
    assert ignored(path)


def test_what_the_image_needs_gets_in():
    needed = [path for name in copies(BUILD) for path in ((ROOT / name).rglob("*") if (ROOT / name).is_dir() else [ROOT / name])]
    needed = [path.relative_to(ROOT) for path in needed if path.is_file() and path.suffix not in (".pyc", ".pt")]
    for path in needed:
        if path.parts[:2] not in (("exported", "report"), ("exported", "examples")):
            assert not ignored(path.as_posix()), path
    assert {Path("exported/ATTRIBUTION.txt"), Path("service/web/app.py"), Path("openapi.yaml")} <= set(needed)


def test_rules_of_dockerignore_are_read_as_docker_reads_them():
    rules = ["# no rule: service", "*", "!service", "**/__pycache__", "a/*.pt", "!a/keep.pt"]
    kept = ["service", "service/a.py", "service/web/a.py", "a/keep.pt"]
    out = ["a", "a/b", "a/b/c.pt", "service/__pycache__", "service/web/__pycache__/a.pyc", "services", "x/service"]
    assert [path for path in kept + out if not ignored(path, rules)] == kept


def test_every_package_of_the_service_has_the_one_version_that_was_tested():
    pins = pinned()
    named = [*PROJECT["dependencies"], *EXTRAS["cuda"], *EXTRAS["otel"], "cyclonedx-bom", "pip-audit"]
    waiting = [Requirement(one) for one in named]
    seen = set()
    while waiting:
        wanted = waiting.pop()
        name = canonicalize_name(wanted.name)
        assert name in pins, f"{name} is missing in constraints.txt"
        assert pins[name] in wanted.specifier, f"{wanted}, but constraints.txt has {pins[name]}"
        if name in seen:
            continue
        seen.add(name)
        try:
            requires = importlib.metadata.requires(name) or []
        except importlib.metadata.PackageNotFoundError:
            continue  # for another kind of machine, or for the image alone
        extras = ["", *wanted.extras]
        found = map(Requirement, requires)
        waiting += [it for it in found if it.marker is None or any(it.marker.evaluate({"extra": extra}) for extra in extras)]
    assert {"werkzeug", "protobuf"} <= seen


@pytest.mark.skipif(sys.platform != "linux" or platform.machine() != "x86_64", reason="onnxruntime-gpu is for Linux on x86-64")
def test_every_library_of_cuda_has_one_version_that_fits_the_runtime():
    pins, runtime = pinned("constraints-cuda.txt"), f"onnxruntime-gpu {pinned()['onnxruntime-gpu']}"
    assert runtime in lines("constraints-cuda.txt")[0]
    wanted = [Requirement(one) for one in importlib.metadata.requires("onnxruntime-gpu") if "extra ==" in one]
    wanted = [one for one in wanted if any(one.marker.evaluate({"extra": extra}) for extra in ("cuda", "cudnn"))]
    assert {one.name.partition("-")[0] for one in wanted} == {"nvidia"}
    for one in wanted:
        assert pins[canonicalize_name(one.name)] in one.specifier
    assert not pins.keys() & pinned().keys()


@pytest.mark.parametrize("base", ["", "python:3.11-slim-bookworm@sha256:" + "0" * 64])
def test_make_image_takes_the_base_and_copies_the_bill_of_materials_out(base):
    command = ["make", "--no-print-directory", "-n", "image", f"BASE={base}"]
    build, out, *_ = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout.splitlines()
    assert (f" --build-arg BASE={base} " in build) if base else "BASE" not in build
    assert ":/app/sbom.cdx.json nocturne.cdx.json;" in out
