"""Greedy decoding, sampling and beam search with the same tokens as transformers' own, but faster.

A finished caption leaves the batch, so that the others go on in a smaller one.
"""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from einops import rearrange
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence
from transformers import Florence2ForConditionalGeneration, GenerationConfig
from transformers.generation.logits_process import NoRepeatNGramLogitsProcessor

from florence2ner.model.decoder import Decoder

_NEVER = -1e9  # the score of a beam that must not be chosen; as in transformers
Processor = Callable[[Tensor, Tensor], Tensor]  # ids so far (R, T), scores of the next token (R, V) -> new scores
Stop = Callable[[Tensor, None], Tensor]  # ids so far (R, T) -> whether each row ends here, (R,) bool


def search(
    model: Florence2ForConditionalGeneration,
    input_ids: Tensor,
    logits_processor: Sequence[Processor],
    stopping_criteria: Stop,
    generation_config: GenerationConfig,
    *,
    encoded: Tensor,
    encoded_mask: Tensor | None,
    seeds: Sequence[int] = (),
    **_: Any,
) -> Tensor:
    """The decoding loop for `generate(custom_generate=...)`. Returns the ids of each image's best text, padded: (B, T).

    `encoded` (B, N, d_model) is the output of the language model's encoder, `encoded_mask` (B, N) its attention mask;
    `input_ids` (B * beams, 1) are the decoder's start tokens. Sampling needs `seeds`, one for each image.
    """
    decoder = Decoder(model, encoded, encoded_mask, len(input_ids) // len(encoded))
    dice = _Dice(seeds, encoded.device) if generation_config.do_sample else None
    processors = [
        _ban_repetition(processor.ngram_size) if isinstance(processor, NoRepeatNGramLogitsProcessor) else processor
        for processor in logits_processor
    ]

    def process(ids: Tensor, scores: Tensor) -> Tensor:
        for processor in processors:
            scores = processor(ids, scores)
        return scores

    find = _beam_search if generation_config.num_beams > 1 else _one_by_one
    rows = find(decoder, input_ids, process, stopping_criteria, dice, generation_config)
    return pad_sequence(list(rows), batch_first=True, padding_value=generation_config.pad_token_id)


def _ban_repetition(size: int) -> Processor:
    """transformers' NoRepeatNGramLogitsProcessor as tensor operations: its loops make a GPU wait at each token."""

    def ban(ids: Tensor, scores: Tensor) -> Tensor:
        if ids.shape[1] < size:
            return scores
        ngrams = ids.unfold(1, size, 1)  # (R, T - size + 1, size)
        repeats = (ngrams[..., :-1] == ids[:, None, ids.shape[1] - size + 1 :]).all(-1)
        limits = torch.where(repeats, -torch.inf, torch.inf).to(scores.dtype)
        return scores.scatter_reduce(1, ngrams[..., -1], limits, "amin")

    return ban


class _Dice:
    """Draws for each image from its own random numbers, so that no draw depends on what else is in the batch."""

    def __init__(self, seeds: Sequence[int], device: torch.device) -> None:
        self._generators = [torch.Generator(device).manual_seed(seed) for seed in seeds]

    def draw(self, scores: Tensor, number: int) -> Tensor:
        """Different indices (B, number) into scores (B, C), drawn by the softmax of the scores."""
        # A race between exponentially distributed times, by which torch.multinomial draws too; but that has one
        # generator for all rows.
        times = [
            torch.empty_like(row).exponential_(generator=own) for row, own in zip(scores, self._generators, strict=True)
        ]
        return (scores.softmax(-1) / torch.stack(times)).topk(number).indices

    def keep(self, images: Sequence[int]) -> None:
        """Go on with these images only: indices into the current batch."""
        self._generators = [self._generators[i] for i in images]


def _one_by_one(
    decoder: Decoder, ids: Tensor, processor: Processor, stop: Stop, dice: _Dice | None, _: GenerationConfig
) -> Sequence[Tensor]:
    """Greedy decoding, or sampling with `dice`. Returns the ids of each image's text, (T,)."""
    texts: dict[int, Tensor] = {}
    images = list(range(len(ids)))  # those still in the batch
    while images:
        scores = processor(ids, decoder.next_logits(ids[:, -1]))
        drawn = dice.draw(scores, 1) if dice else scores.argmax(-1, keepdim=True)
        ids = torch.cat([ids, drawn], dim=1)
        ended = stop(ids, None)
        if ended.any():
            texts |= {image: row for image, row, is_done in zip(images, ids, ended.tolist(), strict=True) if is_done}
            images, going_on = _keep(~ended, images, decoder, dice)
            ids = ids[going_on]
    return [texts[image] for image in sorted(texts)]


def _beam_search(
    decoder: Decoder, start: Tensor, processor: Processor, stop: Stop, dice: _Dice | None, config: GenerationConfig
) -> Sequence[Tensor]:
    """Beam search. Returns the ids of each image's best text by log-likelihood / length ** length_penalty, (T,)."""
    beams, penalty, early = config.num_beams, config.length_penalty, config.early_stopping
    ends = config.eos_token_id if isinstance(config.eos_token_id, list) else [config.eos_token_id]
    candidates = (1 + len(ends)) * beams
    ids = rearrange(start, "(b k) t -> b k t", k=beams)
    scores = torch.zeros(ids.shape[:2], device=ids.device)
    scores[:, 1:] = _NEVER  # all beams start alike, so only the first may be continued
    best = ids.clone()  # (B, K, T) the best finished texts, padded; their scores; whether there are that many yet
    best_scores = torch.full_like(scores, _NEVER)
    exists = torch.zeros_like(scores, dtype=torch.bool)
    texts: dict[int, Tensor] = {}
    images = list(range(len(ids)))
    while images:
        flat = ids.flatten(0, 1)
        likelihoods = processor(flat, decoder.next_logits(flat[:, -1]).log_softmax(-1))
        vocabulary = likelihoods.shape[-1]
        totals = (rearrange(likelihoods, "(b k) v -> b k v", k=beams) + scores.unsqueeze(-1)).flatten(1)
        # Enough candidates that K of them go on even if every beam's end tokens are among them.
        if dice:
            chosen = dice.draw(totals, candidates)
            chosen_scores = totals.gather(1, chosen)
        else:
            chosen_scores, chosen = totals.topk(candidates)
        parents = chosen // vocabulary
        grown = torch.cat([_pick(ids, parents), (chosen % vocabulary).unsqueeze(-1)], dim=-1)  # (B, C, T + 1)
        ended = rearrange(stop(grown.flatten(0, 1), None), "(b c) -> b c", b=len(ids))

        # Texts that end among the first K candidates compete with those that are finished already.
        length = grown.shape[-1] - start.shape[-1]
        counts = ended & (torch.arange(candidates, device=ids.device) < beams)
        new_scores = (chosen_scores / length**penalty).masked_fill(~counts, _NEVER)
        padded = nn.functional.pad(best, (0, 1), value=config.pad_token_id)
        best_scores, order = torch.cat([best_scores, new_scores], dim=1).topk(beams)
        best = _pick(torch.cat([padded, grown], dim=1), order)
        exists = torch.cat([exists, counts], dim=1).gather(1, order)

        # The best K of the unfinished candidates go on.
        scores, order = chosen_scores.masked_fill(ended, _NEVER).topk(beams)
        ids = _pick(grown, order)
        decoder.take((parents.gather(1, order) + beams * torch.arange(len(ids), device=ids.device)[:, None]).flatten())

        # An image is done when its best beam can't beat the worst of its K finished texts: by the beam's score at its
        # present length, or, where early_stopping is "never", at the longest possible length, which favours it.
        reach = config.max_length - start.shape[-1] if early == "never" and penalty > 0 else length
        worst = torch.where(exists, best_scores.min(dim=1, keepdim=True)[0], _NEVER)
        done = ~(scores[:, :1] / reach**penalty > worst).any(dim=1) | ended.all(dim=1)
        if early is True:
            done |= exists.all(dim=1)
        if done.any():
            for i in done.nonzero()[:, 0].tolist():
                texts[images[i]] = best[i, 0]
            images, going_on = _keep(~done, images, decoder, dice)
            ids, scores, best, best_scores, exists = (t[going_on] for t in (ids, scores, best, best_scores, exists))
    return [texts[image] for image in sorted(texts)]


def _keep(goes_on: Tensor, images: list[int], decoder: Decoder, dice: _Dice | None) -> tuple[list[int], Tensor]:
    """Go on with the images of the batch of which `goes_on` (B,) is true. Returns their numbers, and their indices."""
    indices = goes_on.nonzero()[:, 0]
    decoder.keep(indices)
    if dice:
        dice.keep(indices.tolist())
    return [images[i] for i in indices.tolist()], indices


def _pick(candidates: Tensor, indices: Tensor) -> Tensor:
    """candidates (B, C, T) at indices (B, K) -> (B, K, T)."""
    return candidates.take_along_dim(indices.unsqueeze(-1), dim=1)
