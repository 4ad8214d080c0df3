"""What of the model is trained, and what its backward pass keeps in memory."""

from dataclasses import dataclass

from torch import nn
from torch.utils.checkpoint import checkpoint
from transformers import Florence2ForConditionalGeneration


@dataclass(frozen=True)
class ParameterCount:
    """Numbers of parameters, each counted once however many names it has."""

    trainable: int
    total: int

    def __str__(self) -> str:
        return f"{self.trainable:,} of {self.total:,} parameters ({self.trainable / self.total:.0%})"


def freeze(model: Florence2ForConditionalGeneration, *, vision: bool, language: bool, other: bool) -> None:
    """Freeze the vision tower, the language model with its head, and the rest (projector and position tables).

    A frozen part takes no gradient; `Captioner` keeps it in evaluation mode, since DropPath in a frozen tower would be
    noise.
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
    """What is trained of a model, and what there is."""
    parameters = list(model.parameters())  # tied ones once
    return ParameterCount(
        trainable=sum(p.numel() for p in parameters if p.requires_grad), total=sum(p.numel() for p in parameters)
    )


def checkpoint_gradients(model: Florence2ForConditionalGeneration) -> None:
    """Recompute the activations of every trained layer in the backward pass instead of keeping them.

    transformers wraps the layers of the language model only; the blocks of the vision tower are wrapped here.
    """
    model.activation_checkpointing_enable(activation_checkpointing_kwargs={"use_reentrant": False})
    for stage in model.model.vision_tower.blocks:
        for block in stage:
            _recompute(block)


def _recompute(block: nn.Module) -> None:
    """Have `block` recompute its forward while it trains. Its parameters keep their names."""
    forward = block.forward

    def recomputed(*args: object) -> object:
        if block.training and any(parameter.requires_grad for parameter in block.parameters()):
            return checkpoint(forward, *args, use_reentrant=False)
        return forward(*args)

    block.forward = recomputed
