"""Folders that a run is to make: whether that can be done, without doing it."""

from __future__ import annotations

import os
from pathlib import Path

import psutil

# File systems that the kernel makes up. root may write "anywhere" in them, and nothing can be made there.
_MADE_UP = frozenset(
    {"bpf", "cgroup", "cgroup2", "configfs", "debugfs", "devpts", "proc", "pstore", "securityfs", "sysfs", "tracefs"}
)


def why_not_made(path: str) -> str | None:
    """Why there is no such folder and none can be made, or why it cannot be written; None where it can."""
    folder = Path(path).absolute()
    there = next(place for place in [folder, *folder.parents] if os.path.lexists(place))
    if not os.path.exists(there):
        return f"{there} is a link to nothing"
    if not os.path.isdir(there):
        return f"{there} is a file, not a folder"
    if not os.access(there, os.W_OK | os.X_OK):
        return f"{there} cannot be written"
    kind = _made_up(there)
    return f"{there} is in {kind}, which the kernel makes up and no folder can be made in" if kind else None


def _made_up(folder: Path) -> str | None:
    """The kind of the kernel's file system that a folder is in; None in one that holds files."""
    if os.statvfs(folder).f_blocks > 0:
        return None
    mounted = {part.mountpoint: part.fstype for part in psutil.disk_partitions(all=True)}
    real = folder.resolve()
    kind = next((mounted[str(place)] for place in [real, *real.parents] if str(place) in mounted), None)
    return kind if kind in _MADE_UP else None
