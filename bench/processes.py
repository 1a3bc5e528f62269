"""What /proc tells of a process and all that it has started: memory and processor time. Linux only."""

import os
from pathlib import Path
from typing import NamedTuple

_PROC = Path("/proc")
_TICKS_PER_S = os.sysconf("SC_CLK_TCK")


class Usage(NamedTuple):
    """A process and what it uses.

    Attributes
    ----------
    pid : int
    depth : int
        0: the process itself, 1: what it started, 2: what that started.
    rss_mib, pss_mib : float
        Resident memory; Pss shares out the pages that several processes have in common.
    processor_s : float
        Processor time so far, user and system.
    """

    pid: int
    depth: int
    rss_mib: float
    pss_mib: float
    processor_s: float


def read_usage(pid: int) -> list[Usage]:
    """Return what a process and its descendants use, parents first."""
    children: dict[int, list[int]] = {}
    seconds: dict[int, float] = {}
    for folder in _PROC.glob("[0-9]*"):
        try:
            fields = (folder / "stat").read_text().rpartition(")")[2].split()  # the name before may hold spaces
        except OSError:  # it has ended
            continue
        children.setdefault(int(fields[1]), []).append(int(folder.name))
        seconds[int(folder.name)] = (int(fields[11]) + int(fields[12])) / _TICKS_PER_S
    found, left = [], [(pid, 0)]
    while left:
        current, depth = left.pop(0)
        rss, pss = _mib(current, "status", "VmRSS"), _mib(current, "smaps_rollup", "Pss")
        found.append(Usage(current, depth, rss, pss, seconds.get(current, 0.0)))
        left += [(child, depth + 1) for child in sorted(children.get(current, []))]
    return found


def _mib(pid: int, file: str, name: str) -> float:
    try:
        lines = (_PROC / str(pid) / file).read_text().splitlines()
    except OSError:
        return 0.0
    return next(int(line.split()[1]) / 1024 for line in lines if line.startswith(f"{name}:"))
