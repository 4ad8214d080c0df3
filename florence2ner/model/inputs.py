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

    def rows(self, part: slice) -> Self:
        """The rows of a part of the batch; views of the same memory."""
        return self._map(lambda tensor: tensor[part])

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


def images_of_rows(images: Images, part: slice) -> Images:
    """The images in a part of a batch; views of the same memory."""
    if not isinstance(images, PartlyEncoded):
        return images.rows(part)
    before, chosen = images.is_encoded[: part.start], images.is_encoded[part]
    known, fresh = sum(chosen), len(chosen) - sum(chosen)  # so many rows, after those of the images before
    encoded = images.encoded.rows(slice(sum(before), sum(before) + known))
    pixels = images.pixels.rows(slice(len(before) - sum(before), len(before) - sum(before) + fresh))
    if known and fresh:
        return PartlyEncoded(pixels, encoded, chosen)
    return encoded if known else pixels


@dataclass(frozen=True)
class Text(Tensors):
    """The prompts of a batch, and its captions as labels. A sample that must not count has only IGNORE_INDEX."""

    input_ids: Tensor  # (B, N): image placeholders, then the expanded task prompt
    attention_mask: Tensor | None  # (B, N); None where all prompts have one length, as kernels are faster without it
    labels: Tensor  # (B, L): <s> caption </s>, padded with IGNORE_INDEX
    label_positions: Tensor  # (T,) indices into the flattened labels (B * L) of those that are not IGNORE_INDEX

    @classmethod
    def of(cls, input_ids: Tensor, attention_mask: Tensor | None, labels: Tensor) -> Self:
        """The text with these prompts and labels. The labels are looked at: on a GPU, they would be waited for."""
        positions = (labels.flatten() != IGNORE_INDEX).nonzero()[:, 0]
        return cls(input_ids, attention_mask, labels, positions)

    def rows(self, part: slice) -> Self:
        """The rows of a part of the batch."""
        mask = None if self.attention_mask is None else self.attention_mask[part]
        return self.of(self.input_ids[part], mask, self.labels[part])


IGNORE_INDEX = -100  # the label of positions without a loss
