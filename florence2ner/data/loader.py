"""Loads samples as windows of batches; DataLoader workers decode images ahead of the device where that helps."""

import atexit
import signal
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import partial
from itertools import islice
from multiprocessing import active_children
from multiprocessing.process import BaseProcess
from typing import Any, Self, TypeVar

import torch
from torch.utils.data import DataLoader, Dataset
from transformers import Florence2Processor

from florence2ner.config.options import MAX_PIXELS
from florence2ner.data.augment import Augmentation
from florence2ner.data.batch import AS_THEY_ARE, Collator, Example, FeatureSource, Window
from florence2ner.data.images import load_pixels
from florence2ner.data.order import Draw, ShuffledOrder
from florence2ner.data.pictures import ImageError
from florence2ner.data.samples import Sample
from florence2ner.data.tags import CaptionRule
from florence2ner.engine import launcher
from florence2ner.model.inputs import Features
from florence2ner.process import usable_cores

_MOST_AT_ONCE = 8  # images that one process decodes: a large one takes as many bytes as three times its pixels
Item = TypeVar("Item")


@dataclass(frozen=True)
class Workers:
    """The DataLoader workers of one training process."""

    processes: int = 0  # 0: images are decoded in the training process itself
    prefetch: int | None = None  # batches that each worker keeps ready; None: chosen by `_data_loader`
    pin_memory: bool = False  # whether batches are in page-locked memory

    @classmethod
    def for_device(
        cls, device: torch.device, *, processes: int | None, prefetch: int | None, pin_memory: bool | None
    ) -> Self:
        """The workers with the settings given; None is chosen for a process that computes on `device`.

        That is one worker per core that this process has a share in, at most 8, beside a GPU; and none beside a CPU,
        whose cores the model itself keeps busy.
        """
        cores = usable_cores() // launcher.local_processes()
        chosen = 0 if device.type == "cpu" else min(_MOST_AT_ONCE, max(1, cores))
        return cls(
            processes=chosen if processes is None else processes,
            prefetch=prefetch,
            pin_memory=device.type == "cuda" if pin_memory is None else pin_memory,
        )

    def for_share(self, batches: int) -> Self:
        """These workers, or fewer, for a process whose share of a work queue is so many batches.

        What they keep ready is taken from the queue, and no other process does it: at most half of the share, where
        that is not less than a batch for each worker; so that the processes end at about the same time.
        """
        if not self.processes:
            return self
        processes = min(self.processes, max(1, batches))
        return replace(self, processes=processes, prefetch=min(self.prefetch or 2, max(1, batches // (2 * processes))))


NO_WORKERS = Workers()


class TrainLoader:
    """Iterates over the windows of one process, from update `first` up to but not including `end`, across epochs.

    One DataLoader serves the whole run, so that workers don't restart and the device doesn't wait between epochs. A
    resumed run starts directly at its update: no image is decoded only to be skipped.
    """

    def __init__(
        self,
        samples: Sequence[Sample],
        processor: Florence2Processor,
        order: ShuffledOrder,
        *,
        process: int,
        first: int,
        end: int,
        workers: Workers = NO_WORKERS,
        features: FeatureSource | None = None,
        depth: int = 1,
        rule: CaptionRule = AS_THEY_ARE,
        augmentation: Augmentation | None = None,
    ) -> None:
        """`process` is this process's index; `depth` is the usual number of batches per window.

        `rule` says which caption a sample is trained on, `augmentation` how its image is varied. Varied images are
        not among the `features`: there may be one of both only.
        """
        assert not (features and augmentation)
        self.planned = _PlannedBatches(order, process, first, end)
        dataset = SampleDataset(samples, image_size_of(processor), features=features, augmentation=augmentation)
        self.loader = _data_loader(dataset, self.planned, processor, workers, depth=depth, rule=rule)

    def __iter__(self) -> Iterator[Window]:
        batches = batches_of(self.loader)
        for window in self.planned.windows():
            yield Window(tuple(islice(batches, len(window))))


class SequentialLoader:
    """Iterates over windows of one batch each: for evaluation, captioning and encoding.

    `batches` lists the indices of each batch's samples. It may be a generator, and is advanced only when the next batch
    is to be decoded. `text` False leaves out prompts and captions.
    """

    def __init__(
        self,
        samples: Sequence[Sample],
        processor: Florence2Processor,
        batches: Iterable[Sequence[int]],
        *,
        text: bool = True,
        workers: Workers = NO_WORKERS,
        max_pixels: int = MAX_PIXELS,
        features: FeatureSource | None = None,
    ) -> None:
        draws = ([Draw(index) for index in batch] for batch in batches)
        dataset = SampleDataset(samples, image_size_of(processor), max_pixels=max_pixels, features=features)
        self.loader = _data_loader(dataset, draws, processor if text else None, workers)

    def __iter__(self) -> Iterator[Window]:
        return (Window((batch,)) for batch in batches_of(self.loader))


class SampleDataset(Dataset[Example]):
    """Loads a sample's cached encoding, or else decodes its image to `image_size` (height, width).

    An image that can't be read becomes a black one that is not valid.
    """

    def __init__(
        self,
        samples: Sequence[Sample],
        image_size: tuple[int, int],
        *,
        max_pixels: int = MAX_PIXELS,
        features: FeatureSource | None = None,
        augmentation: Augmentation | None = None,
    ) -> None:
        self.samples = samples
        self.image_size = image_size
        self.max_pixels = max_pixels
        self.features = features
        self.augmentation = augmentation

    def __len__(self) -> int:
        return len(self.samples)

    def __getitems__(self, draws: Sequence[Draw]) -> list[Example]:
        """Load a whole batch; this is what a DataLoader calls."""
        return load_at_once(self.__getitem__, draws)

    def __getitem__(self, draw: Draw) -> Example:
        sample = self.samples[draw.index]
        if self.features and (encoded := self.features.load(sample.image.key)) is not None:
            return Example(draw, sample, encoded=encoded)
        return load_example(draw, sample, self.image_size, self.augmentation, max_pixels=self.max_pixels)


def load_at_once(load: Callable[[Item], Example], items: Sequence[Item]) -> list[Example]:
    """Load each item, several at once: decoding leaves other threads alone.

    As many as torch has threads in this process, none of which has anything to do meanwhile: one in a worker.
    """
    threads = min(torch.get_num_threads(), len(items), _MOST_AT_ONCE)
    if threads < 2:
        return [load(item) for item in items]
    with ThreadPoolExecutor(threads) as pool:
        return list(pool.map(load, items))


def load_example(
    draw: Draw,
    sample: Sample,
    size: tuple[int, int],
    augmentation: Augmentation | None = None,
    *,
    max_pixels: int = MAX_PIXELS,
) -> Example:
    """Decode a sample's image to `size` (height, width), varied by `augmentation`, but never for evaluation.

    One that can't be read becomes a black one, not valid.
    """
    try:
        if augmentation and draw.visit is not None:
            picture = augmentation.load(sample, draw.visit, size, max_pixels=max_pixels)
        else:
            picture = load_pixels(sample.image, size, max_pixels=max_pixels)
    except ImageError as error:
        blank = torch.zeros((3, *size), dtype=torch.uint8)
        return Example(Draw(draw.index, valid=False), sample, blank, failure=str(error))
    return Example(draw, sample, picture.pixels, size=picture.size)


@dataclass(frozen=True)
class _PlannedBatches:
    """The batch sampler of `TrainLoader`: the micro-batches of one process from update `first` up to `end`."""

    order: ShuffledOrder
    process: int
    first: int
    end: int

    def windows(self) -> Iterator[list[list[Draw]]]:
        """The same micro-batches, grouped by update."""
        return (self.order.window(update, self.process) for update in range(self.first, self.end))

    def __iter__(self) -> Iterator[list[Draw]]:
        for window in self.windows():
            yield from window


def image_size_of(processor: Florence2Processor) -> tuple[int, int]:
    """The (height, width) in pixels that a model takes."""
    size = processor.image_processor.size
    return size["height"], size["width"]


def _data_loader(
    dataset: SampleDataset,
    batch_sampler: Iterable[list[Draw]],
    processor: Florence2Processor | None,
    workers: Workers,
    *,
    depth: int = 1,
    rule: CaptionRule = AS_THEY_ARE,
) -> DataLoader[Any]:
    encoded_type = dataset.features.encoded_type if dataset.features else Features
    return DataLoader(
        dataset,
        batch_sampler=batch_sampler,
        collate_fn=Collator(processor, encoded_type, rule),
        num_workers=workers.processes,
        # `TrainLoader` collects a whole window before its first forward: have a whole one ready, or the device waits.
        prefetch_factor=(workers.prefetch or max(2, -(-depth // workers.processes))) if workers.processes else None,
        pin_memory=workers.pin_memory,
        # Without it, each new iterator draws from torch's global generator, which changes the dropout of resumed runs.
        generator=torch.Generator(),
        worker_init_fn=leave_signals_to_the_main_process,
    )


def batches_of(loader: DataLoader[Any]) -> Iterator[Any]:
    """The batches of a DataLoader, whose workers end with this process even where an exception holds on to them.

    They leave SIGTERM to the main process; but at its end, multiprocessing sends them just that, and waits for them.
    """
    before = set(active_children())
    batches = iter(loader)
    end = partial(_end, set(active_children()) - before)
    atexit.register(end)
    with suppress(GeneratorExit):  # a loop that ends early needs no more of them
        yield from batches
    atexit.unregister(end)


def _end(workers: Collection[BaseProcess]) -> None:
    if workers:
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)  # torch's handler would raise an error for each
    for worker in workers:
        worker.kill()


def leave_signals_to_the_main_process(worker: int) -> None:
    """Ignore SIGINT and SIGTERM in a worker: its images are still needed to finish the update.

    Ctrl-C and schedulers signal the workers too.
    """
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)
