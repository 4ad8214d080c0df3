"""Gradient checkpointing that keeps what is small and slow to recompute, and recomputes the rest."""

from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint
from transformers import Florence2ForConditionalGeneration

_recomputed = partial(checkpoint, use_reentrant=False)


def checkpoint_gradients(model: Florence2ForConditionalGeneration) -> None:
    """Enable gradient checkpointing: trained layers recompute most of their activations in the backward pass.

    In the language model, of each layer two parts are recomputed, one at a time: self-attention, and the feed-forward
    network with the normalisation before it. Both end with a linear layer, and that isn't computed again, as nothing
    needs its result; nor is the decoder's cross-attention, whose keys and values are those of a whole image. With whole
    layers, as transformers has it, an update takes 1.12 times as long. Of the vision tower, whole blocks are.
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
    drop = partial(nn.functional.dropout, p=layer.dropout)
    attended, _ = _recomputed(layer.self_attn, hidden, attention_mask=attention_mask, **options)
    hidden, normalise = hidden + drop(attended), layer.self_attn_layer_norm
    if encoder_hidden_states is not None:
        hidden = normalise(hidden)
        attended, _ = layer.encoder_attn(
            hidden, key_value_states=encoder_hidden_states, attention_mask=encoder_attention_mask, **options
        )
        hidden, normalise = hidden + drop(attended), layer.encoder_attn_layer_norm

    def feed_forward(hidden: Tensor) -> tuple[Tensor, Tensor]:
        hidden = normalise(hidden)
        wide = nn.functional.dropout(layer.activation_fn(layer.fc1(hidden)), p=layer.activation_dropout)
        return hidden, layer.fc2(wide)

    hidden, narrow = _recomputed(feed_forward, hidden)
    done: Tensor = layer.final_layer_norm(hidden + drop(narrow))
    return done


def _block(block: nn.Module, forward: Any, *args: object) -> object:
    """The forward pass of a block of the vision tower; `forward` is its own."""
    return _recomputed(forward, *args) if _is_training(block) else forward(*args)


def _is_training(part: nn.Module) -> bool:
    trained = part.training and any(parameter.requires_grad for parameter in part.parameters())
    return trained and torch.is_grad_enabled()
