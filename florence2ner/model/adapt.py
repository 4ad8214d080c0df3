"""Prepares a model for training: which parts are frozen, and the dtype of the others."""

from dataclasses import dataclass

import torch
from torch import nn
from transformers import Florence2ForConditionalGeneration


@dataclass(frozen=True)
class ParameterCount:
    """Numbers of parameters; a tied one counts once."""

    trainable: int
    total: int

    def __str__(self) -> str:
        return f"{self.trainable:,} of {self.total:,} parameters ({self.trainable / self.total:.0%})"


def freeze(model: Florence2ForConditionalGeneration, *, vision: bool, language: bool, other: bool) -> None:
    """Freeze the vision tower, the language model with its head, and the rest (projector and position tables).

    This sets `requires_grad` only: `Captioner.train` keeps frozen parts in evaluation mode, as dropout and DropPath in
    a frozen part would only add noise.
    """
    inner = model.model
    for part, frozen in (
        (inner.vision_tower, vision),
        (inner.language_model, language),
        (model.lm_head, language),
        (inner.multi_modal_projector, other),
    ):
        part.requires_grad_(not frozen)


def count_parameters(model: nn.Module) -> ParameterCount:
    """The numbers of trainable and of all parameters."""
    parameters = list(model.parameters())  # which yields tied parameters once
    return ParameterCount(
        trainable=sum(p.numel() for p in parameters if p.requires_grad), total=sum(p.numel() for p in parameters)
    )


def tower_depths(tower: nn.Module) -> dict[nn.Parameter, int]:
    """Of each weight of a vision tower, how many blocks come after its own, by timm's rule for its DaViT.

    The downsampling in front of a stage belongs to the stage's first block, the stem stands alone.
    """
    from timm.models import group_parameters  # a slow import: only in training

    rule = {"stem": r"^convs\.0", "blocks": [(r"^convs\.(\d+)", (0,)), (r"^blocks\.(\d+)\.(\d+)", None)]}
    layers: dict[str, int] = group_parameters(tower, rule, reverse=True)
    last = max(layers.values())
    return {parameter: last - layers[name] for name, parameter in tower.named_parameters()}


def cast_trained(model: nn.Module, dtype: torch.dtype) -> None:
    """Cast the weights that are trained to `dtype`, in place: their gradients and the optimizer's state follow."""
    for parameter in model.parameters():
        if parameter.requires_grad:
            parameter.data = parameter.data.to(dtype)
