"""The order in which a stream of shards is read: a few lanes, each an endless sequence with a small position.

The global micro-batches of a run take from the lanes in turn. So the order depends on the number of lanes, but not on
how many processes and workers read them, and a resumed run knows where each lane was.
"""

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import astuple, dataclass
from itertools import count, islice

import numpy as np

from florence2ner.data.samples import Sample
from florence2ner.errors import UserError

BLOCK = 256  # successive samples of a lane that are shuffled together, in memory
_LANES = 4  # of a run, or a multiple
_SHARDS, _SAMPLES = 2**32, 2**32 + 1  # no lane and no epoch: what is shuffled

Unit = tuple[int, int, int]  # a shard by its number, and which of how many parts of it


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


@dataclass(frozen=True)
class Taken:
    """A sample that a lane gives, in which of its epochs, and where the lane is afterwards."""

    sample: Sample
    epoch: int
    position: Position


@dataclass(frozen=True)
class Lane:
    """One of `lanes` sequences that together have every sample of the shards once in each epoch.

    An epoch deals the shards, in another order each time, to the lanes in turn. With fewer shards than lanes, each is
    divided into parts: every second sample, every third, and so on. `read` gives the samples of the shard with a number
    from 0, the same each time; it is told whether the shard is read for the first time, by any lane.
    """

    shards: int  # their number
    number: int  # from 0
    lanes: int
    seed: int
    read: Callable[[int, bool], Iterable[Sample]]

    def units(self, epoch: int) -> list[Unit]:
        """What this lane reads in an epoch."""
        parts = -(-self.lanes // self.shards)
        order = np.random.default_rng((self.seed, _SHARDS, epoch)).permutation(self.shards * parts)
        mine = order[self.number :: self.lanes].tolist()
        return [(index // parts, index % parts, parts) for index in mine]

    def take(self, position: Position) -> Iterator[Taken]:
        """The samples from a position on, without end.

        Raises UserError where there are none in all of the shards.
        """
        place = (position.epoch, position.unit, position.read)
        source = self._in_order(*place)
        for block in count(position.block):
            start = place
            drawn = list(islice(source, BLOCK))
            place = drawn[-1][1:]
            order = np.random.default_rng((self.seed, _SAMPLES, self.number, block)).permutation(BLOCK)
            for taken in range(position.taken if block == position.block else 0, BLOCK):
                sample, epoch, *_ = drawn[order[taken]]
                yield Taken(sample, epoch, Position(*start, block, taken + 1))

    def _in_order(self, epoch: int, unit: int, read: int) -> Iterator[tuple[Sample, int, int, int]]:
        """The samples from a place on as they are in the shards, each with the place after it."""
        empty: set[Unit] = set()
        all_units = -(-self.lanes // self.shards) * self.shards
        for epoch_ in count(epoch):
            units = self.units(epoch_)
            for number in range(unit, len(units)):
                shard, part, parts = units[number]
                before = read
                for sample in islice(self.read(shard, epoch_ == part == 0), part + read * parts, None, parts):
                    read += 1
                    yield sample, epoch_, number, read
                if not read:
                    empty.add(units[number])
                elif read > before:
                    empty.clear()
                read = 0
            unit = 0
            if len(empty) == all_units:
                raise UserError(f"no image with a caption that can be used in {self.shards} shards")


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
