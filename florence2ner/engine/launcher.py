"""This process's rank, from the environment variables of `accelerate launch` and torchrun. Imports no torch."""

import os


def rank() -> int:
    """The rank of this process among all, from 0. Without a launcher, 0."""
    return int(os.environ.get("RANK", "0"))


def local_rank() -> int:
    """The rank of this process on its machine, from 0."""
    return int(os.environ.get("LOCAL_RANK", "0"))


def processes() -> int:
    """The number of processes on all machines. Without a launcher, 1."""
    return int(os.environ.get("WORLD_SIZE", "1"))


def local_processes() -> int:
    """The number of processes on this machine."""
    return int(os.environ.get("LOCAL_WORLD_SIZE", "1"))


def is_main() -> bool:
    """Whether this is the main process (rank 0): the one that prints, and writes what only one may write."""
    return rank() == 0
