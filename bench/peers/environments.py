"""A virtual environment for each peer: the framework at the version that was measured, and what our model and music code need."""

import subprocess
import sys
import venv
from pathlib import Path

from bench.shipped import ROOT

# All under permissive licences: Apache 2.0 (LitServe, BentoML), MIT, BSD.
_OURS = ("numpy", "mido", "orjson", "jsonschema-rs", "pyyaml", "onnxruntime-gpu")  # at our versions
_HTTP = ("uvicorn==0.54.0", "starlette==1.10.0", "uvloop==0.23.0", "httptools==0.9.0")
PACKAGES = {
    "litserve": ("litserve==0.2.19", "fastapi==0.165.0", "pyzmq==27.3.0", *_HTTP),
    "bentoml": ("bentoml==1.4.40", *_HTTP),
}
_STAMP = "installed.txt"  # what was asked for, once all of it is there


def make_environment(name: str, folder: Path) -> Path:
    """Return the folder with the programs of a peer's environment; install it first if it is not there."""
    place = folder.resolve() / name
    programs, stamp = place / "bin", place / _STAMP
    packages = [*PACKAGES[name], *_at_our_versions()]
    if not stamp.exists() or stamp.read_text() != "\n".join(packages):
        print(f"installing {name} into {place}", file=sys.stderr)
        venv.create(place, clear=True, with_pip=True)
        install = [str(programs / "python"), "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
        subprocess.run([*install, *packages], check=True)
        stamp.write_text("\n".join(packages))
    return programs


def _at_our_versions() -> list[str]:
    # Not all of constraints.txt: it also pins what the peers need in another version.
    lines = (ROOT / "constraints.txt").read_text().splitlines()
    return [line for line in lines if line.partition("==")[0].lower().replace("_", "-") in _OURS]
