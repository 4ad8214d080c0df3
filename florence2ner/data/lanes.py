"""The order in which a stream of shards is read: a few lanes, each an endless sequence with a small position.

The global micro-batches of a run take from the lanes in turn. So the order depends on the number of lanes, but not on
how many processes and workers read them, and a resumed run knows where each lane was.
"""

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import astuple, dataclass
from functools import cached_property
from itertools import count, islice
from typing import Any, NamedTuple

import numpy as np

from florence2ner.data.samples import Sample
from florence2ner.errors import UserError

Weights = np.ndarray[Any, np.dtype[np.float64]]
BLOCK = 256  # successive samples of a lane that are shuffled together, in memory
_LANES = 4  # of a run, or a multiple
_SHARDS, _SAMPLES, _TURNS = 2**32, 2**32 + 1, 2**32 + 2  # no lane and no epoch: what is shuffled


@dataclass(frozen=True)
class Position:
    """Where a lane is: where its current block begins, and how much of that was taken."""

    epoch: int = 0
    unit: int = 0  # of the lane's units in that epoch
    read: int = 0  # samples of that unit
    block: int = 0  # its number, over all epochs
    taken: int = 0  # samples of the block

    def numbers(self) -> list[int]:
        """The position as JSON holds it; `Position(*numbers)` is the same."""
        return list(astuple(self))


class Unit(NamedTuple):
    """What a lane reads before it goes on to something else: all of a shard, or every so many samples of it."""

    shard: int  # its number
    part: int  # the first of its samples
    parts: int  # and its distance from the next
    visit: int  # how often the run has read it before: the epoch, where its weight is 1


@dataclass(frozen=True)
class Taken:
    """A sample that a lane gives, how often it was given before, and where the lane is afterwards."""

    sample: Sample
    visit: int
    position: Position


@dataclass(frozen=True)
class Lane:
    """One of `lanes` sequences that together have every sample of the shards once in each epoch.

    An epoch deals the shards, in another order each time, to the lanes in turn. With fewer shards than lanes, each is
    divided into parts: every second sample, every third, and so on. `read` gives the samples of the shard with a number
    from 0, the same each time; it is told whether the shard is read for the first time, by any lane.

    The weight of a shard is how often an epoch reads it on average: with 3 each of its samples three times in every
    epoch, with 0.5 those of one half of such shards, or parts of them, in an epoch and the others in the next.
    """

    weights: Sequence[float]  # of each shard
    number: int  # from 0
    lanes: int
    seed: int
    read: Callable[[int, bool], Iterable[Sample]]

    def units(self, epoch: int) -> list[Unit]:
        """What this lane reads in an epoch."""
        parts = -(-self.lanes // len(self.weights))
        weights, turns = self._turns
        before, after = (np.floor(number * weights + turns).astype(np.int64) for number in (epoch, epoch + 1))
        indices = np.repeat(np.arange(len(weights)), after - before)
        visits = np.concatenate([np.arange(*ends) for ends in zip(before, after, strict=True)])
        order = np.random.default_rng((self.seed, _SHARDS, epoch)).permutation(len(indices))
        mine = order[(self.number - before.sum()) % self.lanes :: self.lanes]  # dealing goes on where it ended
        read = zip(indices[mine].tolist(), visits[mine].tolist(), strict=True)
        return [Unit(index // parts, index % parts, parts, visit) for index, visit in read]

    @cached_property
    def _turns(self) -> tuple[Weights, Weights]:
        """The weight of each part of each shard, and how much of its next visit it has as the run begins.

        Those of one weight have different shares of it, from 0 to 1, so that every epoch reads as many of them.
        """
        parts = -(-self.lanes // len(self.weights))
        weights = np.repeat(np.asarray(self.weights, dtype=np.float64), parts)
        turns = np.empty_like(weights)
        for weight in np.unique(weights):
            members = np.flatnonzero(weights == weight)
            turns[np.random.default_rng((self.seed, _TURNS)).permutation(members)] = (
                np.arange(len(members)) + 0.5
            ) / len(members)
        return weights, turns

    def take(self, position: Position) -> Iterator[Taken]:
        """The samples from a position on, without end.

        Raises UserError where there are none in all of the shards.
        """
        place = (position.epoch, position.unit, position.read)
        source = self._in_order(*place)
        for block in count(position.block):
            start = place
            drawn = list(islice(source, BLOCK))
            place = drawn[-1][2:]
            order = np.random.default_rng((self.seed, _SAMPLES, self.number, block)).permutation(BLOCK)
            for taken in range(position.taken if block == position.block else 0, BLOCK):
                sample, visit, *_ = drawn[order[taken]]
                yield Taken(sample, visit, Position(*start, block, taken + 1))

    def _in_order(self, epoch: int, unit: int, read: int) -> Iterator[tuple[Sample, int, int, int, int]]:
        """The samples from a place on as they are in the shards, each with its visit and the place after it."""
        empty: set[tuple[int, int]] = set()
        all_units = len(self._turns[0])
        for epoch_ in count(epoch):
            units = self.units(epoch_)
            for number in range(unit, len(units)):
                shard, part, parts, visit = units[number]
                before = read
                for sample in islice(self.read(shard, visit == part == 0), part + read * parts, None, parts):
                    read += 1
                    yield sample, visit, epoch_, number, read
                if not read:
                    empty.add((shard, part))
                elif read > before:
                    empty.clear()
                read = 0
            unit = 0
            if len(empty) == all_units:
                raise UserError(f"no image with a caption that can be used in {len(self.weights)} shards")


@dataclass(frozen=True, kw_only=True)
class StreamOrder:
    """The order of a run on a stream: its global micro-batch number g is of lane g modulo `lanes`."""

    batch_size: int  # samples per micro-batch and process
    accumulation: int  # micro-batches per update
    processes: int
    seed: int
    lanes: int

    @property
    def global_batch(self) -> int:
        """Samples per optimizer update, over all processes."""
        return self.batch_size * self.accumulation * self.processes

    @property
    def updates_per_epoch(self) -> None:
        """Nobody knows how many samples the shards have."""
        return None

    @property
    def epoch_size(self) -> None:
        """As `updates_per_epoch`, in samples."""
        return None

    def lane(self, batch: int, process: int) -> int:
        """The lane of the micro-batch number `batch` of a process, counted from the start of the run."""
        return (batch * self.processes + process) % self.lanes


def lanes_for(processes: int, workers: Sequence[int]) -> int:
    """The number of lanes for a new run; `workers` are those of each process.

    Each lane then belongs to one worker of one process. There are a few more than that needs, so that runs on up to
    four processes or workers have the same order, and one can go on as the other.
    """
    return math.lcm(_LANES, processes * math.lcm(*(max(1, number) for number in workers)))


def check_lanes(lanes: int, processes: int, workers: int) -> None:
    """Raise UserError where the lanes of a run can't be shared evenly by these processes with `workers` each."""
    if lanes % processes:
        fitting = ", ".join(str(number) for number in range(1, lanes + 1) if lanes % number == 0)
        raise UserError(
            f"the run reads its shards in {lanes} lanes, which {processes} processes can't share evenly: "
            f"go on with one of these numbers of processes: {fitting}"
        )
    if workers and (lanes // processes) % workers:
        share = lanes // processes
        fitting = ", ".join(str(number) for number in range(0, share + 1) if not number or share % number == 0)
        raise UserError(
            f"the run reads its shards in {lanes} lanes, {share} in each process, which {workers} workers can't share "
            f"evenly: go on with one of these dataloader_workers: {fitting}"
        )
