"""Which samples each update takes: a pure function of seed, epoch and global batch."""

from collections.abc import Sequence, Sized
from dataclasses import dataclass
from functools import cached_property
from itertools import islice
from typing import Any, Protocol

import numpy as np

Indices = np.ndarray[Any, np.dtype[np.int64]]
_NEVER = np.iinfo(np.int64).max
_IN_TURN = 2**32  # no epoch: for the order in which samples of one weight are taken
_SORTED_TOGETHER = 16  # windows sorted by length at a time: enough for little padding, few enough to stay random


@dataclass(frozen=True)
class Draw:
    """One sample of a batch, by its index in the dataset.

    One that is not `valid` doesn't count: it is a filler, which gives all processes the same number of micro-batches,
    or its image can't be read.
    """

    index: int
    valid: bool = True
    # How often the run has taken the sample before: the epoch, where each is taken once in each. None in evaluation.
    visit: int | None = None


class DataOrder(Protocol):
    """The order in which a run takes its samples: how many in an update, and in an epoch."""

    @property
    def global_batch(self) -> int:
        """Samples per optimizer update, over all processes."""

    @property
    def updates_per_epoch(self) -> int | None:
        """Optimizer updates per epoch; None where the number of samples is unknown."""

    @property
    def epoch_size(self) -> int | None:
        """Samples per epoch; one that is taken three times counts three times. None where that is unknown."""


