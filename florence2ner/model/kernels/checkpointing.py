"""Gradient checkpointing that keeps what is small and slow to recompute, and recomputes the rest."""

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint
from transformers import Florence2ForConditionalGeneration

_Function = Callable[[Tensor], Tensor]
_recomputed = partial(checkpoint, use_reentrant=False)


def checkpoint_gradients(model: Florence2ForConditionalGeneration) -> None:
    """Enable gradient checkpointing: trained layers recompute most of their activations in the backward pass.

    In the language model, the parts of each layer are recomputed one at a time: self-attention, cross-attention and the
    feed-forward network, each with the normalisation before it. All end with a linear layer, and that isn't computed
    again, as nothing needs its result; in exchange a part's input is kept. transformers recomputes whole layers. Of the
    vision tower, whole blocks are.
    """
    language = model.model.language_model
    for layer in (*language.encoder.layers, *language.decoder.layers):
        layer.forward = partial(_layer, layer, layer.forward)
    for stage in model.model.vision_tower.blocks:
        for block in stage:
            block.forward = partial(_block, block, block.forward)


def _layer(
    layer: Any,
    forward: Any,
    hidden: Tensor,
    attention_mask: Tensor | None = None,
    encoder_hidden_states: Tensor | None = None,
    encoder_attention_mask: Tensor | None = None,
    **options: Any,
) -> Tensor:
    """The forward pass of a layer of Bart's encoder or decoder (Lewis et al. 2019); `forward` is its own."""
    if not _is_training(layer):
        of_decoder = () if encoder_hidden_states is None else (encoder_hidden_states, encoder_attention_mask)
        whole: Tensor = forward(hidden, attention_mask, *of_decoder, **options)
        return whole

    def attend_own(hidden: Tensor) -> Tensor:
        attended: Tensor = layer.self_attn(hidden, attention_mask=attention_mask, **options)[0]
        return attended

    def attend_encoded(hidden: Tensor) -> Tensor:
        encoded = {"key_value_states": encoder_hidden_states, "attention_mask": encoder_attention_mask}
        attended: Tensor = layer.encoder_attn(hidden, **encoded, **options)[0]
        return attended

    def feed_forward(hidden: Tensor) -> Tensor:
        wide = nn.functional.dropout(layer.activation_fn(layer.fc1(hidden)), p=layer.activation_dropout)
        narrow: Tensor = layer.fc2(wide)
        return narrow

    parts: list[tuple[_Function, _Function]] = [(nn.Identity(), attend_own)]  # each with what is before it
    normalise = layer.self_attn_layer_norm
    if encoder_hidden_states is not None:
        parts.append((normalise, attend_encoded))
        normalise = layer.encoder_attn_layer_norm
    for before, compute in (*parts, (normalise, feed_forward)):
        hidden, change = _recomputed(_part, before, compute, hidden)
        hidden = hidden + nn.functional.dropout(change, p=layer.dropout)
    done: Tensor = layer.final_layer_norm(hidden)
    return done


def _part(before: _Function, compute: _Function, hidden: Tensor) -> tuple[Tensor, Tensor]:
    hidden = before(hidden)
    return hidden, compute(hidden)


def _block(block: nn.Module, forward: Any, *args: object) -> object:
    """The forward pass of a block of the vision tower; `forward` is its own."""
    return _recomputed(forward, *args) if _is_training(block) else forward(*args)


def _is_training(part: nn.Module) -> bool:
    trained = part.training and any(parameter.requires_grad for parameter in part.parameters())
    return trained and torch.is_grad_enabled()
