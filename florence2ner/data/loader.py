"""Samples -> batches of tensors, in an order that is a pure function of the seed and the epoch."""

import signal
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, fields, replace
from functools import lru_cache
from itertools import islice
from pathlib import Path
from typing import Any, Self

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence
from torch.utils.data import DataLoader, Dataset
from transformers import Florence2Processor

from florence2ner.data.images import MAX_PIXELS, ImageError, load_pixels
from florence2ner.data.samples import Sample

IGNORE_INDEX = -100  # labels that the loss passes over
FeatureSource = Callable[[Path], Tensor | None]  # what the vision tower made of an image, where that is known
_SORTED_TOGETHER = 16  # windows whose samples are sorted by length: enough for little padding, few enough to be random


@dataclass(frozen=True)
class Batch:
    """One micro-batch. A sample that must not count has only IGNORE_INDEX in its labels."""

    pixel_values: Tensor | None  # uint8 (P, 3, H, W), not yet normalised: of the rows without features; None if P is 0
    features: Tensor | None  # (F, ...), of the rows whose image was encoded before; None if F is 0
    encoded: tuple[bool, ...]  # (B,) which rows those are; P + F = B
    input_ids: Tensor  # (B, N): image placeholders, then the expanded task prompt
    attention_mask: Tensor | None  # (B, N); None where all prompts are of one length: kernels are faster without
    labels: Tensor | None  # (B, L): <s> caption </s>, padded with IGNORE_INDEX; None without captions
    label_positions: Tensor | None  # (T,) where labels count, in the flattened (B * L)
    indices: tuple[int, ...]  # (B,) positions of the samples in the dataset
    counted: tuple[bool, ...]  # (B,) False: a filler or an unreadable image
    failures: tuple[tuple[int, str], ...]  # index and reason of each image that could not be read
    sizes: tuple[tuple[int, int], ...]  # (B,) width and height of the files in pixels, upright

    def to(self, device: torch.device) -> Self:
        """The same batch with its tensors on `device`."""
        moved: dict[str, Any] = {
            field.name: value.to(device, non_blocking=True)
            for field in fields(self)
            if isinstance(value := getattr(self, field.name), Tensor)
        }
        return replace(self, **moved)

    def pin_memory(self) -> Self:
        """The same batch in page-locked memory, from where a GPU takes it without a wait. For the DataLoader."""
        pinned: dict[str, Any] = {
            field.name: value.pin_memory()
            for field in fields(self)
            if isinstance(value := getattr(self, field.name), Tensor)
        }
        return replace(self, **pinned)

    @property
    def label_tokens(self) -> int:
        """Number of tokens that the loss is taken over; asks no device."""
        return 0 if self.label_positions is None else self.label_positions.numel()


@dataclass(frozen=True)
class Window:
    """The micro-batches of one process that make one optimizer update (or one step of evaluation or captioning)."""

    batches: tuple[Batch, ...]
    epoch: int = 0


@dataclass(frozen=True)
class Draw:
    """Which sample a batch takes. `counted` False makes it a filler, drawn only to keep processes in step."""

    index: int
    counted: bool = True


