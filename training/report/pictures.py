"""The report's pictures, as PNG files: composed music beside real music. Without pyplot: no global state, no display."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from service.music.piece import LOWEST_PITCH, RESOLUTION
from training.report.statistics import LENGTH_EDGES, VELOCITY_CLASS, WIDEST, Array
from training.storage import write_atomically

COMPOSED, REAL = "#c44e52", "#4c72b0"
DPI = 90
DISTRIBUTIONS = ("pitch", "interval", "duration", "shift", "velocity")


def _figure(width: float, height: float) -> Any:
    from matplotlib.figure import Figure

    return Figure(figsize=(width, height), layout="constrained")


def _save(figure: Any, path: Path) -> None:
    with write_atomically(path) as file:
        figure.savefig(file, format="png", dpi=DPI)


def draw_overlap(features: Mapping[str, Mapping[str, float]], path: Path) -> None:
    """Draw the overlapped area of each feature as a bar, with the standard deviation over halvings, and its ceiling beside it."""
    figure = _figure(8, 4.5)
    axes = figure.subplots()
    rows = np.arange(len(features))[::-1]
    for name, label, offset, colour in (("ceiling_area", "real", 0.2, REAL), ("area", "composed", -0.2, COMPOSED)):
        values, errors = ([row[key] for row in features.values()] for key in (name, f"{name}_sd"))
        axes.barh(
            rows + offset, values, 0.38, xerr=errors, label=f"{label} against real", color=colour, error_kw={"linewidth": 0.8}
        )
    axes.set_yticks(rows, [name.replace("_", " ") for name in features])
    axes.set(xlabel="overlapped area of distances (1: indistinguishable)", xlim=(0, 1))
    figure.legend(loc="outside upper right", ncols=2, fontsize="small")
    _save(figure, path)


def draw_similarity(composed: Sequence[float], real: Sequence[float], path: Path) -> None:
    """Draw the mean similarity of bars over their distance in bars."""
    figure = _figure(8, 4)
    axes = figure.subplots()
    for curve, label, colour in ((real, "real", REAL), (composed, "composed", COMPOSED)):
        axes.plot(np.arange(1, len(curve) + 1), curve, marker="o", markersize=3, label=label, color=colour)
    axes.set(xlabel="bars apart", ylabel="mean similarity of two bars", ylim=(0, None), xticks=range(4, len(real) + 1, 4))
    axes.grid(axis="x", linewidth=0.4)
    axes.legend(fontsize="small")
    _save(figure, path)


def draw_matrices(composed: Array, real: Array, path: Path) -> None:
    """Draw the self-similarity matrix of one composed and one real passage side by side."""
    figure = _figure(8, 4)
    for axes, matrix, title in zip(figure.subplots(1, 2), (real, composed), ("real", "composed"), strict=True):
        axes.imshow(matrix, vmin=0, vmax=1, cmap="magma", interpolation="nearest", origin="lower")
        axes.set(title=title, xlabel="bar", ylabel="bar")
    _save(figure, path)


def _ticks(name: str, size: int) -> Array:
    """Return where the classes of a histogram lie on its axis."""
    middles: Array = LENGTH_EDGES / 2**0.25 / RESOLUTION
    classes = np.arange(size, dtype=np.float64)
    places = {"pitch": classes + LOWEST_PITCH, "interval": classes - WIDEST, "velocity": (classes + 0.5) * VELOCITY_CLASS}
    return places.get(name, np.append(middles, middles[-1] * 2**0.5))


def draw_distributions(composed: Mapping[str, Array], real: Mapping[str, Array], path: Path) -> None:
    """Draw the mean histograms, given as arrays of shape (passages, classes), over each other."""
    units = {"pitch": "MIDI number", "interval": "semitones", "velocity": "MIDI velocity"}
    figure = _figure(9, 7)
    grid = figure.subplots(3, 2).ravel()
    for axes, name in zip(grid, DISTRIBUTIONS, strict=False):
        at = _ticks(name, real[name].shape[1])
        for values, label, colour in ((real[name], "real", REAL), (composed[name], "composed", COMPOSED)):
            axes.step(at, values.mean(axis=0), where="mid", label=label, color=colour, linewidth=1.2)
            axes.fill_between(at, values.mean(axis=0), step="mid", color=colour, alpha=0.15)
        if name in ("duration", "shift"):
            axes.set_xscale("log", base=2)
        axes.set(title=name, xlabel=units.get(name, "quarter notes"), ylabel="share", ylim=(0, None))
    grid[0].legend(fontsize="small")
    grid[-1].set_axis_off()
    _save(figure, path)
