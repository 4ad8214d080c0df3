"""Captions as the model's tokenizer reads them: their lengths, and which are too long for the model."""

from collections.abc import Sequence

from transformers import PreTrainedTokenizerBase

from florence2ner.data.samples import Sample
from florence2ner.errors import UserError


def count_tokens(samples: Sequence[Sample], tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """The number of tokens of each sample's caption, <s> and </s> included."""
    return list(tokenizer([sample.caption for sample in samples], return_length=True).length) if samples else []


def drop_overlong(samples: Sequence[Sample], tokenizer: PreTrainedTokenizerBase, limit: int) -> tuple[Sample, ...]:
    """The samples whose captions have at most `limit` tokens. Raises UserError where there are samples, but none fits.

    `overlong_note` says how many were left out.
    """
    lengths = count_tokens(samples, tokenizer)
    kept = tuple(sample for sample, length in zip(samples, lengths, strict=True) if length <= limit)
    if samples and not kept:
        raise UserError(f"every caption is longer than the {limit} tokens that the model can write: shorten them")
    return kept


def overlong_note(dropped: int, limit: int) -> str:
    """A line for the user about captions that `drop_overlong` has left out."""
    return f"{dropped} captions are longer than the {limit} tokens that the model can write and are left out"