@dataclass(frozen=True, eq=False)
class ShuffledOrder:
    """A dataset of known size, reshuffled in each epoch.

    The samples of one update are a slice of `order(epoch)` that depends on the size of the global batch only. So runs
    on one or many processes, with large or small micro-batches, see the same data in the same order.

    Samples of one weight are taken in turn, in an order that stays the same, as many in each epoch as their weight
    says: with weight 3 each of them three times an epoch, with 0.5 one half of them in an epoch and the other half in
    the next.
    """

    samples: Sized
    batch_size: int  # samples per micro-batch and process
    accumulation: int  # micro-batches per update
    processes: int
    seed: int
    lengths: Sequence[int] | None = None  # tokens of each sample's caption, to group samples by length; None: don't
    weights: Sequence[float] | None = None  # how often an epoch takes each sample, on average; None: once

    @property
    def global_batch(self) -> int:
        """Samples per optimizer update, over all processes."""
        return self.batch_size * self.accumulation * self.processes

    @cached_property
    def epoch_size(self) -> int:
        """How many samples an epoch takes; one that is taken three times counts three times."""
        return sum(number for _, number in self._shares)

    @property
    def updates_per_epoch(self) -> int:
        """Optimizer updates per epoch; the last may have fewer samples."""
        return -(-self.epoch_size // self.global_batch)

    def order(self, epoch: int) -> Indices:
        """The indices of the samples that an epoch takes, in their order: (epoch_size,) int64."""
        return self._epoch(epoch)[0]

    def used(self, updates: int) -> Indices:
        """The indices of all samples that the first `updates` updates take, each once, in the order of first use."""
        first_use = np.full(len(self.samples), _NEVER)
        left, taken, epoch = updates, 0, 0
        while left > 0 and first_use.max() == _NEVER:
            drawn = self.order(epoch)[: left * self.global_batch]
            np.minimum.at(first_use, drawn, np.arange(taken, taken + len(drawn)))
            taken, left, epoch = taken + len(drawn), left - self.updates_per_epoch, epoch + 1
        return np.argsort(first_use, kind="stable")[: (first_use < _NEVER).sum()]

    def window(self, update: int, process: int) -> list[list[Draw]]:
        """The micro-batches that `process` contributes to optimizer update number `update`, counted from 0.

        The epoch's last window may be short: it is divided evenly, and a process without a sample gets a filler.
        """
        epoch, position = divmod(update, self.updates_per_epoch)
        here = slice(position * self.global_batch, (position + 1) * self.global_batch)
        indices, visits = (part[here] for part in self._epoch(epoch))
        if self._lengths is not None:  # similar lengths into the same micro-batch; the update's gradient stays the same
            by_length = np.argsort(-self._lengths[indices], kind="stable")
            indices, visits = indices[by_length], visits[by_length]
        shares = -(-len(indices) // (self.batch_size * self.processes)) * self.processes
        mine = zip(np.array_split(indices, shares), np.array_split(visits, shares), strict=True)
        filler = [Draw(int(indices[0]), valid=False)]
        return [
            [Draw(int(index), visit=int(visit)) for index, visit in zip(*share, strict=True)] or filler
            for share in islice(mine, process, None, self.processes)
        ]

    @cached_property
    def _shares(self) -> list[tuple[Indices, int]]:
        """The indices of the samples of each weight, in the order in which they are taken, and how many an epoch takes.

        An epoch takes one at least, so that none of them is forgotten.
        """
        if self.weights is None:
            return [(np.arange(len(self.samples)), len(self.samples))]
        shares = []
        weights = np.asarray(self.weights)
        for weight in np.unique(weights):
            members = np.flatnonzero(weights == weight)
            if weight % 1:  # a part of them is left over: not always the last in the alphabet
                members = np.random.default_rng((self.seed, _IN_TURN)).permutation(members)
            shares.append((members, max(1, round(len(members) * float(weight)))))
        return shares

    @cached_property
    def _lengths(self) -> Indices | None:
        return None if self.lengths is None else np.asarray(self.lengths, dtype=np.int64)

    @cached_property
    def _epochs(self) -> dict[int, tuple[Indices, Indices]]:
        return {}

    def _epoch(self, epoch: int) -> tuple[Indices, Indices]:
        """The samples of an epoch in their order, and how often each was taken before: (epoch_size,) int64 each."""
        if epoch not in self._epochs:
            for old in list(self._epochs)[:-1]:  # workers that prefetch are an epoch ahead at most
                del self._epochs[old]
            if self.weights is None:  # without looking anything up, which takes as long again in ten million samples
                order = self._shuffle(self.epoch_size, epoch, self._lengths)
                self._epochs[epoch] = order, np.broadcast_to(epoch, self.epoch_size)
            else:
                indices, visits = self._taken(epoch)
                order = self._shuffle(len(indices), epoch, None if self._lengths is None else self._lengths[indices])
                self._epochs[epoch] = indices[order], visits[order]
        return self._epochs[epoch]

    def _taken(self, epoch: int) -> tuple[Indices, Indices]:
        """The samples of an epoch before they are shuffled, and how often each was taken before."""
        indices, visits = [], []
        for members, number in self._shares:
            places = np.arange(epoch * number, (epoch + 1) * number)
            indices.append(members[places % len(members)])
            visits.append(places // len(members))
        return np.concatenate(indices), np.concatenate(visits)

    def _shuffle(self, number: int, epoch: int, lengths: Indices | None) -> Indices:
        """The order of the `number` samples that an epoch takes, as their positions.

        Grouped by `lengths`, each stretch of `_SORTED_TOGETHER` windows is sorted by length, and its windows are then
        shuffled: samples of similar length are in the same window.
        """
        order = np.random.default_rng((self.seed, epoch)).permutation(number)
        if lengths is None:
            return order
        rng, window = np.random.default_rng((self.seed, epoch, 1)), self.global_batch
        windows: list[Indices] = []
        whole = number - number % window  # the samples of full windows; a short one stays at the end
        for at in range(0, whole, _SORTED_TOGETHER * window):
            stretch = order[at : min(at + _SORTED_TOGETHER * window, whole)]
            stretch = stretch[np.argsort(lengths[stretch], kind="stable")]
            cut = np.split(stretch, range(window, len(stretch), window))
            windows += [cut[i] for i in rng.permutation(len(cut))]
        return np.concatenate([*windows, order[whole:]])


def deal(samples: int, batch_size: int, *, process: int, processes: int) -> list[Sequence[int]]:
    """The batches of one process when samples 0, 1, 2 ... are dealt to the processes in turn, like cards."""
    share = range(process, samples, processes)
    return [share[at : at + batch_size] for at in range(0, len(share), batch_size)]
