"""Captions as the tokenizer reads them: which are too long for the model, and which hold special tokens."""

import re
from collections.abc import Iterable, Sequence
from dataclasses import replace
from functools import cache
from itertools import islice

from transformers import PreTrainedTokenizerBase

from florence2ner.data.samples import Sample
from florence2ner.display import name_some
from florence2ner.errors import UserError
from florence2ner.model.tasks import TASK_TOKENS, TASKS, find_task


def count_tokens(captions: Sequence[str], tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """The number of tokens of each caption, <s> and </s> included."""
    return list(tokenizer(captions, return_length=True).length) if captions else []


def longest_captions(samples: Sequence[Sample], tokenizer: PreTrainedTokenizerBase) -> tuple[int, ...]:
    """The number of tokens of each sample's longest caption."""
    lengths = iter(count_tokens([caption for sample in samples for caption in sample.captions], tokenizer))
    return tuple(max(islice(lengths, len(sample.captions))) for sample in samples)


def drop_overlong(samples: Sequence[Sample], tokenizer: PreTrainedTokenizerBase, limit: int) -> tuple[Sample, ...]:
    """The samples with those of their captions that have at most `limit` tokens; without those that keep none.

    Raises UserError where there are samples, but no caption fits. `overlong_note` says how many were left out.
    """
    lengths = iter(count_tokens([caption for sample in samples for caption in sample.captions], tokenizer))
    kept = []
    for sample in samples:
        fitting = tuple(caption for caption in sample.captions if next(lengths) <= limit)
        if fitting:
            kept.append(sample if fitting == sample.captions else replace(sample, captions=fitting))
    if samples and not kept:
        raise UserError(f"every caption is longer than the {limit} tokens that the model can write: shorten them")
    return tuple(kept)


def overlong_note(before: Iterable[Sample], kept: Iterable[Sample], limit: int) -> str | None:
    """A line for the user about captions that `drop_overlong` has left out; None without any."""
    all_of_them, fitting = (sum(len(sample.captions) for sample in samples) for samples in (before, kept))
    if all_of_them == fitting:
        return None
    return (
        f"{all_of_them - fitting} captions are longer than the {limit} tokens that the model can write and are left out"
    )


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

    pairs = ((sample, caption) for sample in samples for caption in sample.captions)
    found = [(sample, tokens) for sample, text in pairs if (tokens := pattern(sample.task_prompt).findall(text))]
    if not found:
        return None
    kinds = sorted({re.sub(r"loc_\d+", "loc_..", token) for _, tokens in found for token in tokens})
    return (
        f"{len(found)} captions hold {name_some(kinds, 5)}, which the model doesn't take for text, but for signs to "
        f"itself: {name_some([sample.image for sample, _ in found])}"
    )
