"""Which samples each update takes: a pure function of the seed and the epoch."""

from collections.abc import Sequence, Sized
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, Protocol

import numpy as np

Indices = np.ndarray[Any, np.dtype[np.int64]]
_SORTED_TOGETHER = 16  # windows whose samples are sorted by length: enough for little padding, few enough to be random


@dataclass(frozen=True)
class Draw:
    """Which sample a batch takes. Without `valid` it is a filler, drawn only to keep processes in step."""

    index: int
    valid: bool = True


class DataOrder(Protocol):
    """The order in which a run takes its samples, known before any is read."""

    @property
    def global_batch(self) -> int:
        """Samples per optimizer update, over all processes."""

    @property
    def updates_per_epoch(self) -> int | None:
        """Optimizer updates per epoch; None where nobody knows how many samples there are."""

    def window(self, update: int, process: int) -> list[list[Draw]]:
        """The micro-batches that `process` contributes to optimizer update number `update`, counted from 0."""


@dataclass(frozen=True)
class ShuffledOrder:
    """Samples of a known number, shuffled anew for each epoch.

    The samples of one update are a slice of `order(epoch)` that depends on the global batch only, so runs on one or
    many processes, with large micro-batches or small, see the same data in the same order.
    """

    samples: Sized
    batch_size: int
    accumulation: int
    processes: int
    seed: int
    lengths: tuple[int, ...] | None = None  # tokens of each caption, to put captions of like length together

    @property
    def global_batch(self) -> int:
        """Samples per optimizer update, over all processes."""
        return self.batch_size * self.accumulation * self.processes

    @property
    def updates_per_epoch(self) -> int:
        """Optimizer updates per epoch; the last one may be short."""
        return -(-len(self.samples) // self.global_batch)

    def order(self, epoch: int) -> Indices:
        """The order in which an epoch takes the samples."""
        if self.lengths is None:
            return _order(len(self.samples), self.seed, epoch)
        return _order_by_length(len(self.samples), self.seed, epoch, self.lengths, self.global_batch)

    def window(self, update: int, process: int) -> list[list[Draw]]:
        """The micro-batches that `process` contributes to optimizer update number `update`, counted from 0.

        A short last window is dealt out evenly; a process left with nothing draws a filler.
        """
        epoch, position = divmod(update, self.updates_per_epoch)
        drawn = self.order(epoch)[position * self.global_batch :][: self.global_batch]
        if self.lengths is not None:  # the gradient of a window doesn't depend on the order inside
            drawn = drawn[np.argsort([-self.lengths[i] for i in drawn], kind="stable")]
        micro_batches = -(-len(drawn) // (self.batch_size * self.processes))
        shares = np.array_split(drawn, micro_batches * self.processes)[process :: self.processes]
        return [[Draw(int(i)) for i in share] or [Draw(int(drawn[0]), valid=False)] for share in shares]


def deal(samples: int, batch_size: int, *, process: int, processes: int) -> list[Sequence[int]]:
    """The batches of one process when samples 0, 1, 2 ... are dealt out to all processes in turn."""
    share = range(process, samples, processes)
    return [share[at : at + batch_size] for at in range(0, len(share), batch_size)]


@lru_cache(maxsize=2)
def _order(samples: int, seed: int, epoch: int) -> Indices:
    return np.random.default_rng((seed, epoch)).permutation(samples)


@lru_cache(maxsize=2)
def _order_by_length(samples: int, seed: int, epoch: int, lengths: tuple[int, ...], window: int) -> Indices:
    """The order of an epoch with samples of like length in the same window: sorted in stretches, windows shuffled."""
    order = _order(samples, seed, epoch)
    rng = np.random.default_rng((seed, epoch, 1))
    windows: list[Indices] = []
    whole = samples - samples % window  # a short last window stays the last
    for at in range(0, whole, _SORTED_TOGETHER * window):
        stretch = order[at : min(at + _SORTED_TOGETHER * window, whole)]
        stretch = stretch[np.argsort(np.take(lengths, stretch), kind="stable")]
        cut = np.split(stretch, range(window, len(stretch), window))
        windows += [cut[i] for i in rng.permutation(len(cut))]
    return np.concatenate([*windows, order[whole:]])
