"""What is wrong with the captions of a dataset, as far as it shows without a tokenizer."""

import re
from collections import Counter, defaultdict
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path

from florence2ner.inspection.findings import Example, Finding, Histogram, bins_of, plain, shell_word
from florence2ner.inspection.folder import Folder, Item
from florence2ner.model.tasks import find_signs, find_task

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


def caption_findings(folder: Folder, task_prompt: str, trigger_word: str | None, opening_share: float) -> list[Finding]:
    """The findings about captions. Raises UserError for a task prompt that is none."""
    captioned = [item for item in folder.items if item.caption and item.side != "unused"]
    task = find_task(task_prompt)
    signs = {item: found for item in captioned if (found := find_signs(item.caption, task))}
    return [
        *_unreadable(folder),
        _empty(folder),
        Finding(
            "special-token",
            "hurts",
            "[caption holds|captions hold] what the model doesn't take for text, but for signs to itself",
            "remove it from the text, or name the task that has it in its answers with --task-prompt",
            tuple(Example(item.image.key, " ".join(found), (item.image,)) for item, found in signs.items()),
        ),
        *([_without_trigger(captioned, trigger_word)] if trigger_word else []),
        *(_habits(captioned, opening_share) if len(captioned) >= ENOUGH else []),
    ]


def opening_of(caption: str) -> str:
    """The first words of a caption, in lower case."""
    return " ".join(_WORD.findall(caption)[:OPENING]).lower()


def caption_histogram(items: Sequence[Item]) -> tuple[Histogram, ...]:
    """How long the captions are in words; nothing where there are none."""
    lengths = [len(_WORD.findall(item.caption)) for item in items]
    labels = [f"below {_LENGTHS[0]}", *(f"{a} to {b - 1}" for a, b in pairwise(_LENGTHS))]
    bins = bins_of(lengths, _LENGTHS, [*labels, f"from {_LENGTHS[-1]}"])
    return (Histogram("Caption length", "words", bins),) if lengths else ()


def _unreadable(folder: Folder) -> list[Finding]:
    fixes = []
    for path in folder.not_utf8:
        old, new = shell_word(path), shell_word(path.with_name(path.name + ".utf8"))
        fixes.append(f"iconv -f {_encoding_of(path)} -t UTF-8 -- {old} > {new} && mv -- {new} {old}")
    return [
        Finding(
            "not-utf8",
            "breaks",
            "[caption is|captions are] not UTF-8 text",
            "training refuses them; convert them from their encoding, which nobody can be sure of: read the result",
            tuple(Example(path.relative_to(folder.root).as_posix(), _first_line(path)) for path in folder.not_utf8),
            tuple(fixes),
        ),
        Finding(
            "unreadable-caption",
            "breaks",
            "[caption|captions] can't be read",
            "training refuses them: give yourself the right to read them",
            tuple(
                Example(path.relative_to(folder.root).as_posix(), reason) for path, reason in folder.unreadable_captions
            ),
        ),
    ]


def _encoding_of(path: Path) -> str:
    """The encoding that a byte order mark tells, else the most usual one of Windows."""
    with path.open("rb") as file:
        start = file.read(2)
    return "UTF-16" if start in (b"\xff\xfe", b"\xfe\xff") else "WINDOWS-1252"


def _first_line(path: Path) -> str:
    """The beginning of a file, its bytes beyond ASCII escaped."""
    with path.open("rb") as file:
        return plain(file.read(60).decode("ascii", "backslashreplace"))


def _empty(folder: Folder) -> Finding:
    broken = {*folder.not_utf8, *(path for path, _ in folder.unreadable_captions)}
    empty = [i for i in folder.items if i.caption_file and not i.caption and i.caption_file not in broken]
    return Finding(
        "empty-caption",
        "hurts",
        "[caption is|captions are] empty",
        "training leaves their images out; `florence2ner caption` writes them, as an empty file counts as missing",
        tuple(Example(item.image.key, images=(item.image,)) for item in empty),
        (folder.caption_command,) if empty else (),
    )


def _without_trigger(captioned: Sequence[Item], word: str) -> Finding:
    pattern = re.compile(rf"(?<!\w){re.escape(word)}(?!\w)")
    missing = [item for item in captioned if not pattern.search(item.caption)]
    return Finding(
        "no-trigger-word",
        "hurts",
        f"[caption lacks|captions lack] the trigger word {plain(word)}",
        "what they show is not learnt under that word",
        tuple(Example(item.image.key, plain(item.caption, 100), (item.image,)) for item in missing),
    )


def _habits(captioned: Sequence[Item], opening_share: float) -> list[Finding]:
    """Openings and words that so many captions share that a model would write them always."""
    openings: defaultdict[str, int] = defaultdict(int)
    words: Counter[str] = Counter()
    for item in captioned:
        openings[opening_of(item.caption)] += 1
        words.update({word.lower() for word in _WORD.findall(item.caption)} - _COMMON)
    total = len(captioned)
    frequent = sorted(openings.items(), key=lambda pair: -pair[1])[:_MOST_NAMED]
    return [
        Finding(
            "common-opening",
            "note",
            "[way to begin is|ways to begin are] shared by many captions",
            "the model will begin every caption so: cut what says nothing, such as `The image shows`",
            tuple(
                Example(opening, f"{count / total:.0%} of {total} captions")
                for opening, count in frequent
                if count / total >= opening_share
            ),
        ),
        Finding(
            "word-everywhere",
            "note",
            f"[word is|words are] in more than {EVERYWHERE:.0%} of the captions",
            "fine for a trigger word or what all images show; else the model writes them whatever it sees",
            tuple(
                Example(word, f"{count / total:.0%} of {total} captions")
                for word, count in words.most_common(_MOST_NAMED)
                if count / total > EVERYWHERE
            ),
        ),
    ]
