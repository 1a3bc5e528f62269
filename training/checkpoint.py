"""Checkpoints: all that is needed to go on with a training (`last`), or to use the best network of it (`best`)."""

import io
import subprocess
from pathlib import Path
from typing import Any

import torch

from service.errors import NocturneError
from service.music.representation import REPRESENTATION_VERSION
from training.model import ModelConfig, Network
from training.storage import write_atomically

CHECKPOINT_VERSION = 1
BEST, LAST = "best.pt", "last.pt"


class InvalidCheckpoint(NocturneError):
    """A checkpoint that cannot be used, with the reason."""


def save_checkpoint(path: Path, content: dict[str, Any]) -> None:
    """Write a checkpoint, whole or not at all."""
    buffer = io.BytesIO()  # first in memory: what cannot be serialised never touches the disk
    torch.save({"checkpoint_version": CHECKPOINT_VERSION, **content}, buffer)
    with write_atomically(path) as file:
        file.write(buffer.getbuffer())


def load_checkpoint(path: Path) -> dict[str, Any]:
    """Read a checkpoint onto the CPU.

    Raises
    ------
    InvalidCheckpoint
        If it is missing, broken, or of another version of checkpoint or representation.
    """
    try:
        content: dict[str, Any] = torch.load(path, map_location="cpu", weights_only=True)
    except FileNotFoundError as error:
        raise InvalidCheckpoint(f"{path} does not exist") from error
    except Exception as error:  # torch.load raises many kinds for a broken file
        raise InvalidCheckpoint(f"{path} is not a checkpoint: {error}") from error
    version = content.get("checkpoint_version")
    if version != CHECKPOINT_VERSION:
        raise InvalidCheckpoint(f"{path} is a checkpoint of version {version}; this program reads {CHECKPOINT_VERSION}")
    version = content["model"]["representation_version"]
    if version != REPRESENTATION_VERSION:
        raise InvalidCheckpoint(f"{path} was trained on representation {version}; this program has {REPRESENTATION_VERSION}")
    return content


def save_weights(path: Path, content: dict[str, Any]) -> None:
    """Write a checkpoint with weights in half precision: half as large, and enough to begin another training with."""
    halves = {name: weights.half() if weights.is_floating_point() else weights for name, weights in content["network"].items()}
    save_checkpoint(path, {**content, "network": halves})


def load_network(run: Path) -> tuple[Network, dict[str, Any]]:
    """Return the best network of a run, in evaluation mode, and its checkpoint; `run` is the folder or the file itself."""
    content = load_checkpoint(run / BEST if run.is_dir() else run)
    network = Network(ModelConfig(**content["model"]))
    network.load_state_dict(content["network"])
    return network.eval(), content


def current_commit() -> str:
    """Return the commit that the program runs at, with "-dirty" if files differ from it; "unknown" outside a checkout."""
    folder = Path(__file__).parent
    try:
        described = subprocess.run(
            ["git", "describe", "--always", "--dirty", "--abbrev=12", "--exclude=*"],
            cwd=folder,
            capture_output=True,
            text=True,
            check=True,
        )
    except (OSError, subprocess.CalledProcessError):
        return "unknown"
    return described.stdout.strip()
