"""Which exported models a benchmark measures, if it is not told: those that ship, int8 first, which is the faster form."""

import argparse
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
INT8 = ".int8"  # before the .onnx of a model's int8 form


def shipped_models() -> list[Path]:
    """Return the exported forms of the model, int8 first, those that exist."""
    return [path for ending in (INT8, "") if (path := ROOT / "exported" / f"nocturne{ending}.onnx").exists()]


def precision(model: Path) -> str:
    """Return in what a model's large products are computed, by its name."""
    return "int8" if model.stem.endswith(INT8) else "float32"


def add_model(parser: argparse.ArgumentParser) -> None:
    """Add the argument MODEL.onnx, which may be left out."""
    parser.add_argument("model", type=Path, nargs="?", default=next(iter(shipped_models()), None), help="default: %(default)s")


def add_models(parser: argparse.ArgumentParser) -> None:
    """Add the arguments MODEL.onnx, any number of them."""
    parser.add_argument(
        "models", type=Path, nargs="*", default=shipped_models(), metavar="MODEL.onnx", help="default: those that ship"
    )
