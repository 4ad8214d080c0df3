"""Greedy decoding, sampling and beam search, token for token what transformers' own give, in batches that shrink.

A caption that is finished leaves the batch, so that a long one holds up nobody. All beams of an image share the keys
and values of what was encoded, where transformers copies them for each beam and at each token.
"""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from einops import rearrange, repeat
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence
from transformers import DynamicCache, EncoderDecoderCache, Florence2ForConditionalGeneration, GenerationConfig
from transformers.generation.logits_process import NoRepeatNGramLogitsProcessor

from florence2ner.model.kernels import attention

_NEVER = -1e9  # score of a beam that must not be chosen
Processor = Callable[[Tensor, Tensor], Tensor]  # ids so far (R, T) and scores (R, V) -> scores
Stop = Callable[[Tensor, None], Tensor]  # ids so far (R, T) -> whether each row ends there


def search(
    model: Florence2ForConditionalGeneration,
    input_ids: Tensor,
    logits_processor: Sequence[Processor],
    stopping_criteria: Stop,
    generation_config: GenerationConfig,
    *,
    encoded: Tensor,
    encoded_mask: Tensor | None,
    **_: Any,
) -> Tensor:
    """For `generate(custom_generate=...)`: ids (B, T), padded, of the best text for each image.

    `encoded` (B, N, d_model) and its mask (B, N) are from the language model's encoder; input_ids (B * beams, 1) the
    decoder's start.
    """
    decoder = _Decoder(model, encoded, encoded_mask, len(input_ids) // len(encoded))
    processors = [
        _ban_repetition(processor.ngram_size) if isinstance(processor, NoRepeatNGramLogitsProcessor) else processor
        for processor in logits_processor
    ]

    def process(ids: Tensor, scores: Tensor) -> Tensor:
        for processor in processors:
            scores = processor(ids, scores)
        return scores

    find = _beam_search if generation_config.num_beams > 1 else _one_by_one
    rows = find(decoder, input_ids, process, stopping_criteria, generation_config)
    return pad_sequence(list(rows), batch_first=True, padding_value=generation_config.pad_token_id)


def _ban_repetition(size: int) -> Processor:
    """NoRepeatNGramLogitsProcessor without its loops in Python, for which a device waits at each token."""

    def ban(ids: Tensor, scores: Tensor) -> Tensor:
        if ids.shape[1] < size:
            return scores
        ngrams = ids.unfold(1, size, 1)  # (R, T - size + 1, size)
        repeats = (ngrams[..., :-1] == ids[:, None, ids.shape[1] - size + 1 :]).all(-1)
        limits = torch.where(repeats, -torch.inf, torch.inf).to(scores.dtype)
        return scores.scatter_reduce(1, ngrams[..., -1], limits, "amin")

    return ban


class _Decoder:
    """The decoder with what it remembers of R = B * beams rows: a row for each beam of each image."""

    def __init__(
        self, model: Florence2ForConditionalGeneration, encoded: Tensor, encoded_mask: Tensor | None, beams: int
    ) -> None:
        self.decoder = model.model.language_model.decoder
        self.head = model.lm_head.weight
        if torch.is_autocast_enabled(encoded.device.type):  # which would cast it anew for each token
            self.head = self.head.to(torch.get_autocast_dtype(encoded.device.type))
        # Kernels other than ours want keys and values for each beam.
        self.shared = model.config.text_config._attn_implementation == attention.NAME
        cross = DynamicCache()
        for number, layer in enumerate(self.decoder.layers):
            attend = layer.encoder_attn
            for_each_image = (
                rearrange(project(encoded), "b n (h d) -> b h n d", h=attend.num_heads)
                for project in (attend.k_proj, attend.v_proj)
            )
            cross.update(*(self._for_rows(tensor, beams) for tensor in for_each_image), number)
        self.cache = EncoderDecoderCache(DynamicCache(), cross)
        # Not read but for its shape: keys and values are there already.
        self.encoded = repeat(encoded, "b ... -> (b k) ...", k=beams)
        self.mask = None if encoded_mask is None else repeat(encoded_mask, "b ... -> (b k) ...", k=beams)

    def _for_rows(self, tensor: Tensor, beams: int) -> Tensor:
        return tensor if self.shared else repeat(tensor, "b ... -> (b k) ...", k=beams)

    def next_logits(self, ids: Tensor) -> Tensor:
        """Logits float32 (R, V) behind ids (R, T), of which all but the last are remembered."""
        hidden = self.decoder(
            input_ids=ids[:, -1:],
            encoder_hidden_states=self.encoded,
            encoder_attention_mask=self.mask,
            cache=self.cache,
            use_cache=True,
        ).last_hidden_state
        return nn.functional.linear(hidden[:, -1], self.head).float()

    def take(self, rows: Tensor) -> None:
        """Go on with these rows, which are of the same images as before."""
        self.cache.self_attention_cache.reorder_cache(rows)

    def keep(self, images: Tensor, beams: int) -> None:
        """Go on with these images only."""
        rows = _rows_of(images, beams)
        self.cache.self_attention_cache.reorder_cache(rows)
        self.cache.cross_attention_cache.reorder_cache(images if self.shared else rows)
        self.encoded = self.encoded[rows]
        self.mask = None if self.mask is None else self.mask[rows]


def _one_by_one(
    decoder: _Decoder, ids: Tensor, processor: Processor, stop: Stop, config: GenerationConfig
) -> Sequence[Tensor]:
    """The likeliest token each time, or one drawn by its likelihood."""
    texts: dict[int, Tensor] = {}
    images = list(range(len(ids)))  # those in the batch
    while images:
        scores = processor(ids, decoder.next_logits(ids))
        drawn = scores.softmax(-1).multinomial(1) if config.do_sample else scores.argmax(-1, keepdim=True)
        ids = torch.cat([ids, drawn], dim=1)
        ended = stop(ids, None)
        if ended.any():
            texts |= {image: row for image, row, is_done in zip(images, ids, ended.tolist(), strict=True) if is_done}
            going_on = (~ended).nonzero()[:, 0]
            images = [images[i] for i in going_on.tolist()]
            ids = ids[going_on]
            decoder.keep(going_on, beams=1)
    return [texts[image] for image in sorted(texts)]


def _beam_search(
    decoder: _Decoder, start: Tensor, processor: Processor, stop: Stop, config: GenerationConfig
) -> Sequence[Tensor]:
    """The text whose log-likelihood, divided by its length to the power of length_penalty, is the best found."""
    beams, penalty, early = config.num_beams, config.length_penalty, config.early_stopping
    ends = config.eos_token_id if isinstance(config.eos_token_id, list) else [config.eos_token_id]
    candidates = (1 + len(ends)) * beams
    ids = rearrange(start, "(b k) t -> b k t", k=beams)
    scores = torch.zeros(ids.shape[:2], device=ids.device)
    scores[:, 1:] = _NEVER  # all beams start alike: only one of them counts
    best = ids.clone()  # (B, K, T): the best texts that have ended, padded, with their scores and whether they exist
    best_scores = torch.full_like(scores, _NEVER)
    exists = torch.zeros_like(scores, dtype=torch.bool)
    texts: dict[int, Tensor] = {}
    images = list(range(len(ids)))
    while images:
        flat = ids.flatten(0, 1)
        likelihoods = processor(flat, decoder.next_logits(flat).log_softmax(-1))
        vocabulary = likelihoods.shape[-1]
        totals = (rearrange(likelihoods, "(b k) v -> b k v", k=beams) + scores.unsqueeze(-1)).flatten(1)
        # So many that as many as there are beams go on, even if each of the others ends.
        if config.do_sample:
            chosen = totals.softmax(-1).multinomial(candidates)
            chosen_scores = totals.gather(1, chosen)
        else:
            chosen_scores, chosen = totals.topk(candidates)
        parents = chosen // vocabulary
        grown = torch.cat([_pick(ids, parents), (chosen % vocabulary).unsqueeze(-1)], dim=-1)  # (B, C, T + 1)
        ended = rearrange(stop(grown.flatten(0, 1), None), "(b c) -> b c", b=len(ids))

        # Texts that end among the first K candidates compete with those that ended before.
        length = grown.shape[-1] - start.shape[-1]
        counts = ended & (torch.arange(candidates, device=ids.device) < beams)
        new_scores = (chosen_scores / length**penalty).masked_fill(~counts, _NEVER)
        padded = nn.functional.pad(best, (0, 1), value=config.pad_token_id)
        best_scores, order = torch.cat([best_scores, new_scores], dim=1).topk(beams)
        best = _pick(torch.cat([padded, grown], dim=1), order)
        exists = torch.cat([exists, counts], dim=1).gather(1, order)

        # The others go on.
        scores, order = chosen_scores.masked_fill(ended, _NEVER).topk(beams)
        ids = _pick(grown, order)
        decoder.take((parents.gather(1, order) + beams * torch.arange(len(ids), device=ids.device)[:, None]).flatten())

        # An image is done when no beam can beat its worst text: by its score now, or as if it went on to the limit.
        reach = config.max_length - start.shape[-1] if early == "never" and penalty > 0 else length
        worst = torch.where(exists, best_scores.min(dim=1, keepdim=True)[0], _NEVER)
        done = ~(scores[:, :1] / reach**penalty > worst).any(dim=1) | ended.all(dim=1)
        if early is True:
            done |= exists.all(dim=1)
        if done.any():
            for i in done.nonzero()[:, 0].tolist():
                texts[images[i]] = best[i, 0]
            going_on = (~done).nonzero()[:, 0]
            images = [images[i] for i in going_on.tolist()]
            ids, scores, best, best_scores, exists = (t[going_on] for t in (ids, scores, best, best_scores, exists))
            decoder.keep(going_on, beams)
    return [texts[image] for image in sorted(texts)]


def _pick(candidates: Tensor, indices: Tensor) -> Tensor:
    """candidates (B, C, T) at indices (B, K) -> (B, K, T)."""
    return candidates.take_along_dim(indices.unsqueeze(-1), dim=1)


def _rows_of(images: Tensor, beams: int) -> Tensor:
    return (images[:, None] * beams + torch.arange(beams, device=images.device)).flatten()
