"""torch.compile where it gains something."""

from typing import Any

import torch
from torch import nn


def compile_parts(model: Any, device: torch.device) -> None:
    """Have torch.compile speed up the vision tower and the language model's encoder; weights keep their names.

    For each batch size anew, but for the tower on a CPU: torch can't make one that serves all. The decoder meets a new
    length with every token that it writes, and would be compiled over and over. `device` is where the model is; it
    must be settled what is frozen: on a CPU the compiler takes frozen weights for constants, and gains most so.
    """
    parts: tuple[nn.Module, ...] = (model.model.vision_tower, model.model.language_model.encoder)
    for part in parts:
        frozen = not any(parameter.requires_grad for parameter in part.parameters())
        part.compile(dynamic=False, options={"freezing": frozen and device.type == "cpu"})
