"""As much of kustomize as deploy/kubernetes uses: resources, components, patches that are merged, tags of images."""

from collections.abc import Sequence
from copy import deepcopy
from pathlib import Path
from typing import Any

import yaml

from tests.deploy.files import load

Manifest = dict[str, Any]
Name = tuple[str, str]  # kind, name

# Lists whose items a patch merges by this field; it replaces every other list.
MERGE_KEYS = {
    "containers": "name",
    "env": "name",
    "ports": "containerPort",
    "volumeMounts": "mountPath",
    "volumes": "name",
    "topologySpreadConstraints": "topologyKey",
}
_KNOWN = {"apiVersion", "kind", "resources", "components", "patches", "images"}


def build(folder: Path, components: Sequence[Path] = ()) -> dict[Name, Manifest]:
    """Return the manifests of a kustomization, with components beside those it has itself."""
    manifests = _accumulate(folder, {})
    for component in components:
        manifests = _accumulate(component, manifests)
    return manifests


def _accumulate(folder: Path, before: dict[Name, Manifest]) -> dict[Name, Manifest]:
    kustomization = load(folder / "kustomization.yaml")
    assert set(kustomization) <= _KNOWN, f"{folder}: this program does not know {set(kustomization) - _KNOWN}"
    manifests = deepcopy(before)
    for entry in kustomization.get("resources", ()):
        path = folder / entry
        added = build(path) if path.is_dir() else {_name(manifest): manifest for manifest in [load(path)]}
        assert not manifests.keys() & added.keys(), f"{path}: these are there already"
        manifests |= added
    for entry in kustomization.get("components", ()):
        manifests = _accumulate(folder / entry, manifests)
    for entry in kustomization.get("patches", ()):
        patch = yaml.safe_load(entry["patch"]) if "patch" in entry else load(folder / entry["path"])
        if patch.pop("$patch", "") == "delete":
            del manifests[_name(patch)]
        else:
            manifests[_name(patch)] = merge(manifests[_name(patch)], patch)
    for entry in kustomization.get("images", ()):
        _set_tag(manifests, entry["name"], entry["newTag"])
    return manifests


def merge(value: Manifest, patch: Manifest) -> Manifest:
    """Return a manifest, or a part of one, with a strategic merge patch applied."""
    merged = dict(value)
    for key, new in patch.items():
        old = merged.get(key)
        if isinstance(new, dict) and isinstance(old, dict):
            merged[key] = merge(old, new)
        elif isinstance(new, list) and isinstance(old, list) and key in MERGE_KEYS:
            items = {item[MERGE_KEYS[key]]: item for item in old}
            for item in new:
                name = item[MERGE_KEYS[key]]
                items[name] = merge(items.get(name, {}), item)
            merged[key] = list(items.values())
        else:
            merged[key] = new
    return merged


def _set_tag(manifests: dict[Name, Manifest], image: str, tag: str) -> None:
    for (kind, _), manifest in manifests.items():
        for container in manifest["spec"]["template"]["spec"]["containers"] if kind == "Deployment" else ():
            if container["image"].partition(":")[0] == image:
                container["image"] = f"{image}:{tag}"


def _name(manifest: Manifest) -> Name:
    return manifest["kind"], manifest["metadata"]["name"]
