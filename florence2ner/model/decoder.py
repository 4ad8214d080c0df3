"""The language model's decoder, one token at a time for many texts at once.

It computes what transformers' own does with a cache, with the same layers, and without what that does beside them for
each token, which is half of a tiny model's time. All beams of an image share one set of cross-attention
keys and values; transformers repeats them for each beam.
"""

from typing import Any

import torch
from einops import rearrange
from torch import Tensor, nn
from transformers import Florence2ForConditionalGeneration

from florence2ner.model.kernels.attention import attend_shared

ROOM = 32  # tokens by which the room for keys and values grows
_WORDS_AT_ONCE = 2048  # on a CPU, where a few rows times a whole vocabulary take up to 1.4 times as long as in pieces


class Decoder:
    """The decoder and what it remembers for R = B * beams rows, one for each beam of each image."""

    def __init__(
        self, model: Florence2ForConditionalGeneration, encoded: Tensor, encoded_mask: Tensor | None, beams: int
    ) -> None:
        """`encoded` (B, N, d_model) is the output of the encoder, `encoded_mask` (B, N) its attention mask."""
        self._decoder: Any = model.model.language_model.decoder
        assert not self._decoder.training, "there is no dropout here"
        self._head = model.lm_head.weight
        if torch.is_autocast_enabled(encoded.device.type):  # cast once here, where autocast would for each token
            self._head = self._head.to(torch.get_autocast_dtype(encoded.device.type))
        self._heads: int = self._decoder.layers[0].self_attn.num_heads
        self._beams = beams
        self._mask = None if encoded_mask is None else encoded_mask.bool()[:, None, None, :]
        self._cross: list[tuple[Tensor, Tensor]] = [
            self._of_image(layer.encoder_attn, encoded) for layer in self._decoder.layers
        ]
        self._length = 0  # tokens of each row that were read
        # Of each layer, keys and values of these tokens, (room, R, 2, d_model); and one more, into which those of one
        # layer after the other are put in the order of the beams.
        self._own: list[Tensor] = []
        self._spare: Tensor | None = None

    def next_logits(self, tokens: Tensor) -> Tensor:
        """Read the next token (R,) of each row. Returns the logits (R, V) float32 of the token after it."""
        decoder = self._decoder
        positions = decoder.embed_positions
        hidden = decoder.embed_tokens(tokens) + positions.weight[self._length + positions.offset]
        hidden = decoder.layernorm_embedding(hidden)
        for number, layer in enumerate(decoder.layers):
            hidden = layer.self_attn_layer_norm(hidden + self._attend_own(number, layer.self_attn, hidden))
            hidden = layer.encoder_attn_layer_norm(hidden + self._attend_cross(number, layer.encoder_attn, hidden))
            hidden = layer.final_layer_norm(hidden + layer.fc2(layer.activation_fn(layer.fc1(hidden))))
        self._length += 1
        return self._logits(hidden).float()

    def take(self, rows: Tensor) -> None:
        """Go on with these rows (R,): indices of the beams that were chosen, in the same order of images as before."""
        spare = torch.empty_like(self._own[0]) if self._spare is None else self._spare
        for number, own in enumerate(self._own):
            torch.index_select(own[: self._length], 1, rows, out=spare[: self._length])
            self._own[number], spare = spare, own
        self._spare = spare

    def keep(self, images: Tensor) -> None:
        """Go on with these images only: indices into the current batch."""
        rows = (images[:, None] * self._beams + torch.arange(self._beams, device=images.device)).flatten()
        self._spare = None
        for number, (keys, values) in enumerate(self._cross):
            self._own[number] = self._own[number][:, rows]
            self._cross[number] = keys[images], values[images]
        self._mask = None if self._mask is None else self._mask[images]

    def _logits(self, hidden: Tensor) -> Tensor:
        if not hidden.is_cpu:
            return nn.functional.linear(hidden, self._head)
        hidden = hidden.to(self._head.dtype)  # as autocast would
        logits = hidden.new_empty(len(hidden), len(self._head))
        for words, out in zip(
            torch.split(self._head, _WORDS_AT_ONCE), torch.split(logits, _WORDS_AT_ONCE, dim=1), strict=True
        ):
            torch.mm(hidden, words.t(), out=out)
        return logits

    def _attend_own(self, number: int, attend: Any, hidden: Tensor) -> Tensor:
        """Self-attention of layer `number`: each row to what it has read, (R, d_model)."""
        key = attend.k_proj(hidden)
        own = self._room_for(number, key)
        own[self._length, :, 0], own[self._length, :, 1] = key, attend.v_proj(hidden)
        read = own[: self._length + 1].view(-1, len(hidden), 2, self._heads, attend.head_dim)
        keys, values = read.permute(2, 1, 3, 0, 4)  # (R, H, T, D)
        query = self._query(attend, hidden)
        attended = nn.functional.scaled_dot_product_attention(query, keys, values, scale=attend.scaling)
        out: Tensor = attend.out_proj(attended.flatten(1))
        return out

    def _attend_cross(self, number: int, attend: Any, hidden: Tensor) -> Tensor:
        """Cross-attention of layer `number`: each row to its image and prompt, (R, d_model)."""
        query = self._query(attend, hidden)
        attended = attend_shared(query, *self._cross[number], self._mask, attend.scaling)
        out: Tensor = attend.out_proj(attended.flatten(1))
        return out

    def _of_image(self, attend: Any, encoded: Tensor) -> tuple[Tensor, Tensor]:
        """Keys and values of the cross-attention, each (B, H, N, D)."""
        keys, values = (
            rearrange(project(encoded), "b n (h d) -> b h n d", h=self._heads)
            for project in (attend.k_proj, attend.v_proj)
        )
        return keys, values

    def _query(self, attend: Any, hidden: Tensor) -> Tensor:
        """(R, d_model) -> (R, H, 1, D)."""
        query: Tensor = attend.q_proj(hidden)
        return query.view(-1, self._heads, 1, attend.head_dim)

    def _room_for(self, number: int, key: Tensor) -> Tensor:
        """The keys and values of layer `number`, with room for one more like `key` (R, d_model)."""
        if number == len(self._own):
            self._own.append(key.new_empty(ROOM, len(key), 2, key.shape[-1]))
        own = self._own[number]
        if self._length == len(own):
            own, self._spare = torch.cat([own, own.new_empty(ROOM, *own.shape[1:])]), None
            self._own[number] = own
        return own
