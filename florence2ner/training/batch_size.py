"""The largest micro-batch that fits into memory, for `train_batch_size: auto`: found by trying."""

import heapq
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import replace
from typing import Self

import torch
from accelerate.utils import gather_object
from torch import nn

from florence2ner.config.commands import TrainConfig
from florence2ner.data.batch import Batch, Collator, FeatureSource
from florence2ner.data.captions import count_tokens
from florence2ner.data.loader import SampleDataset, image_size_of
from florence2ner.data.order import Draw
from florence2ner.data.samples import Sample
from florence2ner.engine import launcher
from florence2ner.engine.memory import Generators, Memory, unless_out_of_memory
from florence2ner.engine.run_files import TrainState
from florence2ner.engine.sharding import name_of_sharding
from florence2ner.errors import UserError
from florence2ner.model.captioner import Captioner
from florence2ner.model.inputs import Features
from florence2ner.optim.average import WeightAverage
from florence2ner.training.context import Context
from florence2ner.training.optimization import make_optimizer
from florence2ner.training.setup import TrainData
from florence2ner.training.step import LESS_MEMORY, token_losses

_GIGABYTE = 10**9
_FEW = 4  # images with which the memory of one more is measured
_CANDIDATES = 32  # captions with the most characters, of which one has the most tokens


def check_batch_size(context: Context) -> None:
    """Raise UserError where the largest micro-batch is asked for and can't be found."""
    config, accelerator = context.config, context.accelerator
    if config.train_batch_size != "auto":
        return
    if how := name_of_sharding(accelerator):
        raise UserError(f"train_batch_size: auto doesn't work under {how}, which shares out the memory: name a number")
    if not Memory.is_known(accelerator.device):
        raise UserError("train_batch_size: auto needs a CUDA GPU, or Linux: name a number")


