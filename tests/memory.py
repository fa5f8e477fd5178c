"""How much memory a process has, and had at most."""

from pathlib import Path


def resident(what: str) -> int:
    """Bytes of this process: VmRSS now, VmHWM at most. (`ru_maxrss` is not it: a process that was just started by one
    of 2 GB has 2 GB there.)"""
    (line,) = [line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith(what)]
    return int(line.split()[1]) * 1024
