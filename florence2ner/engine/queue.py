"""Work that the processes of a run share out among themselves, and numbers that they keep together, without waiting."""

import time
from collections import Counter
from collections.abc import Callable, Iterator

import torch.distributed
from accelerate import Accelerator
from torch.distributed.distributed_c10d import PrefixStore, _get_default_store

_POLL = 0.1  # seconds


class WorkQueue:
    """Items 0, 1, 2 ... from which every process takes what no other has taken, and numbers that all can add to.

    The launcher's own store keeps the numbers, so any process can read and change them at any moment.
    """

    def __init__(self, accelerator: Accelerator, name: str) -> None:
        """`name` tells this queue from others of the same processes."""
        self._local: Counter[str] = Counter()
        shared = accelerator.num_processes > 1 and torch.distributed.is_initialized()
        self._store = PrefixStore(name, _get_default_store()) if shared else None
        self._processes = accelerator.num_processes

    def add(self, name: str, number: int = 1) -> int:
        """Add to a number; returns what it is then."""
        if self._store is not None:
            return int(self._store.add(name, number))
        self._local[name] += number
        return self._local[name]

    def get(self, name: str) -> int:
        """A number as it is now; 0 where nobody has added to it."""
        return self.add(name, 0)

    def claim(self, total: int, size: int) -> Iterator[list[int]]:
        """Take the next `size` of the items 0..total-1 that no process has taken, until none is left."""
        while (first := self.add("claimed", size) - size) < total:
            yield list(range(first, min(first + size, total)))

    def wait_for_all(self, meanwhile: Callable[[], None]) -> None:
        """Return when every process has come here; one that waits calls `meanwhile` again and again."""
        self.add("arrived")
        while self.get("arrived") < self._processes:
            meanwhile()
            time.sleep(_POLL)
