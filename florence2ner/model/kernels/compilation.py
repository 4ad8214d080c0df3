"""torch.compile for the vision tower and the language model's encoder."""

from collections.abc import Callable
from typing import Any

import torch
from torch import nn


def compile_parts(model: Any, device: torch.device) -> None:
    """Compile the vision tower and the language model's encoder in place; weights keep their names.

    Both are compiled again for each new batch size, as torch can't compile them for all sizes at once; only the tower
    on a CPU always gets a single image, if that has the size of Florence-2's. The decoder is left out: its input grows
    with every token that it writes, and it would be compiled over and over. `device` is where the model is. Freeze
    before: on a CPU the compiler takes frozen weights for constants, which gains the most.
    """
    parts: tuple[nn.Module, ...] = (model.model.vision_tower, model.model.language_model.encoder)
    for part in parts:
        part.compile(dynamic=False, options=_options(part, device))


def compiled_beside(part: nn.Module, device: torch.device) -> Callable[..., Any]:
    """A compiled function that computes what `part` does, which itself stays as it is. It is compiled when called."""
    compiled: Callable[..., Any] = torch.compile(part, dynamic=False, options=_options(part, device))
    return compiled


def _options(part: nn.Module, device: torch.device) -> dict[str, Any]:
    frozen = not any(parameter.requires_grad for parameter in part.parameters())
    return {"freezing": frozen and device.type == "cpu"}
