"""The files of deploy/, read."""

import re
from pathlib import Path
from typing import Any

import yaml

ROOT = Path(__file__).resolve().parents[2]
DEPLOY = ROOT / "deploy"
KUBERNETES = DEPLOY / "kubernetes"
OVERLAYS = ("base", "overlays/gpu")
COMPONENTS = ("components/api-keys", "components/keda", "components/monitoring")


def load(path: Path) -> Any:
    """Return the one document of a YAML file."""
    return yaml.safe_load(path.read_text(encoding="utf-8"))


def dockerfile(pattern: str) -> str:
    """Return the group of the only match of a pattern in the Dockerfile."""
    (found,) = re.findall(pattern, (ROOT / "Dockerfile").read_text(encoding="utf-8"))
    return found


def image_ports() -> dict[str, int]:
    """Return the ports that the image listens on."""
    return {"http": int(dockerfile(r"\sPORT=(\d+)")), "admin": int(dockerfile(r"\sADMIN_PORT=(\d+)"))}


def set_values(container: Any) -> dict[str, str]:
    """Return the environment of a container, but for what the cluster fills in."""
    return {entry["name"]: entry["value"] for entry in container["env"] if "value" in entry}
