"""Samples -> windows of batches, decoded ahead of the device by processes of their own where that helps."""

import os
import signal
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Any, Self

import torch
from torch.utils.data import DataLoader, Dataset
from transformers import Florence2Processor

from florence2ner.config.options import MAX_PIXELS
from florence2ner.data.batch import Collator, Example, FeatureSource, Window
from florence2ner.data.images import ImageError, load_pixels
from florence2ner.data.order import DataOrder, Draw
from florence2ner.data.samples import Sample
from florence2ner.engine import launcher
from florence2ner.model.inputs import Features


@dataclass(frozen=True)
class Workers:
    """Who decodes images ahead of the device, and where to."""

    processes: int = 0
    prefetch: int | None = None  # batches that each of them keeps ready; None: as many as the loader needs
    pin_memory: bool = False

    @classmethod
    def for_device(
        cls, device: torch.device, *, processes: int | None, prefetch: int | None, pin_memory: bool | None
    ) -> Self:
        """What is asked for; None is chosen for a process that computes on `device`: a share of the machine's cores.

        A CPU is busy with the model itself: decoding in between costs the least.
        """
        cores = (os.cpu_count() or 1) // launcher.local_processes()
        chosen = 0 if device.type == "cpu" else min(8, max(1, cores))
        return cls(
            processes=chosen if processes is None else processes,
            prefetch=prefetch,
            pin_memory=device.type == "cuda" if pin_memory is None else pin_memory,
        )


NO_WORKERS = Workers()


class TrainLoader:
    """The windows of one process, from update `first` up to `end`, over as many epochs as that takes.

    One DataLoader serves the whole run: no worker restarts and no gap between epochs. A resumed run starts at its
    update; nothing is decoded to be thrown away.
    """

    def __init__(
        self,
        samples: Sequence[Sample],
        processor: Florence2Processor,
        order: DataOrder,
        *,
        process: int,
        first: int,
        end: int,
        workers: Workers = NO_WORKERS,
        features: FeatureSource | None = None,
        depth: int = 1,
    ) -> None:
        """`depth` is the number of batches that a window usually has."""
        self.planned = _PlannedBatches(order, process, first, end)
        dataset = SampleDataset(samples, _image_size(processor), features=features)
        self.loader = _data_loader(dataset, self.planned, processor, workers, depth=depth)

    def __iter__(self) -> Iterator[Window]:
        batches = iter(self.loader)
        for window in self.planned.windows():
            yield Window(tuple(islice(batches, len(window))))


class SequentialLoader:
    """One batch of samples per window, as `batches` lists them: for evaluation, captioning and encoding.

    `batches` may be a generator: it is asked for the next one when that is to be decoded. `text` False leaves out
    prompts and captions.
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
        dataset = SampleDataset(samples, _image_size(processor), max_pixels=max_pixels, features=features)
        self.loader = _data_loader(dataset, draws, processor if text else None, workers)

    def __iter__(self) -> Iterator[Window]:
        return (Window((batch,)) for batch in self.loader)


class SampleDataset(Dataset[Example]):
    """Decodes the image of a sample to `image_size` (height, width). An unreadable one becomes a blank picture that
    does not count."""

    def __init__(
        self,
        samples: Sequence[Sample],
        image_size: tuple[int, int],
        *,
        max_pixels: int = MAX_PIXELS,
        features: FeatureSource | None = None,
    ) -> None:
        self.samples = samples
        self.image_size = image_size
        self.max_pixels = max_pixels
        self.features = features

    def __len__(self) -> int:
        return len(self.samples)

    def __getitem__(self, draw: Draw) -> Example:
        image = self.samples[draw.index].image
        if self.features and (encoded := self.features.load(image.key)) is not None:
            return Example(draw, encoded=encoded)
        try:
            picture = load_pixels(image, self.image_size, max_pixels=self.max_pixels)
        except ImageError as error:
            blank = torch.zeros((3, *self.image_size), dtype=torch.uint8)
            return Example(Draw(draw.index, valid=False), blank, failure=str(error))
        return Example(draw, picture.pixels, size=picture.size)


@dataclass(frozen=True)
class _PlannedBatches:
    """The micro-batches of one process from update `first` up to `end`: a DataLoader's batch sampler."""

    order: DataOrder
    process: int
    first: int
    end: int

    def windows(self) -> Iterator[list[list[Draw]]]:
        """The micro-batches of one update after the other."""
        return (self.order.window(update, self.process) for update in range(self.first, self.end))

    def __iter__(self) -> Iterator[list[Draw]]:
        for window in self.windows():
            yield from window


def _image_size(processor: Florence2Processor) -> tuple[int, int]:
    size = processor.image_processor.size
    return size["height"], size["width"]


def _data_loader(
    dataset: SampleDataset,
    batch_sampler: Iterable[list[Draw]],
    processor: Florence2Processor | None,
    workers: Workers,
    *,
    depth: int = 1,
) -> DataLoader[Any]:
    encoded_type = dataset.features.encoded_type if dataset.features else Features
    return DataLoader(
        dataset,
        batch_sampler=batch_sampler,
        collate_fn=Collator(dataset.samples, processor, encoded_type),
        num_workers=workers.processes,
        # A window is taken whole before its first forward: keep one ready, or the device waits for it.
        prefetch_factor=(workers.prefetch or max(2, -(-depth // workers.processes))) if workers.processes else None,
        pin_memory=workers.pin_memory,
        # Its own, or each new iterator would draw a seed from the global one and a resumed run would part ways.
        generator=torch.Generator(),
        worker_init_fn=_leave_signals_to_the_main_process,
    )


def _leave_signals_to_the_main_process(worker: int) -> None:
    """Ctrl-C and schedulers signal the workers too; the images that they decode are needed to finish the update."""
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)
