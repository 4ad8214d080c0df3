"""Samples -> batches of tensors, in an order that is a pure function of the seed and the epoch."""

import os
import signal
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from torch import Tensor
from torch.utils.data import DataLoader, Dataset
from transformers import Florence2Processor

from florence2ner.config.options import ModelOptions
from florence2ner.data.batch import Collator, Example, Window
from florence2ner.data.images import MAX_PIXELS, ImageError, load_pixels
from florence2ner.data.order import Draw, TrainPlan
from florence2ner.data.samples import Sample

FeatureSource = Callable[[Path], Tensor | None]  # what the vision tower made of an image, where that is known


class SampleDataset(Dataset[Example]):
    """Decodes the image of a sample. An unreadable one becomes a blank picture that does not count."""

    def __init__(
        self, samples: Sequence[Sample], image_size: tuple[int, int], max_pixels: int, features: FeatureSource | None
    ) -> None:
        self.samples = samples
        self.image_size = image_size
        self.max_pixels = max_pixels
        self.features = features

    def __len__(self) -> int:
        return len(self.samples)

    def __getitem__(self, draw: Draw) -> Example:
        image = self.samples[draw.index].image
        if self.features is not None and (features := self.features(image)) is not None:
            return Example(draw, features=features)
        try:
            picture = load_pixels(image, self.image_size, max_pixels=self.max_pixels)
        except ImageError as error:
            blank = torch.zeros((3, *self.image_size), dtype=torch.uint8)
            return Example(Draw(draw.index, counted=False), blank, failure=str(error))
        return Example(draw, picture.pixels, size=picture.size)


@dataclass(frozen=True)
class _PlannedBatches:
    """The micro-batches of one process from update `first` up to `end`: a DataLoader's batch sampler."""

    plan: TrainPlan
    process: int
    first: int
    end: int

    def __iter__(self) -> Iterator[list[Draw]]:
        for update in range(self.first, self.end):
            yield from self.plan.window(update, self.process)


@dataclass(frozen=True)
class Workers:
    """Who decodes images ahead of the device, and where to."""

    processes: int = 0
    prefetch: int | None = None  # batches that each of them keeps ready; None: as many as the loader needs
    pin_memory: bool = False


_NO_WORKERS = Workers()


class TrainLoader:
    """The windows of one process, from update `first` up to `end`, over as many epochs as that takes.

    One DataLoader serves the whole run: no worker restarts and no gap between epochs. A resumed run starts at its
    update; nothing is decoded to be thrown away.
    """

    def __init__(
        self,
        samples: Sequence[Sample],
        processor: Florence2Processor,
        plan: TrainPlan,
        *,
        process: int,
        first: int,
        end: int,
        workers: Workers = _NO_WORKERS,
        features: FeatureSource | None = None,
    ) -> None:
        self.planned = _PlannedBatches(plan, process, first, end)
        self.loader = _data_loader(
            samples, processor, self.planned, workers, depth=plan.accumulation, features=features
        )

    def __iter__(self) -> Iterator[Window]:
        batches = iter(self.loader)
        plan, process = self.planned.plan, self.planned.process
        for update in range(self.planned.first, self.planned.end):
            micro_batches = len(plan.window(update, process))
            yield Window(tuple(islice(batches, micro_batches)), epoch=update // plan.updates_per_epoch)


class SequentialLoader:
    """One batch of samples per window, as `batches` lists them: for evaluation and captioning.

    `batches` may be a generator: it is asked for the next one when that is to be decoded.
    """

    def __init__(
        self,
        samples: Sequence[Sample],
        processor: Florence2Processor,
        batches: Iterable[Sequence[int]],
        *,
        workers: Workers = _NO_WORKERS,
        max_pixels: int = MAX_PIXELS,
        features: FeatureSource | None = None,
    ) -> None:
        draws = ([Draw(index) for index in batch] for batch in batches)
        self.loader = _data_loader(samples, processor, draws, workers, max_pixels=max_pixels, features=features)

    def __iter__(self) -> Iterator[Window]:
        return (Window((batch,)) for batch in self.loader)


def _data_loader(
    samples: Sequence[Sample],
    processor: Florence2Processor,
    batch_sampler: Iterable[list[Draw]],
    workers: Workers,
    *,
    depth: int = 1,
    max_pixels: int = MAX_PIXELS,
    features: FeatureSource | None = None,
) -> DataLoader[Any]:
    height, width = processor.image_processor.size["height"], processor.image_processor.size["width"]
    return DataLoader(
        SampleDataset(samples, (height, width), max_pixels, features),
        batch_sampler=batch_sampler,
        collate_fn=Collator(samples, processor),
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


def resolve_workers(accelerator: Accelerator, config: ModelOptions) -> Workers:
    """Decoding processes beside this process: what `config` asks for, or a share of the machine's cores."""
    on_gpu = accelerator.device.type == "cuda"
    asked = config.dataloader_workers
    return Workers(
        processes=_share_of_cores(accelerator) if asked is None else asked,
        prefetch=config.dataloader_prefetch,
        pin_memory=on_gpu if config.pin_memory is None else config.pin_memory,
    )


def _share_of_cores(accelerator: Accelerator) -> int:
    if accelerator.device.type == "cpu":  # the model itself keeps them busy: decoding in between costs the least
        return 0
    processes_here = int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
    return min(8, max(1, (os.cpu_count() or 1) // processes_here))
