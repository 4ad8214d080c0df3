"""Captions as the tokenizer reads them: which are too long for the model, and which hold special tokens."""

import re
from bisect import bisect_left
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from functools import cache
from itertools import islice

from transformers import PreTrainedTokenizerBase

from florence2ner.config.options import TooLong
from florence2ner.data.samples import ImageRef, Sample
from florence2ner.display import name_some
from florence2ner.errors import UserError
from florence2ner.model.tasks import TASK_TOKENS, TASKS, find_task

_OBJECT = re.compile(r"[^<]*(?:<(?:loc_\d+|poly|/poly|sep)>)+")  # a label and its places


def count_tokens(captions: Sequence[str], tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """The number of tokens of each caption, <s> and </s> included."""
    return list(tokenizer(captions, return_length=True).length) if captions else []


def longest_captions(samples: Sequence[Sample], tokenizer: PreTrainedTokenizerBase) -> tuple[int, ...]:
    """The number of tokens of each sample's longest caption."""
    lengths = iter(count_tokens([caption for sample in samples for caption in sample.captions], tokenizer))
    return tuple(max(islice(lengths, len(sample.captions))) for sample in samples)


@dataclass(frozen=True)
class Fitted:
    """Samples whose captions the model can write, and what became of those that are too long."""

    samples: tuple[Sample, ...]
    left_out: int = 0  # captions
    cut: int = 0  # captions


def fit_captions(
    samples: Sequence[Sample],
    tokenizer: PreTrainedTokenizerBase,
    limit: int,
    too_long: TooLong = "skip",
    *,
    may_be_none: bool = False,
) -> Fitted:
    """The samples, where captions of more than `limit` tokens are left out ("skip") or cut ("truncate", `shorten`).

    Samples that keep no caption are left out. Raises UserError where there are samples, but no caption fits, unless
    there `may_be_none`; and with "refuse" where any doesn't.
    """
    lengths = iter(count_tokens([caption for sample in samples for caption in sample.captions], tokenizer))
    kept, left_out, cut = [], 0, 0
    refused: list[ImageRef] = []
    for sample in samples:
        captions = []
        for caption in sample.captions:
            if next(lengths) <= limit:
                captions.append(caption)
            elif too_long == "refuse":
                refused.append(sample.image)
            elif too_long == "truncate" and (shorter := shorten(caption, sample.task_prompt, tokenizer, limit)):
                captions.append(shorter)
                cut += 1
            else:
                left_out += 1
        if captions:
            kept.append(sample if captions == list(sample.captions) else replace(sample, captions=tuple(captions)))
    if refused:
        raise UserError(
            f"{len(refused)} captions are longer than the {limit} tokens that the model can write: "
            f"{name_some(refused)}; shorten them, or choose --too-long skip or truncate"
        )
    if samples and not kept and not may_be_none:
        raise UserError(f"every caption is longer than the {limit} tokens that the model can write: shorten them")
    return Fitted(tuple(kept), left_out, cut)


def shorten(caption: str, task_prompt: str, tokenizer: PreTrainedTokenizerBase, limit: int) -> str:
    """The longest beginning of a caption that has at most `limit` tokens and ends after a word; "" where there is none.

    An answer with places ends after a whole object. A text without spaces is cut wherever it fits.
    """
    if find_task(task_prompt).is_structured:
        ends = [match.end() for match in _OBJECT.finditer(caption)]
    else:
        offsets = tokenizer(caption, add_special_tokens=False, return_offsets_mapping=True).offset_mapping
        tokens = sorted({end for _, end in offsets[:limit]})
        words = [match.start() for match in re.finditer(r"\s+", caption[: tokens[-1]])]
        ends = words or tokens

    def fits(end: int) -> bool:
        return count_tokens([caption[:end]], tokenizer)[0] <= limit

    end = bisect_left(ends, True, key=lambda end: not fits(end))  # the first that doesn't
    return caption[: ends[end - 1]].rstrip(" ,;") if end else ""


def overlong_note(parts: Iterable[Fitted], limit: int) -> str | None:
    """A line for the user about captions that `fit_captions` has left out or cut; None without any."""
    parts = list(parts)
    numbers = {"left out": sum(part.left_out for part in parts), "cut": sum(part.cut for part in parts)}
    told = (
        f"{number} captions are longer than the {limit} tokens that the model can write and are {what}"
        for what, number in numbers.items()
        if number
    )
    return "; ".join(told) or None


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
