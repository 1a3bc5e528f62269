"""How a benchmark shows what it found: a table for people, and JSON as the last line for programs."""

import json
import platform
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from service.cores import available_cores


def machine() -> str:
    """Return the processor and how many cores of it this process may use."""
    names = [line.partition(":")[2].strip() for line in _cpuinfo() if line.startswith("model name")]
    flags = next((line.split() for line in _cpuinfo() if line.startswith("flags")), [])
    units = [unit for unit in ("avx2", "avx512f", "avx512_vnni", "avx_vnni", "amx_int8") if unit in flags]
    return f"{names[0] if names else platform.processor()}, {available_cores()} cores, {' '.join(units)}"


def show(title: str, head: Sequence[str], rows: Sequence[Sequence[Any]]) -> None:
    """Print a table, its first column to the left and the others to the right; floats are shown with three significant digits."""
    cells = [list(head), *([_cell(value) for value in row] for row in rows)]
    widths = [max(len(row[i]) for row in cells) for i in range(len(head))]
    print(f"\n{title}")
    for row in cells:
        print(
            "  ".join(
                cell.rjust(width) if i else cell.ljust(width) for i, (cell, width) in enumerate(zip(row, widths, strict=True))
            )
        )


class Verdict(NamedTuple):
    """A figure and its bound."""

    what: str
    value: float
    bound: str
    kept: bool


def show_verdicts(verdicts: Sequence[Verdict]) -> bool:
    """Print which bounds are kept; return whether all are."""
    rows = [(one.what, one.value, one.bound, "kept" if one.kept else "broken") for one in verdicts]
    show("Bounds", ("", "value", "bound", "verdict"), rows)
    return all(one.kept for one in verdicts)


def finish(figures: Mapping[str, Any]) -> None:
    """Print the last line: the figures as JSON, the machine among them."""
    print(json.dumps({"machine": machine(), **figures}))


def _cell(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:,.0f}" if abs(value) >= 100 else f"{value:.3g}"
    return f"{value:,}" if isinstance(value, int) else str(value)


def _cpuinfo() -> list[str]:
    path = Path("/proc/cpuinfo")
    return path.read_text().splitlines() if path.exists() else []
