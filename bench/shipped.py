"""Which exported model a benchmark measures, if it is not told: the faster one of those that ship."""

import argparse
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
_CANDIDATES = ("nocturne.int8.onnx", "nocturne.onnx")


def default_model() -> Path:
    """Return the int8 model where it was exported, else the float32 one."""
    paths = [ROOT / "exported" / name for name in _CANDIDATES]
    return next((path for path in paths if path.exists()), paths[-1])


def add_model(parser: argparse.ArgumentParser) -> None:
    """Add the argument MODEL.onnx, which may be left out."""
    parser.add_argument("model", type=Path, nargs="?", default=default_model(), help="default: %(default)s")
