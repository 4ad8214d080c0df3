"""Attention for three cases that torch's fused kernels can't compute or waste memory on; torch does the rest.

The three: the vision tower's channel attention, whose head dimension, the number of positions in the feature map, is
too large for a fused kernel; attention dropout on CPUs, which no fused kernel supports; and the cross-attention of beam
search, where all beams of an image attend to the same keys and values.
"""

from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd import Function
from transformers import AttentionInterface, AttentionMaskInterface, Florence2ForConditionalGeneration
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import causal_mask_function
from transformers.models.florence2.modeling_florence2 import Florence2VisionChannelAttention

from florence2ner.model.kernels.dropout import draw_kept, draw_seed, drop_, share_kept

NAME = "florence2ner"


def use_fast_attention(model: Florence2ForConditionalGeneration) -> None:
    """Replace the attention of `model` by `attend`, by the implementation that it was loaded with.

    With "sdpa" all of it is replaced. With "flash_attention_2", which can't do channel attention, only the vision
    tower's is. With "eager" nothing is.
    """
    AttentionInterface.register(NAME, attend)
    AttentionMaskInterface.register(NAME, _mask)
    asked = model.config.text_config._attn_implementation
    if asked != "eager":
        model.set_attn_implementation({"vision_config": NAME, "text_config": NAME if asked == "sdpa" else asked})


def attend(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    dropout: float = 0.0,
    scaling: float | None = None,
    **options: Any,
) -> tuple[Tensor, None]:
    """transformers' attention interface: query (B, H, L, D), key and value (B, H, S, D) -> (B, L, H, D)."""
    if isinstance(module, Florence2VisionChannelAttention):
        assert scaling is not None
        return _attend_channels(query, key, value, scaling).transpose(1, 2), None
    if dropout and query.device.type == "cpu" and not torch.compiler.is_compiling():
        causal = attention_mask is None and query.shape[2] > 1 and getattr(module, "is_causal", False)
        attended = attend_with_dropout(query, key, value, attention_mask, dropout, scaling, causal=causal)
        return attended.transpose(1, 2), None
    attended, _ = sdpa_attention_forward(
        module, query, key, value, attention_mask, dropout=dropout, scaling=scaling, **options
    )
    return attended, None


def _attend_channels(query: Tensor, key: Tensor, value: Tensor, scaling: float) -> Tensor:
    """Channels attend to channels: all are (B, G, C, N), with G groups of C channels and N positions of the map."""
    scores = torch.matmul(query * scaling, key.transpose(2, 3))  # scaled first, as sums over N overflow float16
    return torch.matmul(scores.softmax(dim=-1).to(value.dtype), value)


def attend_shared(query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, scaling: float) -> Tensor:
    """Consecutive queries, the beams of an image, attend to the same keys: they become the positions of one call.

    query (B * beams, H, 1, D), key and value (B, H, S, D), mask (B, 1, 1, S) -> (B * beams, H, 1, D).
    """
    together = query.view(len(key), -1, query.shape[1], query.shape[3]).transpose(1, 2)  # (B, H, beams, D)
    attended = nn.functional.scaled_dot_product_attention(together, key, value, mask, scale=scaling)
    return attended.transpose(1, 2).reshape(query.shape)


def attend_with_dropout(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    dropout: float,
    scaling: float | None = None,
    *,
    causal: bool = False,
) -> Tensor:
    """Attention with dropout of the softmax weights: query (B, H, L, D), key, value (B, H, S, D) -> (B, H, L, D).

    attention_mask is boolean, True for what is attended to, and broadcasts to (B, 1, L, S). torch itself computes this
    in a dozen float32 passes over (B, H, L, S) tensors, and keeps these for the backward pass. Here each image is
    computed on its own, so that its weights fit the CPU's cache, and the backward pass computes them again.
    """
    scale = query.shape[-1] ** -0.5 if scaling is None else scaling
    if causal:
        attention_mask = torch.ones(query.shape[2], key.shape[2], dtype=torch.bool).tril()[None, None]
    key, value = key.to(query.dtype), value.to(query.dtype)
    attended: Tensor = _DropoutAttention.apply(query, key, value, attention_mask, dropout, scale, draw_seed())
    return attended


class _DropoutAttention(Function):
    """`attend_with_dropout` with its backward pass, one image at a time."""

    @staticmethod
    def forward(ctx: Any, query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, *numbers: Any) -> Tensor:
        dropout, scale, seed = numbers
        # In memory (B, L, H, D): the layout that the caller's transpose, and the output projection, want.
        out = torch.empty_like(query.transpose(1, 2), memory_format=torch.contiguous_format).transpose(1, 2)
        for row in range(len(query)):
            weights = _weights(query[row], key[row], mask, row, scale)
            drop_(weights, draw_kept(weights, dropout, seed, row))
            out[row] = torch.bmm(weights, value[row]).div_(share_kept(dropout))
        ctx.save_for_backward(query, key, value, mask, out)
        ctx.numbers = numbers
        return out

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        query, key, value, mask, out = ctx.saved_tensors
        dropout, scale, seed = ctx.numbers
        share = share_kept(dropout)
        of_query, of_key, of_value = (torch.empty_like(tensor) for tensor in (query, key, value))
        for row in range(len(query)):
            q, k, v, do = query[row], key[row], value[row], gradient[row]
            weights = _weights(q, k, mask, row, scale)
            kept = draw_kept(weights, dropout, seed, row)
            of_weights = drop_(torch.bmm(do, v.transpose(1, 2)).div_(share), kept)
            # Backward of the softmax, with weights P: P * (dP - sum(P * dP)). As in FlashAttention (Dao et al. 2022),
            # the sum is computed as that of out * d_out, which is smaller.
            of_scores = of_weights.sub_((do.float() * out[row]).sum(-1, keepdim=True)).mul_(weights)
            of_query[row] = torch.bmm(of_scores, k).mul_(scale)
            of_key[row] = torch.bmm(of_scores.transpose(1, 2), q).mul_(scale)
            of_value[row] = torch.bmm(drop_(weights, kept).transpose(1, 2), do).div_(share)
        return of_query, of_key, of_value, None, None, None, None


def _weights(query: Tensor, key: Tensor, mask: Tensor | None, row: int, scale: float) -> Tensor:
    """The softmax weights of one image, (H, L, S); query (H, L, D), key (H, S, D), the mask that of the batch."""
    scores = torch.bmm(query, key.transpose(1, 2)).mul_(scale)
    if mask is not None:
        scores.masked_fill_(~mask[row if len(mask) > 1 else 0], -torch.inf)
    return scores.softmax(dim=-1)


def _mask(*, attention_mask: Tensor | None, mask_function: Any, **_: Any) -> Tensor | None:
    """transformers' mask interface: (B, S) -> (B, 1, 1, S). None in the decoder: it is causal, with padding last."""
    if attention_mask is None or mask_function is causal_mask_function:
        return None
    return attention_mask[:, None, None, :]
