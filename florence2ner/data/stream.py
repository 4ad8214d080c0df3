"""Loads tar shards as an endless stream of batches, without a list of all samples."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import islice

import torch
from torch.utils.data import DataLoader, IterableDataset, get_worker_info
from transformers import Florence2Processor

from florence2ner.config.options import ReadingOptions, TooLong
from florence2ner.data.augment import Augmentation
from florence2ner.data.batch import Batch, Collator, Example, FromLane, Window
from florence2ner.data.captions import fit_captions
from florence2ner.data.duplicates import digest_of
from florence2ner.data.lanes import Lane, Position, StreamOrder, Taken
from florence2ner.data.loader import (
    NO_WORKERS,
    Workers,
    batches_of,
    image_size_of,
    leave_signals_to_the_main_process,
    load_at_once,
    load_example,
)
from florence2ner.data.order import Draw
from florence2ner.data.samples import Sample
from florence2ner.data.shards import Faults, labels, read_shard
from florence2ner.data.tags import CaptionRule
from florence2ner.errors import UserError


@dataclass(frozen=True)
class Shard:
    """A shard and how it is read."""

    path: str  # as `expand` gives it
    options: ReadingOptions
    weight: float = 1.0  # how often each epoch reads it, on average


@dataclass(frozen=True, kw_only=True)
class Stream:
    """The shards to train on, and what of them is left out or cut."""

    shards: tuple[Shard, ...]
    longest: int  # caption, in tokens
    too_long: TooLong = "skip"
    held_out: frozenset[bytes] = frozenset()  # digests of the images that are evaluated on: see `digest_of`


class StreamLoader:
    """Iterates over the windows of one process, from update `first` up to but not including `end`.

    Each batch says where its lane is afterwards. `positions` has that of every lane as update `first` begins.
    """

    def __init__(
        self,
        stream: Stream,
        processor: Florence2Processor,
        order: StreamOrder,
        *,
        process: int,
        first: int,
        end: int,
        positions: Sequence[Position],
        rule: CaptionRule,
        augmentation: Augmentation | None = None,
        workers: Workers = NO_WORKERS,
    ) -> None:
        depth = self._depth = order.accumulation
        self._windows = end - first
        batches = range(first * depth, end * depth)
        self._loader = DataLoader(
            _Batches(
                stream,
                processor,
                order,
                process=process,
                batches=batches,
                positions=positions,
                rule=rule,
                augmentation=augmentation,
            ),
            batch_size=None,  # they are batches already
            num_workers=workers.processes,
            prefetch_factor=(workers.prefetch or max(2, -(-depth // workers.processes))) if workers.processes else None,
            pin_memory=workers.pin_memory,
            generator=torch.Generator(),  # as in `TrainLoader`
            worker_init_fn=leave_signals_to_the_main_process,
        )

    def __iter__(self) -> Iterator[Window]:
        batches = self._batches()
        for _ in range(self._windows):
            yield Window(tuple(islice(batches, self._depth)))

    def _batches(self) -> Iterator[Batch]:
        """Raises UserError where the shards have no sample."""
        for batch in batches_of(self._loader):
            if isinstance(batch, UserError):
                raise batch
            yield batch


class _Batches(IterableDataset[Batch | UserError]):
    """The batches of one process; a DataLoader's worker makes only its own, in the order in which it is asked."""

    def __init__(
        self,
        stream: Stream,
        processor: Florence2Processor,
        order: StreamOrder,
        *,
        process: int,
        batches: range,
        positions: Sequence[Position],
        rule: CaptionRule,
        augmentation: Augmentation | None,
    ) -> None:
        self.stream = stream
        self.labels = labels([shard.path for shard in stream.shards])
        self.order = order
        self.process = process
        self.batches = batches
        self.positions = positions
        self.tokenizer = processor.tokenizer
        self.image_size = image_size_of(processor)
        self.augmentation = augmentation
        self.collate = Collator(processor, rule=rule)

    def __iter__(self) -> Iterator[Batch | UserError]:
        worker = get_worker_info()
        number, workers = (worker.id, worker.num_workers) if worker else (0, 1)
        faults = Faults()
        lanes: dict[int, Iterator[Taken]] = {}
        for batch in self.batches[number::workers]:
            lane = self.order.lane(batch, self.process)
            if lane not in lanes:
                lanes[lane] = self._lane(lane, faults)
            try:
                taken = list(islice(lanes[lane], self.order.batch_size))
            except UserError as error:
                # Given, not raised: a DataLoader would add the worker's traceback to the message.
                yield UserError(f"{error}; of the first: {'; '.join(self._why_empty(0)) or 'it has none'}")
                return
            yield replace(self._load(taken), origin=FromLane(lane, taken[-1].position.numbers(), faults.take()))

    def _lane(self, number: int, faults: Faults) -> Iterator[Taken]:
        def read(shard: int, first: bool) -> Iterator[Sample]:
            if first:
                yield from self._read(shard, faults)
                return
            again = Faults()  # what is always so was counted in the first pass; but a network may fail in any
            yield from self._read(shard, again)
            if again.is_torn:
                faults.add("times a shard could not be read to its end once more", self.stream.shards[shard].path)

        order = self.order
        weights = [shard.weight for shard in self.stream.shards]
        return Lane(weights, number, order.lanes, order.seed, read).take(self.positions[number])

    def _read(self, number: int, faults: Faults) -> Iterator[Sample]:
        """The samples of a shard that are trained on; the others are added to `faults`."""
        stream, shard = self.stream, self.stream.shards[number]
        for sample in read_shard(shard.path, shard.options, faults, label=self.labels[number]):
            if stream.held_out and digest_of(sample.image) in stream.held_out:
                faults.add("images are copies of some that are evaluated on, and are left out", str(sample.image))
                continue
            fitted = fit_captions([sample], self.tokenizer, stream.longest, stream.too_long, may_be_none=True)
            for what, count in (("left out", fitted.left_out), ("cut", fitted.cut)):
                if count:
                    faults.add(f"captions are longer than {stream.longest} tokens and are {what}", str(sample.image))
            yield from fitted.samples

    def _why_empty(self, number: int) -> list[str]:
        """Lines about what a shard has instead of samples that are trained on."""
        faults = Faults()
        for _ in self._read(number, faults):
            pass
        return faults.report()

    def _load(self, taken: Sequence[Taken]) -> Batch:
        def load(item: tuple[int, Taken]) -> Example:
            row, one = item
            return load_example(Draw(row, visit=one.visit), one.sample, self.image_size, self.augmentation)

        return self.collate(load_at_once(load, list(enumerate(taken))))
