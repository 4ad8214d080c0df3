"""What a model is given: images, in whichever form they are known, and text. All of it tensors that move as one."""

from collections.abc import Callable
from dataclasses import dataclass, fields, replace
from typing import Any, Self

import torch
from torch import Tensor


@dataclass(frozen=True)
class Tensors:
    """Base of dataclasses that hold tensors, or others like themselves, beside plain facts."""

    def to(self, device: torch.device) -> Self:
        """The same with every tensor on `device`."""
        return self._map(lambda tensor: tensor.to(device, non_blocking=True))

    def pin_memory(self) -> Self:
        """The same in page-locked memory, from where a GPU takes it without a wait. For the DataLoader."""
        return self._map(Tensor.pin_memory)

    def _map(self, change: Callable[[Tensor], Tensor]) -> Self:
        changed: dict[str, Any] = {}
        for field in fields(self):
            value = getattr(self, field.name)
            if isinstance(value, Tensor):
                changed[field.name] = change(value)
            elif isinstance(value, Tensors):
                changed[field.name] = value._map(change)
        return replace(self, **changed)


@dataclass(frozen=True)
class Pixels(Tensors):
    """Decoded images, not yet normalised."""

    values: Tensor  # uint8 (B, 3, H, W)


@dataclass(frozen=True)
class Features(Tensors):
    """What the vision tower makes of images; the projector comes next, and may be in training."""

    values: Tensor  # (B, C, h, w)


@dataclass(frozen=True)
class Embeddings(Tensors):
    """What the language model reads of images."""

    values: Tensor  # (B, N, d_model)


Encoded = Features | Embeddings


@dataclass(frozen=True)
class PartlyEncoded(Tensors):
    """A batch of which some rows were encoded before and the others are pixels: B = P + E."""

    pixels: Pixels  # P rows
    encoded: Encoded  # E rows
    is_encoded: tuple[bool, ...]  # (B,)


Images = Pixels | Features | Embeddings | PartlyEncoded


@dataclass(frozen=True)
class Text(Tensors):
    """The prompts of a batch and the captions to be learnt; a sample that must not count has only IGNORE_INDEX."""

    input_ids: Tensor  # (B, N): image placeholders, then the expanded task prompt
    attention_mask: Tensor | None  # (B, N); None where all prompts are of one length: kernels are faster without
    labels: Tensor  # (B, L): <s> caption </s>, padded with IGNORE_INDEX
    label_positions: Tensor  # (T,) where labels count, in the flattened (B * L)


IGNORE_INDEX = -100  # labels that the loss passes over