def with_micro_batch(config: TrainConfig, images: int) -> TrainConfig:
    """The settings with at most `images` in a micro-batch, and as many in an update as before."""
    update = config.micro_batch * config.gradient_accumulation_steps
    size = max(size for size in _divisors(update) if size <= images)
    changes = {"train_batch_size": size, "gradient_accumulation_steps": update // size, "memory_limit_gb": None}
    return config.model_copy(update=changes)


def settle_batch_size(config: TrainConfig, state: TrainState) -> TrainConfig:
    """The settings of a run that is resumed: with the micro-batch that was found when it began."""
    if config.train_batch_size != "auto" or not state.micro_batch:
        return config
    return with_micro_batch(config, state.micro_batch)


def find_batch_size(
    context: Context,
    captioner: Captioner,
    data: TrainData,
    features: FeatureSource | None,
    saving: Callable[[], AbstractContextManager[None]],
) -> tuple[Context, TrainData]:
    """Find the largest micro-batch with which an update of the longest caption fits into the memory of every process.

    Leaves weights and random generators as they were. Returns what is given where a number is set. Every process must
    call this. Raises UserError where memory doesn't suffice for a single image, or captions aren't known.
    """
    config, accelerator = context.config, context.accelerator
    if config.train_batch_size != "auto":
        return context, data
    generators = Generators(accelerator.device)
    known = features if captioner.vision.is_offloaded else None  # where some image isn't, the tower is needed, too
    with Trial(context, captioner, _longest(data, captioner), known, saving) as trial:
        found, needed = trial.largest(_divisors(config.micro_batch * config.gradient_accumulation_steps))
    generators.restore()
    config = with_micro_batch(config, min(gather_object([found])))
    context.display.say(
        f"train_batch_size: {config.micro_batch}, as many as fit into memory ({needed / _GIGABYTE:.1f} of "
        f"{trial.memory.limit / _GIGABYTE:.1f} GB); gradient_accumulation_steps: {config.gradient_accumulation_steps}"
    )
    order = replace(data.order, batch_size=config.micro_batch, accumulation=config.gradient_accumulation_steps)
    return replace(context, config=config), replace(data, order=order)


def note_batch_size(config: TrainConfig, state: TrainState) -> None:
    """Keep in `state` what a micro-batch is. Where it is what it was, as many at once are taken as there was memory."""
    if state.micro_batch != config.micro_batch:
        state.micro_batch = state.images_at_once = config.micro_batch


class Trial:
    """A context manager in which updates are tried out, with all in memory that a run has there."""

    def __init__(
        self,
        context: Context,
        captioner: Captioner,
        sample: Sample,
        features: FeatureSource | None,
        saving: Callable[[], AbstractContextManager[None]],
    ) -> None:
        """Updates are of `sample`, as often as they have images. For `saving` see `UpdateStep`."""
        self._saving = saving
        self._context = context
        self._captioner = captioner
        config, device = context.config, context.accelerator.device
        limit = None if config.memory_limit_gb is None else int(config.memory_limit_gb * _GIGABYTE)
        self.memory = Memory(device, limit, shared_by=launcher.local_processes())
        dataset = SampleDataset([sample], image_size_of(captioner.processor), features=features)
        self._example = dataset[Draw(0)]
        self._collate = Collator(captioner.processor, features.encoded_type if features else Features)
        self._held: list[object] = []

    def __enter__(self) -> Self:
        self._captioner.train()
        if unless_out_of_memory(self._hold) is None:
            raise UserError(f"memory runs out with the optimizer: {LESS_MEMORY}")
        return self

    def __exit__(self, *_: object) -> None:
        self._held.clear()
        self._captioner.zero_grad()
        self._captioner.eval()

    def largest(self, sizes: list[int]) -> tuple[int, int]:
        """The largest of `sizes` (ascending, from 1) that fits, and the memory in bytes that it needs.

        All others are reckoned from two, as memory grows evenly, so that only those are tried which promise to fit.
        """
        one, few = sizes[0], next((size for size in sizes if size >= _FEW), sizes[-1])
        measured = {size: self._needed(size) for size in (one, few)}
        first, second = measured[one], measured[few]
        if first is None or first > self.memory.limit:
            raise UserError(f"memory doesn't suffice for a single image: {LESS_MEMORY}")

        def is_promising(size: int) -> bool:
            if second is None:
                return size < few
            return first + (second - first) / (few - one) * (size - one) <= self.memory.limit

        for size in reversed(sizes):
            if size not in measured and is_promising(size):
                measured[size] = self._needed(size)
            needed = measured.get(size)
            if needed is not None and needed <= self.memory.limit:
                return size, needed
        raise AssertionError("one image fits")

    def _needed(self, images: int) -> int | None:
        """The memory in bytes that an update needs with so many images at once; None where it isn't there."""
        self.memory.restart()
        done = unless_out_of_memory(lambda: self._update(self._collate([self._example] * images)))
        self._captioner.zero_grad()
        return self.memory.peak() if done else None

    def _update(self, batch: Batch) -> bool:
        accelerator = self._context.accelerator
        with self._captioner.trained_weights.held():
            with accelerator.autocast(), self._saving():
                losses = token_losses(self._captioner, batch.to(accelerator.device))
            accelerator.backward(losses.sum())
        return True

    def _hold(self) -> bool:
        """Put into memory what a run has there besides weights, gradients and activations."""
        config, trained = self._context.config, [p for p in self._captioner.parameters() if p.requires_grad]
        if self._context.accelerator.num_processes > 1:
            self._held.append([torch.zeros_like(parameter) for parameter in trained])  # DDP's copy of the gradients
        if config.ema_decay is not None:
            self._held.append(WeightAverage(self._captioner.named_parameters(), config.ema_decay))
        self._held.append(self._stepped_optimizer(trained))
        return True

    def _stepped_optimizer(self, trained: list[nn.Parameter]) -> torch.optim.Optimizer:
        """An optimizer with the state that it makes in its first step; the weights are put back afterwards."""
        weights = [parameter.detach().to("cpu", copy=True) for parameter in trained]
        optimizer = make_optimizer(self._context.config, self._captioner)
        if hasattr(optimizer, "train"):  # schedule-free
            optimizer.train()
        for parameter in trained:
            parameter.grad = torch.zeros_like(parameter)
        optimizer.step()
        with torch.no_grad():
            for parameter, weight in zip(trained, weights, strict=True):
                parameter.copy_(weight)
        return optimizer


def _longest(data: TrainData, captioner: Captioner) -> Sample:
    """The sample with the longest caption that is trained on, or where nobody knows these, that is held out."""
    samples = data.split.train or data.split.eval
    if not samples:
        raise UserError("train_batch_size: auto needs captions that are known before: name a number, or an --eval-path")
    captions = ((len(caption), number, caption) for number, s in enumerate(samples) for caption in s.captions)
    longest = [(number, caption) for _, number, caption in heapq.nlargest(_CANDIDATES, captions)]
    tokens = count_tokens([caption for _, caption in longest], captioner.processor.tokenizer)
    number, caption = longest[tokens.index(max(tokens))]
    return replace(samples[number], captions=(caption,))


def _divisors(number: int) -> list[int]:
    return [size for size in range(1, number + 1) if number % size == 0]
