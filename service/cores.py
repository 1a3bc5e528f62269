"""How many processor cores there are to use."""

import os
from pathlib import Path

_CGROUP_LIMIT = Path("/sys/fs/cgroup/cpu.max")  # microseconds of processor time in each period, as Docker's --cpus sets it


def available_cores() -> int:
    """Return how many cores this process may use: those it is bound to, or fewer where its control group has a share of them."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    try:
        quota, period = _CGROUP_LIMIT.read_text().split()
        share = -(-int(quota) // int(period))
    except (OSError, ValueError):  # no control groups here, or "max"
        return cores
    return max(1, min(cores, share))
