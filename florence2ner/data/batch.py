"""Samples put together: a batch of tensors, and the window of batches that makes one update."""

from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from functools import lru_cache
from typing import Any, Self

import torch
from PIL import Image
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence
from transformers import Florence2Processor

from florence2ner.data.order import Draw
from florence2ner.data.samples import Sample

IGNORE_INDEX = -100  # labels that the loss passes over


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
class Example:
    """A sample with its image decoded, or with what the vision tower made of it before."""

    draw: Draw
    pixels: Tensor | None = None  # uint8 (3, H, W)
    features: Tensor | None = None
    size: tuple[int, int] = (0, 0)  # width and height of the file in pixels, upright
    failure: str = ""  # why the image could not be read


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
