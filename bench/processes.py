"""What /proc tells of a process and all that it has started: memory, processor time, threads, descriptors. Linux only."""

import os
from pathlib import Path
from typing import NamedTuple

_PROC = Path("/proc")
_TICKS_PER_S = os.sysconf("SC_CLK_TCK")
_ESTABLISHED = "01"  # in /proc/net/tcp; a connection that only the other side has closed is in another state


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
    threads : int
    descriptors : int
        Open ones, of whatever kind.
    connections : int
        TCP connections among them that neither side has closed.
    """

    pid: int
    depth: int
    rss_mib: float
    pss_mib: float
    processor_s: float
    threads: int = 0
    descriptors: int = 0
    connections: int = 0


def read_usage(pid: int) -> list[Usage]:
    """Return what a process and its descendants use, parents first."""
    children: dict[int, list[int]] = {}
    seconds: dict[int, float] = {}
    threads: dict[int, int] = {}
    for folder in _PROC.glob("[0-9]*"):
        try:
            fields = (folder / "stat").read_text().rpartition(")")[2].split()  # the name before may hold spaces
        except OSError:  # it has ended
            continue
        children.setdefault(int(fields[1]), []).append(int(folder.name))
        seconds[int(folder.name)] = (int(fields[11]) + int(fields[12])) / _TICKS_PER_S
        threads[int(folder.name)] = int(fields[17])
    found, left = [], [(pid, 0)]
    while left:
        current, depth = left.pop(0)
        rss, pss = _mib(current, "status", "VmRSS"), _mib(current, "smaps_rollup", "Pss")
        counts = threads.get(current, 0), *_descriptors(current)
        found.append(Usage(current, depth, rss, pss, seconds.get(current, 0.0), *counts))
        left += [(child, depth + 1) for child in sorted(children.get(current, []))]
    return found


def busy_s() -> float:
    """Return the processor time that all of this machine has spent on anything so far, and what its host took away."""
    user, nice, system, _idle, _iowait, irq, softirq, steal = map(int, (_PROC / "stat").read_text().split()[1:9])
    return (user + nice + system + irq + softirq + steal) / _TICKS_PER_S


def _mib(pid: int, file: str, name: str) -> float:
    try:
        lines = (_PROC / str(pid) / file).read_text().splitlines()
    except OSError:
        return 0.0
    return next((int(line.split()[1]) / 1024 for line in lines if line.startswith(f"{name}:")), 0.0)  # none: it is a zombie


def _descriptors(pid: int) -> tuple[int, int]:
    """Return how many descriptors a process has open, and how many of them are connections that neither side has closed."""
    try:
        links = [_target(entry) for entry in (_PROC / str(pid) / "fd").iterdir()]
    except OSError:
        return 0, 0
    tables = [_PROC / str(pid) / "net" / name for name in ("tcp", "tcp6")]
    rows = [line.split() for table in tables if table.exists() for line in table.read_text().splitlines()[1:]]
    open_sockets = {f"socket:[{row[9]}]" for row in rows if row[3] == _ESTABLISHED}
    return len(links), sum(link in open_sockets for link in links)


def _target(link: Path) -> str:
    try:
        return os.readlink(link)
    except OSError:  # it was closed meanwhile
        return ""
