"""Attention where torch's own kernels fall back to slow or wasteful ones. Everything else goes to them.

Three cases: the channel attention of the vision tower, whose "heads" are as long as the image and fit no kernel;
dropout on CPUs, where no kernel knows it; and beams of a beam search, which look at the same image.
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
    """Have `model` use `attend` wherever it was loaded to use torch's kernels ("sdpa").

    flash_attention_2 keeps its own in the language model: it can do all but the tower's channel attention.
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
    """transformers' interface: query (B, H, L, D), key and value (B', H, S, D) -> (B, L, H, D).

    B' may be a fraction of B: rows that follow each other then share key, value and mask.
    """
    if isinstance(module, Florence2VisionChannelAttention):
        assert scaling is not None
        return _attend_channels(query, key, value, scaling).transpose(1, 2), None
    if len(key) != len(query):
        return _attend_shared(query, key, value, attention_mask, scaling), None
    if dropout and query.device.type == "cpu" and not torch.compiler.is_compiling():
        causal = attention_mask is None and query.shape[2] > 1 and getattr(module, "is_causal", False)
        attended = attend_with_dropout(query, key, value, attention_mask, dropout, scaling, causal=causal)
        return attended.transpose(1, 2), None
    attended, _ = sdpa_attention_forward(
        module, query, key, value, attention_mask, dropout=dropout, scaling=scaling, **options
    )
    return attended, None


def _attend_channels(query: Tensor, key: Tensor, value: Tensor, scaling: float) -> Tensor:
    """Channels attend to channels: (B, G, C, N) -> the same shape, with C small and N the places of the map."""
    scores = torch.matmul(query * scaling, key.transpose(2, 3))  # scaled first: float16 can't hold sums over a map
    return torch.matmul(scores.softmax(dim=-1).to(value.dtype), value)


def _attend_shared(query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, scaling: float | None) -> Tensor:
    """One query position each of several beams per image: the beams are to the kernel what positions are."""
    beams, heads, length, width = len(query) // len(key), *query.shape[1:]
    assert length == 1
    together = query.view(len(key), beams, heads, width).transpose(1, 2)
    mask = None if mask is None else mask[::beams]
    attended = nn.functional.scaled_dot_product_attention(together, key, value, mask, scale=scaling)
    return attended.transpose(1, 2).reshape(len(query), 1, heads, width)


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
    """softmax(scaling * query key^T), of which entries are dropped, times value: (B, H, L, D) as in `attend`.

    attention_mask is boolean, True for what is attended to, and broadcasts to (B, 1, L, S). torch computes this in
    float32 with a dozen passes over (B, H, L, S), which it keeps for the backward pass; here one image at a time stays
    in the processor's cache, and the backward pass computes it again.
    """
    scale = query.shape[-1] ** -0.5 if scaling is None else scaling
    if causal:
        attention_mask = torch.ones(query.shape[2], key.shape[2], dtype=torch.bool).tril()[None, None]
    key, value = key.to(query.dtype), value.to(query.dtype)
    attended: Tensor = _DropoutAttention.apply(query, key, value, attention_mask, dropout, scale, draw_seed())
    return attended


class _DropoutAttention(Function):
    """`attend_with_dropout`, an image at a time. P are the softmax's weights, K the kept ones among them (0 or 1)."""

    @staticmethod
    def forward(ctx: Any, query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, *numbers: Any) -> Tensor:
        dropout, scale, seed = numbers
        # Laid out as the next layer reads it, (B, L, H, D).
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
            # The softmax's backward: P * (dP - sum(P * dP)), and that sum is the product of out and its gradient.
            of_scores = of_weights.sub_((do.float() * out[row]).sum(-1, keepdim=True)).mul_(weights)
            of_query[row] = torch.bmm(of_scores, k).mul_(scale)
            of_key[row] = torch.bmm(of_scores.transpose(1, 2), q).mul_(scale)
            of_value[row] = torch.bmm(drop_(weights, kept).transpose(1, 2), do).div_(share)
        return of_query, of_key, of_value, None, None, None, None


def _weights(query: Tensor, key: Tensor, mask: Tensor | None, row: int, scale: float) -> Tensor:
    """P of one image, (H, L, S)."""
    scores = torch.bmm(query, key.transpose(1, 2)).mul_(scale)
    if mask is not None:
        scores.masked_fill_(~mask[row if len(mask) > 1 else 0], -torch.inf)
    return scores.softmax(dim=-1)


def _mask(*, attention_mask: Tensor | None, mask_function: Any, **_: Any) -> Tensor | None:
    """transformers' interface: (B, S) -> (B, 1, 1, S). The decoder needs none: its padding is at the end."""
    if attention_mask is None or mask_function is causal_mask_function:
        return None
    return attention_mask[:, None, None, :]
