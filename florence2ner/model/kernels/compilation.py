"""torch.compile for the vision tower and the language model's encoder."""

from typing import Any

import torch
from torch import nn


def compile_parts(model: Any, device: torch.device) -> None:
    """Compile the vision tower and the language model's encoder in place; weights keep their names.

    Both are compiled again for each new batch size, as torch can't compile them for all sizes at once; only the tower
    on a CPU always gets a single image. The decoder is left out: its input grows with every token that it writes, and
    it would be compiled over and over. `device` is where the model is. Freeze before: on a CPU the compiler takes
    frozen weights for constants, which gains the most.
    """
    parts: tuple[nn.Module, ...] = (model.model.vision_tower, model.model.language_model.encoder)
    for part in parts:
        frozen = not any(parameter.requires_grad for parameter in part.parameters())
        part.compile(dynamic=False, options={"freezing": frozen and device.type == "cpu"})
