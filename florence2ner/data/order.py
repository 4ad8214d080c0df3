"""Which samples each update takes: a pure function of seed, epoch and global batch."""

from collections.abc import Sequence, Sized
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, Protocol

import numpy as np

Indices = np.ndarray[Any, np.dtype[np.int64]]
_SORTED_TOGETHER = 16  # windows sorted by length at a time: enough for little padding, few enough to stay random


@dataclass(frozen=True)
class Draw:
    """One sample of a batch, by its index in the dataset.

    One that is not `valid` doesn't count: it is a filler, which gives all processes the same number of micro-batches,
    or its image can't be read.
    """

    index: int
    valid: bool = True
    epoch: int | None = None  # None in evaluation, where a sample has its first caption


class DataOrder(Protocol):
    """The order in which a run takes its samples, known before any of them is read."""

    @property
    def global_batch(self) -> int:
        """Samples per optimizer update, over all processes."""

    @property
    def updates_per_epoch(self) -> int | None:
        """Optimizer updates per epoch; None where the number of samples is unknown."""

    def window(self, update: int, process: int) -> list[list[Draw]]:
        """The micro-batches that `process` contributes to optimizer update number `update`, counted from 0."""


@dataclass(frozen=True)
class ShuffledOrder:
    """A dataset of known size, reshuffled in each epoch.

    The samples of one update are a slice of `order(epoch)` that depends on the size of the global batch only. So runs
    on one or many processes, with large or small micro-batches, see the same data in the same order.
    """

    samples: Sized
    batch_size: int  # samples per micro-batch and process
    accumulation: int  # micro-batches per update
    processes: int
    seed: int
    lengths: tuple[int, ...] | None = None  # tokens of each sample's caption, to group samples by length; None: don't

    @property
    def global_batch(self) -> int:
        """Samples per optimizer update, over all processes."""
        return self.batch_size * self.accumulation * self.processes

    @property
    def updates_per_epoch(self) -> int:
        """Optimizer updates per epoch; the last may have fewer samples."""
        return -(-len(self.samples) // self.global_batch)

    def order(self, epoch: int) -> Indices:
        """The indices of all samples in the order of an epoch: (number of samples,) int64."""
        if self.lengths is None:
            return _order(len(self.samples), self.seed, epoch)
        return _order_by_length(len(self.samples), self.seed, epoch, self.lengths, self.global_batch)

    def window(self, update: int, process: int) -> list[list[Draw]]:
        """The micro-batches that `process` contributes to optimizer update number `update`, counted from 0.

        The epoch's last window may be short: it is divided evenly, and a process without a sample gets a filler.
        """
        epoch, position = divmod(update, self.updates_per_epoch)
        drawn = self.order(epoch)[position * self.global_batch :][: self.global_batch]
        if self.lengths is not None:  # similar lengths into the same micro-batch; the update's gradient stays the same
            drawn = drawn[np.argsort([-self.lengths[i] for i in drawn], kind="stable")]
        micro_batches = -(-len(drawn) // (self.batch_size * self.processes))
        shares = np.array_split(drawn, micro_batches * self.processes)[process :: self.processes]
        return [[Draw(int(i), epoch=epoch) for i in share] or [Draw(int(drawn[0]), valid=False)] for share in shares]


def deal(samples: int, batch_size: int, *, process: int, processes: int) -> list[Sequence[int]]:
    """The batches of one process when samples 0, 1, 2 ... are dealt to the processes in turn, like cards."""
    share = range(process, samples, processes)
    return [share[at : at + batch_size] for at in range(0, len(share), batch_size)]


@lru_cache(maxsize=2)
def _order(samples: int, seed: int, epoch: int) -> Indices:
    return np.random.default_rng((seed, epoch)).permutation(samples)


@lru_cache(maxsize=2)
def _order_by_length(samples: int, seed: int, epoch: int, lengths: tuple[int, ...], window: int) -> Indices:
    """`_order`, but with samples of similar length in the same window.

    Each stretch of `_SORTED_TOGETHER` windows is sorted by length, and its windows are then shuffled.
    """
    order = _order(samples, seed, epoch)
    rng = np.random.default_rng((seed, epoch, 1))
    windows: list[Indices] = []
    whole = samples - samples % window  # the samples of full windows; a short one stays at the end
    for at in range(0, whole, _SORTED_TOGETHER * window):
        stretch = order[at : min(at + _SORTED_TOGETHER * window, whole)]
        stretch = stretch[np.argsort(np.take(lengths, stretch), kind="stable")]
        cut = np.split(stretch, range(window, len(stretch), window))
        windows += [cut[i] for i in rng.permutation(len(cut))]
    return np.concatenate([*windows, order[whole:]])
