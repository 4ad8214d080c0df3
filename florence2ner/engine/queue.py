"""A work queue from which processes take items, and shared counters, without waiting for each other."""

import math
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import suppress
from types import TracebackType
from typing import Self

import torch.distributed
from accelerate import Accelerator
from torch.distributed import DistError
from torch.distributed.distributed_c10d import PrefixStore, Store, _get_default_store

_POLL = 0.1  # seconds
_BEAT = 1.0  # seconds between two signs of life
PATIENCE = 60.0  # seconds: of a process that lives, a thread is kept waiting for that long by nothing but a hang
HASTE = 15.0  # seconds, once there was a signal: where that was a launcher's, it kills in 30 s


class WorkQueue:
    """A queue of the items 0, 1, 2 ..., each of which goes to a single process, and counters that all processes share.

    The counters are in the key-value store of the process group, so that a process can read and change them at any
    time, without a collective operation. A single process keeps them in memory.

    To be used as a context manager, in which a thread gives signs of life: those who wait for this process know by them
    that it works, however long its work takes.
    """

    def __init__(self, accelerator: Accelerator, name: str, *, patience: float = PATIENCE) -> None:
        """`name` must be the same in all processes, and different from that of every other queue of the run.

        A process is taken to be lost after `patience` seconds without a sign of life.
        """
        self._local: Counter[str] = Counter()
        shared = accelerator.num_processes > 1 and torch.distributed.is_initialized()
        self._store = PrefixStore(name, _get_default_store()) if shared else None
        self._others = [rank for rank in range(accelerator.num_processes) if rank != accelerator.process_index]
        self._rank = accelerator.process_index
        self._patience = patience
        self._over = threading.Event()
        self._listened = 0.0
        self._heard: dict[int, tuple[int, float]] = {}  # by rank: the signs of life so far, and when that many were new

    def __enter__(self) -> Self:
        if self._store is not None:
            # By the connection that there is: a clone would try to connect to a store that is gone, for a whole day.
            threading.Thread(target=self._beat, args=(self._store,), daemon=True).start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._over.set()
        if error is not None and not isinstance(error, DistError):  # of a loss, the others learn as this process did
            with suppress(DistError):
                self.add("failed")

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

    def hurry(self) -> None:
        """From now on, lose patience sooner: a signal came, as a launcher sends it where another process has died."""
        self._patience = min(self._patience, HASTE)

    def wait_for_all(self, meanwhile: Callable[[], object] = lambda: None) -> None:
        """Return when every process has called this. Until then, `meanwhile` is called about ten times a second.

        This may take as long as it likes, while all live. Raises DistError where one is lost.
        """
        self.add("arrived")
        self.wait_until(lambda: self.get("arrived") > len(self._others), meanwhile)

    def wait_until(
        self, condition: Callable[[], bool], meanwhile: Callable[[], object] = lambda: None, limit: float = math.inf
    ) -> None:
        """Return when `condition` is true, or after `limit` seconds. Until then, both functions are called repeatedly.

        All processes must be in this queue's `with` for as long as one of them waits here. Raises DistError where one
        has left it with an exception, or gives no sign of life.
        """
        start = time.monotonic()
        while not condition() and time.monotonic() - start < limit:
            if self.get("failed"):
                raise DistError("another process failed")
            self._listen()
            meanwhile()
            time.sleep(min(_POLL, limit))

    def _listen(self) -> None:
        """Raise DistError where a process has given no sign of life since `patience` seconds ago, or longer."""
        now = time.monotonic()
        if now - self._listened < _BEAT:
            return
        self._listened = now
        for rank in self._others:
            before, since = self._heard.get(rank, (-1, now))
            beats = self.get(f"beats of {rank}")
            if beats == before and now - since > self._patience:
                raise DistError(f"no sign of life of process {rank} for {self._patience:g} s")
            self._heard[rank] = (beats, since if beats == before else now)

    def _beat(self, store: Store) -> None:
        with suppress(DistError):  # without a store, nobody looks for signs of life, and the main thread notices it too
            while not self._over.wait(_BEAT):
                store.add(f"beats of {self._rank}", 1)
