"""Captions as the tokenizer reads them: which are too long for the model, and which hold special tokens."""

import re
from collections.abc import Iterable, Sequence
from functools import cache

from transformers import PreTrainedTokenizerBase

from florence2ner.data.samples import Sample
from florence2ner.display import name_some
from florence2ner.errors import UserError
from florence2ner.model.tasks import TASK_TOKENS, TASKS, find_task


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


def special_tokens_warning(samples: Iterable[Sample], tokenizer: PreTrainedTokenizerBase) -> str | None:
    """A line about captions that hold tokens which the model takes for signs to itself, such as </s>; None without any.

    Those of places, such as <loc_1>, belong into answers about places. Whether a task that is not Florence-2's own asks
    for places is not known: there they are not looked for.
    """
    signs = {*tokenizer.all_special_tokens} - {*TASK_TOKENS}

    @cache
    def pattern(task_prompt: str) -> re.Pattern[str]:
        task = find_task(task_prompt)
        no_places = task.token in TASKS and not task.is_structured
        return re.compile("|".join(map(re.escape, sorted(signs | {*TASK_TOKENS} if no_places else signs))))

    found = [(sample, tokens) for sample in samples if (tokens := pattern(sample.task_prompt).findall(sample.caption))]
    if not found:
        return None
    kinds = sorted({re.sub(r"loc_\d+", "loc_..", token) for _, tokens in found for token in tokens})
    return (
        f"{len(found)} captions hold {name_some(kinds, 5)}, which the model doesn't take for text, but for signs to "
        f"itself: {name_some([sample.image for sample, _ in found])}"
    )