@dataclass(frozen=True)
class TrainPlan:
    """Which samples each update of each process takes: a pure function of these numbers.

    The samples of one update are a slice of `order(epoch)` that depends on the global batch only, so runs on one or
    many processes, with large micro-batches or small, see the same data in the same order.
    """

    samples: int
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
        return -(-self.samples // self.global_batch)

    def order(self, epoch: int) -> np.ndarray[Any, np.dtype[np.int64]]:
        """The order in which an epoch takes the samples."""
        if self.lengths is None:
            return _order(self.samples, self.seed, epoch)
        return _order_by_length(self.samples, self.seed, epoch, self.lengths, self.global_batch)

    def window(self, update: int, process: int) -> list[list[Draw]]:
        """The micro-batches that `process` contributes to optimizer update number `update`, counted from 0.

        A short last window is dealt out evenly; a process left with nothing draws a filler that does not count.
        """
        epoch, position = divmod(update, self.updates_per_epoch)
        drawn = self.order(epoch)[position * self.global_batch :][: self.global_batch]
        if self.lengths is not None:  # the gradient of a window doesn't depend on the order inside
            drawn = drawn[np.argsort([-self.lengths[i] for i in drawn], kind="stable")]
        micro_batches = -(-len(drawn) // (self.batch_size * self.processes))
        shares = np.array_split(drawn, micro_batches * self.processes)[process :: self.processes]
        return [[Draw(int(i)) for i in share] or [Draw(int(drawn[0]), counted=False)] for share in shares]


@lru_cache(maxsize=2)
def _order(samples: int, seed: int, epoch: int) -> np.ndarray[Any, np.dtype[np.int64]]:
    return np.random.default_rng((seed, epoch)).permutation(samples)


@dataclass(frozen=True)
class Example:
    """A sample with its image decoded, or with what the vision tower made of it before."""

    draw: Draw
    pixels: Tensor | None = None  # uint8 (3, H, W)
    features: Tensor | None = None
    size: tuple[int, int] = (0, 0)  # width and height of the file in pixels, upright
    failure: str = ""  # why the image could not be read


@lru_cache(maxsize=2)
def _order_by_length(
    samples: int, seed: int, epoch: int, lengths: tuple[int, ...], window: int
) -> np.ndarray[Any, np.dtype[np.int64]]:
    """The order of an epoch with samples of like length in the same window: sorted in stretches, windows shuffled."""
    order = _order(samples, seed, epoch)
    rng = np.random.default_rng((seed, epoch, 1))
    windows: list[np.ndarray[Any, np.dtype[np.int64]]] = []
    whole = samples - samples % window  # a short last window stays the last
    for at in range(0, whole, _SORTED_TOGETHER * window):
        stretch = order[at : min(at + _SORTED_TOGETHER * window, whole)]
        stretch = stretch[np.argsort(np.take(lengths, stretch), kind="stable")]
        cut = np.split(stretch, range(window, len(stretch), window))
        windows += [cut[i] for i in rng.permutation(len(cut))]
    return np.concatenate([*windows, order[whole:]])


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


class Collator:
    """Puts decoded samples together: prompts as the processor expands them, captions as padded labels."""

    def __init__(self, samples: Sequence[Sample], processor: Florence2Processor) -> None:
        self.samples = samples
        self.processor = processor
        self.pad_token_id: int = processor.tokenizer.pad_token_id

    def __call__(self, examples: Sequence[Example]) -> Batch:
        draws = [example.draw for example in examples]
        samples = [self.samples[draw.index] for draw in draws]
        prompts = [expand_prompt(self.processor, sample.task_prompt) for sample in samples]
        mask = pad_sequence([torch.ones_like(ids) for ids in prompts], batch_first=True)
        labels = None
        if all(sample.caption is not None for sample in samples):
            ids = self.processor.tokenizer([sample.caption for sample in samples]).input_ids
            rows = [torch.tensor(row if draw.counted else [IGNORE_INDEX]) for row, draw in zip(ids, draws, strict=True)]
            labels = pad_sequence(rows, batch_first=True, padding_value=IGNORE_INDEX)
        return Batch(
            pixel_values=_stack([example.pixels for example in examples if example.pixels is not None]),
            features=_stack([example.features for example in examples if example.features is not None]),
            encoded=tuple(example.features is not None for example in examples),
            input_ids=pad_sequence(prompts, batch_first=True, padding_value=self.pad_token_id),
            attention_mask=mask if len({len(ids) for ids in prompts}) > 1 else None,
            labels=labels,
            label_positions=None if labels is None else (labels.flatten() != IGNORE_INDEX).nonzero()[:, 0],
            indices=tuple(draw.index for draw in draws),
            counted=tuple(draw.counted for draw in draws),
            failures=tuple((example.draw.index, example.failure) for example in examples if example.failure),
            sizes=tuple(example.size for example in examples),
        )


def _stack(tensors: Sequence[Tensor]) -> Tensor | None:
    return torch.stack(list(tensors)) if tensors else None


@lru_cache(maxsize=64)
def expand_prompt(processor: Florence2Processor, prompt: str) -> Tensor:
    """(N,) ids of a task prompt; the processor expands the task's words and the image's placeholders. Read only."""
    inputs = processor(images=Image.new("RGB", (8, 8)), text=prompt, return_tensors="pt")
    ids: Tensor = inputs.input_ids[0]
    return ids


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


def deal(samples: int, batch_size: int, *, process: int, processes: int) -> list[Sequence[int]]:
    """The batches of one process when samples 0, 1, 2 ... are dealt out to all processes in turn."""
    share = range(process, samples, processes)
    return [share[at : at + batch_size] for at in range(0, len(share), batch_size)]


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
