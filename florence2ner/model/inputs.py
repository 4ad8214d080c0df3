"""The inputs of a model, each of which moves to a device as one: images (as pixels or encoded) and text."""

from collections.abc import Callable
from dataclasses import dataclass, fields, replace
from typing import Any, Self

import torch
from torch import Tensor


@dataclass(frozen=True)
class Tensors:
    """Base of dataclasses whose fields are tensors, other `Tensors` or plain values."""

    def to(self, device: torch.device) -> Self:
        """A copy with every tensor on `device`."""
        return self._map(lambda tensor: tensor.to(device, non_blocking=True))

    def pin_memory(self) -> Self:
        """A copy in page-locked memory, from which copies to a GPU are asynchronous. Called by the DataLoader."""
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
    """Decoded images, resized but not normalised."""

    values: Tensor  # uint8 (B, 3, H, W)


@dataclass(frozen=True)
class Features(Tensors):
    """The vision tower's output, kept where the projector that follows is trained and can't be applied in advance."""

    values: Tensor  # (B, C, h, w)


@dataclass(frozen=True)
class Embeddings(Tensors):
    """The projector's output: the image embeddings that the language model reads."""

    values: Tensor  # (B, N, d_model), N embeddings per image


Encoded = Features | Embeddings


@dataclass(frozen=True)
class PartlyEncoded(Tensors):
    """A batch in which some images come from the feature cache and the others as pixels: B = P + E."""

    pixels: Pixels  # P rows, in the order of the batch
    encoded: Encoded  # E rows, in the order of the batch
    is_encoded: tuple[bool, ...]  # (B,) which of the two each image is in


Images = Pixels | Features | Embeddings | PartlyEncoded


@dataclass(frozen=True)
class Text(Tensors):
    """The prompts of a batch, and its captions as labels. A sample that must not count has only IGNORE_INDEX."""

    input_ids: Tensor  # (B, N): image placeholders, then the expanded task prompt
    attention_mask: Tensor | None  # (B, N); None where all prompts have one length, as kernels are faster without it
    labels: Tensor  # (B, L): <s> caption </s>, padded with IGNORE_INDEX
    label_positions: Tensor  # (T,) indices into the flattened labels (B * L) of those that are not IGNORE_INDEX


IGNORE_INDEX = -100  # the label of positions without a loss
