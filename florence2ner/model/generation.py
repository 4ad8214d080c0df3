"""Generates text about images, and decides which of two attempts to keep."""

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor
from transformers import Florence2Processor

from florence2ner.config.options import Decoding
from florence2ner.model.answers import Flag, flag_problems, plain_text
from florence2ner.model.captioner import Captioner
from florence2ner.model.inputs import Embeddings
from florence2ner.model.search import search


@dataclass(frozen=True)
class Generated:
    """The text generated for one image."""

    raw: str  # with special tokens: <s>, </s>, <loc_12> ...
    tokens: int  # number of generated tokens, </s> included; at the limit, checkpoints force </s>
    limit: int  # the most tokens that there could have been

    @property
    def text(self) -> str:
        """The text as `caption` writes it, if it is one: without the tokens around it."""
        return plain_text(self.raw)

    def flags(self, *, may_be_empty: bool = False) -> tuple[Flag, ...]:
        """What looks wrong with it, see `flag_problems`. `may_be_empty`: an empty text is fine."""
        flags = flag_problems(self.raw, new_tokens=self.tokens, limit=self.limit)
        return tuple(flag for flag in flags if not (flag == "empty" and may_be_empty))


@torch.no_grad()
def generate(
    captioner: Captioner,
    images: Embeddings,
    input_ids: Tensor,
    attention_mask: Tensor | None,
    decoding: Decoding,
    *,
    seeds: Sequence[int] = (),
) -> list[Generated]:
    """Generate a text for each of B images, from prompts `input_ids` (B, N) and their `attention_mask` (B, N).

    Where `decoding` has a temperature, each image needs one of `seeds`; what is drawn for it depends on nothing else.

    `max_new_tokens` is limited to the decoder's number of positions. Whatever `decoding` leaves open, such as n-gram
    blocking, and the forced first and last token, is as the checkpoint's generation config says. <image> is never
    generated.
    """
    model, processor = captioner.model, captioner.processor
    pad = model.config.text_config.pad_token_id
    limit = min(decoding.max_new_tokens, model.config.text_config.max_position_embeddings - 1)
    encoder = model.model.language_model.encoder
    encoded = encoder(inputs_embeds=captioner.merge(images, input_ids), attention_mask=attention_mask)
    settings = decoding.given()
    bad_words = settings.pop("bad_words", ())
    settings |= {
        "max_new_tokens": limit,
        "do_sample": decoding.temperature is not None,
        "pad_token_id": pad,
        "suppress_tokens": [model.config.image_token_id],
        "bad_words_ids": _ids_of(processor, bad_words) if bad_words else None,
    }
    ids: Tensor = model.generate(
        encoder_outputs=encoded,
        attention_mask=attention_mask,
        custom_generate=partial(search, encoded=encoded.last_hidden_state, encoded_mask=attention_mask, seeds=seeds),
        **settings,
    )
    rows = [[i for i in row[1:] if i != pad] for row in ids.tolist()]  # without the decoder's start token
    raws = processor.batch_decode(rows, skip_special_tokens=False)
    return [Generated(raw, tokens=len(row), limit=limit) for raw, row in zip(raws, rows, strict=True)]


def seed_of(seed: int, name: str) -> int:
    """The seed of an image, from that of the run and the name of its file: the same wherever the folder is."""
    digest = hashlib.blake2b(f"{seed} {name}".encode(), digest_size=7).digest()
    return int.from_bytes(digest, "big")


def second_try(first: Decoding) -> Decoding:
    """The settings for a second attempt: beam search that penalises repetition and prefers short texts."""
    return first.model_copy(
        update={
            "num_beams": max(first.num_beams, 3),
            **dict.fromkeys(("temperature", "top_p", "top_k")),
            "no_repeat_ngram_size": 3,
            "repetition_penalty": 1.3,
            "length_penalty": -1.0,
        }
    )


def replace_flagged(
    first: Sequence[Generated], again: Callable[[list[int]], Sequence[Generated]], *, may_be_empty: bool = False
) -> list[Generated]:
    """Generate flagged texts once more, and keep the second attempt where it has fewer flags than the first.

    `again(rows)` returns new texts for these indices into `first`; it may return nothing, then the first texts stay.
    """
    texts = list(first)
    doubtful = [row for row, text in enumerate(texts) if text.flags(may_be_empty=may_be_empty)]
    for row, other in zip(doubtful, again(doubtful) if doubtful else (), strict=False):
        if len(other.flags(may_be_empty=may_be_empty)) < len(texts[row].flags(may_be_empty=may_be_empty)):
            texts[row] = other
    return texts


def _ids_of(processor: Florence2Processor, words: Sequence[str]) -> list[list[int]]:
    """Token ids of each word in both spellings: at the start of a text, and after a space."""
    spellings = [spelling for word in words for spelling in (word, f" {word}")]
    ids: list[list[int]] = processor.tokenizer(spellings, add_special_tokens=False).input_ids
    return ids
