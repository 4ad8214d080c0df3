"""A work queue from which processes take items, and shared counters, without waiting for each other."""

import math
import time
from collections import Counter
from collections.abc import Callable, Iterator

import torch.distributed
from accelerate import Accelerator
from torch.distributed import DistError
from torch.distributed.distributed_c10d import PrefixStore, _get_default_store

_POLL = 0.1  # seconds


class WorkQueue:
    """A queue of the items 0, 1, 2 ..., each of which goes to a single process, and counters that all processes share.

    The counters are in the key-value store of the process group, so that a process can read and change them at any
    time, without a collective operation. A single process keeps them in memory.
    """

    def __init__(self, accelerator: Accelerator, name: str) -> None:
        """`name` must be the same in all processes, and different from that of every other queue of the run."""
        self._local: Counter[str] = Counter()
        shared = accelerator.num_processes > 1 and torch.distributed.is_initialized()
        self._store = PrefixStore(name, _get_default_store()) if shared else None
        self._processes = accelerator.num_processes

    def add(self, name: str, number: int = 1) -> int:
        """Add `number` to the counter `name`, atomically. Returns its new value."""
        if self._store is not None:
            return int(self._store.add(name, number))
        self._local[name] += number
        return self._local[name]

    def get(self, name: str) -> int:
        """The value of the counter `name`; 0 where nothing was added to it."""
        return self.add(name, 0)

    def claim(self, total: int, size: int) -> Iterator[list[int]]:
        """Yield the next `size` items of 0 .. `total` - 1 that no process has taken, until none is left.

        `total` and `size` must be the same in all processes. For other items, make another queue.
        """
        while (first := self.add("claimed", size) - size) < total:
            yield list(range(first, min(first + size, total)))

    def wait_for_all(self, meanwhile: Callable[[], None], patience: float = math.inf) -> None:
        """Return when every process has called this. Until then, `meanwhile` is called about ten times a second.

        This may take as long as it likes, while any process adds to the counter "done" or arrives. Raises DistError
        after `patience` seconds without either: a process is taken to be lost then.
        """
        self.add("arrived")
        seen, since = (-1, -1), time.monotonic()
        while (arrived := self.get("arrived")) < self._processes:
            now = arrived, self.get("done")
            if now != seen:
                seen, since = now, time.monotonic()
            elif time.monotonic() - since > patience:
                raise DistError(f"no sign of life for {patience} s, and {self._processes - arrived} have not arrived")
            meanwhile()
            time.sleep(_POLL)
