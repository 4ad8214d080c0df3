"""This process: the cores it may use, how other processes can name it, and whether one named so still runs."""

import gc
import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path


@contextmanager
def importing() -> Iterator[None]:
    """A context manager to import torch in: an eighth faster, as nothing of it is garbage to be looked for."""
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_enabled:
            gc.enable()


def usable_cores() -> int:
    """The cores that this process may use: under Slurm, or `docker --cpuset-cpus`, fewer than the machine has."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def name_of_this() -> str:
    """Two lines that name this process: for people, and by what another process tells it from a later one.

    A number alone would not do: systems give it to another process in time, and each container counts anew.
    """
    return f"process {os.getpid()} on {socket.gethostname()}\n{' '.join(_place())} {_start_of(os.getpid())}"


def is_alive(name: str) -> bool | None:
    """Whether the process of this name runs; None where that can't be told from here, as of another machine."""
    told, _, more = name.partition("\n")
    try:
        pid, host = int(told.split()[1]), told.split()[3]
    except (IndexError, ValueError):
        return None
    here, facts = _place(), more.split()
    if len(facts) != 3 or not here[0]:  # a system without /proc
        return _exists(pid) if host == socket.gethostname() else None
    boot, namespace, start = facts
    if boot != here[0]:
        return False if host == socket.gethostname() else None  # this machine has been started anew since, or another
    if namespace != here[1]:  # in another container of this machine
        return None
    return _start_of(pid) == start


def _place() -> tuple[str, str]:
    """What numbers of processes mean the same in: the start of the machine, and the namespace in it."""
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()
        return boot, os.readlink("/proc/self/ns/pid")
    except OSError:
        return "", ""


def _start_of(pid: int) -> str:
    """When a process was started, in ticks since the start of the machine; "gone" where there is no such process."""
    with suppress(OSError):
        # Behind the name of its program, which may hold anything: the state, then 18 others, then the start.
        fields = Path(f"/proc/{pid}/stat").read_bytes().rpartition(b")")[2].split()
        if fields[0] not in (b"Z", b"X"):  # ended, though its parent has not looked yet
            return fields[19].decode()
    return "gone"


def _exists(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True
