"""Which process this is, on which boot of which machine; whether another one, by what it wrote of itself, lives."""

from __future__ import annotations

import hashlib
import json
import os
import socket
import subprocess
import sys
import uuid
from collections.abc import Mapping
from functools import lru_cache
from pathlib import Path
from typing import Any

import psutil

LARGEST_NOTE = 64 * 1024  # bytes: what others wrote is read no further
MACHINE_ID = ("/etc/machine-id", "/var/lib/dbus/machine-id")
BOOT_ID = "/proc/sys/kernel/random/boot_id"


def whoami() -> dict[str, Any]:
    """This process, as it writes of itself; ``here``, ``pid`` and ``ticks`` are what ``lives`` reads.

    The host's name is for people; it, the space and the time of the start are also what older releases go by.
    """
    process = psutil.Process()
    ours = {"host": socket.gethostname(), "space": _space(), "pid": process.pid, "started": process.create_time()}
    return {**ours, "here": here(), "ticks": _ticks(process)}


def lives(facts: Mapping[str, Any]) -> bool | None:
    """Whether the process that wrote ``facts`` of itself lives; None where that cannot be known on this machine."""
    pid, ticks = facts.get("pid"), facts.get("ticks")
    if facts.get("here") != here() or not _is_number(ticks) or not isinstance(pid, int) or not 0 < pid < 2**31:
        return None
    try:
        os.kill(pid, 0)  # no signal: a process that /proc hides from other users is told from none at all
        process = psutil.Process(pid)
        return abs(_ticks(process) - ticks) < 1 and process.status() != psutil.STATUS_ZOMBIE
    except ProcessLookupError:
        return False
    except (OSError, psutil.Error):
        return None


@lru_cache
def here() -> str:
    """What process numbers count within: the machine, its present boot, and the PID namespace (a container's).

    Host names are given twice, machine ids are copied with images: no one of the three is enough. A digest, since a
    machine's id is not for others to know.
    """
    return hashlib.sha256("\n".join(["deep-compression", _machine(), _boot(), _space()]).encode()).hexdigest()[:32]


def mapping_of(content: bytes) -> dict[str, Any] | None:
    """What a small JSON file holds, or None where that is no mapping, or no JSON at all."""
    if len(content) > LARGEST_NOTE:
        return None
    try:
        found = json.loads(content)
    except (ValueError, RecursionError):
        return None
    return found if isinstance(found, dict) else None


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and abs(value) < 2**63  # neither NaN nor what no float can hold


def _ticks(process: psutil.Process) -> float:
    """When it started. Linux: in ticks since the boot, which no change of the clock moves; else seconds since 1970."""
    try:
        return float(Path(f"/proc/{process.pid}/stat").read_bytes().rpartition(b")")[2].split()[19])
    except (OSError, IndexError, ValueError):
        return process.create_time()


def _machine() -> str:
    for path in MACHINE_ID:
        try:
            return Path(path).read_text().strip()
        except OSError:
            continue
    return f"{uuid.getnode():x}"


def _boot() -> str:
    try:
        if sys.platform == "darwin":
            return subprocess.check_output(["sysctl", "-n", "kern.bootsessionuuid"], text=True, timeout=5).strip()
        return Path(BOOT_ID).read_text().strip()
    except (OSError, subprocess.SubprocessError):
        return ""


def _space() -> str:
    try:
        return str(Path("/proc/self/ns/pid").readlink())
    except OSError:
        return ""
