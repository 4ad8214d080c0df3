"""What is wrong with the captions of a dataset, as far as it shows without a tokenizer."""

import re
from collections import Counter, defaultdict
from collections.abc import Sequence
from contextlib import suppress
from itertools import pairwise

from florence2ner.errors import UserError
from florence2ner.inspection.dataset import Caption
from florence2ner.inspection.findings import Example, Figure, Finding, Histogram, bins_of, plain
from florence2ner.model.tasks import Task, find_signs, find_task

_WORD = re.compile(r"\w+(?:['\u2019-]\w+)*")
OPENING = 3  # words
EVERYWHERE = 0.8  # share of the captions beyond which a word is named
ENOUGH = 10  # captions below which shares say nothing
_MOST_NAMED = 20  # openings or words
_LENGTHS = (5, 10, 20, 40, 80, 160)  # words
# Words that nearly every English sentence has: not worth naming.
_COMMON = frozenset(
    re.findall(
        r"\w+",
        "a an the and or of in on at to by for from with without as is are was were be it its this that there which "
        "who his her their one",
    )
)


def caption_findings(captions: Sequence[Caption], trigger_word: str | None, opening_share: float) -> list[Finding]:
    """The findings about captions. Of answers about places only their tokens are looked at."""
    tasks = _tasks(captions)
    signs = [
        (caption, found)
        for caption in captions
        if (task := tasks.get(caption.task_prompt)) and (found := find_signs(caption.text, task))
    ]
    texts = text_captions(captions)
    return [
        Finding(
            "special-token",
            "hurts",
            "[caption holds|captions hold] what the model doesn't take for text, but for signs to itself",
            "remove it from the text, or name the task that has it in its answers with --task-prompt",
            tuple(Example(caption.image.key, " ".join(found), (caption.image,)) for caption, found in signs),
        ),
        *([_without_trigger(texts, trigger_word)] if trigger_word else []),
        *_habits(texts, opening_share),
    ]


def text_captions(captions: Sequence[Caption]) -> list[Caption]:
    """The captions that are sentences: those for tasks whose answers are text."""
    tasks = _tasks(captions)
    return [caption for caption in captions if not ((task := tasks.get(caption.task_prompt)) and task.is_structured)]


def caption_figures(captions: Sequence[Caption], images: int) -> list[Figure]:
    """How many captions there are, where an image may have several, and for which tasks."""
    prompts = Counter(caption.task_prompt for caption in captions)
    if len(captions) == images and len(prompts) < 2:
        return []
    words = ", ".join(f"{number} for {prompt}" for prompt, number in prompts.most_common())
    return [Figure("captions", f"{len(captions)}: {plain(words, 200)}", {"captions": len(captions)})]


def _tasks(captions: Sequence[Caption]) -> dict[str, Task]:
    """The tasks of the captions by their prompts; a prompt that is no task has none."""
    tasks = {}
    for prompt in dict.fromkeys(caption.task_prompt for caption in captions):
        with suppress(UserError):
            tasks[prompt] = find_task(prompt)
    return tasks


def opening_of(caption: str) -> str:
    """The first words of a caption, in lower case."""
    return " ".join(_WORD.findall(caption)[:OPENING]).lower()


def caption_histogram(captions: Sequence[Caption]) -> tuple[Histogram, ...]:
    """How long the captions that are sentences are in words; nothing where there are none."""
    lengths = [len(_WORD.findall(caption.text)) for caption in text_captions(captions)]
    labels = [f"below {_LENGTHS[0]}", *(f"{a} to {b - 1}" for a, b in pairwise(_LENGTHS))]
    bins = bins_of(lengths, _LENGTHS, [*labels, f"from {_LENGTHS[-1]}"])
    return (Histogram("Caption length", "words", bins),) if lengths else ()


def _without_trigger(captions: Sequence[Caption], word: str) -> Finding:
    pattern = re.compile(rf"(?<!\w){re.escape(word)}(?!\w)")
    missing = [caption for caption in captions if not pattern.search(caption.text)]
    return Finding(
        "no-trigger-word",
        "hurts",
        f"[caption lacks|captions lack] the trigger word {plain(word)}",
        "what they show is not learnt under that word",
        tuple(Example(caption.image.key, plain(caption.text, 100), (caption.image,)) for caption in missing),
    )


def _habits(captions: Sequence[Caption], opening_share: float) -> list[Finding]:
    """Openings and words that so many captions for a task share that a model would write them always."""
    openings: list[Example] = []
    words: list[Example] = []
    by_task: defaultdict[str, list[str]] = defaultdict(list)
    for caption in captions:
        by_task[caption.task_prompt].append(caption.text)
    for prompt, texts in by_task.items():
        if len(texts) >= ENOUGH:
            of_task = "" if len(by_task) == 1 else f" for {plain(prompt)}"
            begun = Counter(map(opening_of, texts))
            openings += _frequent(begun, opening_share * len(texts), len(texts), of_task)
            used = Counter(word for text in texts for word in {*map(str.lower, _WORD.findall(text))} - _COMMON)
            words += _frequent(used, EVERYWHERE * len(texts) + 1e-6, len(texts), of_task)
    return [
        Finding(
            "common-opening",
            "note",
            "[way to begin is|ways to begin are] shared by many captions",
            "the model will begin every caption so: cut what says nothing, such as `The image shows`",
            tuple(openings),
        ),
        Finding(
            "word-everywhere",
            "note",
            f"[word is|words are] in more than {EVERYWHERE:.0%} of the captions",
            "fine for a trigger word or what all images show; else the model writes them whatever it sees",
            tuple(words),
        ),
    ]


def _frequent(numbers: Counter[str], least: float, total: int, of_task: str) -> list[Example]:
    """The most frequent texts, those that are in `least` or more of all captions, with their share."""
    return [
        Example(text, f"{number / total:.0%} of {total} captions{of_task}")
        for text, number in numbers.most_common(_MOST_NAMED)
        if number >= least
    ]
