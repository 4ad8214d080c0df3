"""What the launcher tells each process it starts: `accelerate launch` and torchrun set these variables. No torch."""

import os


def rank() -> int:
    """The number of this process, from 0."""
    return int(os.environ.get("RANK", "0"))


def local_rank() -> int:
    """The number of this process on its machine, from 0."""
    return int(os.environ.get("LOCAL_RANK", "0"))


def processes() -> int:
    """How many processes were started, on all machines."""
    return int(os.environ.get("WORLD_SIZE", "1"))


def local_processes() -> int:
    """How many processes were started on this machine."""
    return int(os.environ.get("LOCAL_WORLD_SIZE", "1"))


def is_main() -> bool:
    """Whether this process speaks for all."""
    return rank() == 0
