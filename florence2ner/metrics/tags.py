"""How many tags of a caption are right, where captions are lists of tags with commas between them."""

from collections.abc import Sequence

import numpy as np

from florence2ner.metrics.metric import Parts
from florence2ner.metrics.observed import Observed

_FEWEST, _LONGEST = 3, 4  # tags of a list, words of a tag on average


def tags_of(text: str) -> set[str]:
    """The tags, in lower case."""
    return {" ".join(tag.lower().split()) for tag in text.split(",")} - {""}


def are_tags(text: str) -> bool:
    """Whether a text is a list of tags rather than a sentence: three at least, of four words at most on average."""
    tags = tags_of(text)
    return len(tags) >= _FEWEST and sum(len(tag.split()) for tag in tags) <= _LONGEST * len(tags) and ". " not in text


def tag_parts(observed: Sequence[Observed]) -> Parts:
    """Of each caption: its tags that are right, all of its tags, and those of the reference (N, 3).

    Of several references the one that fits best.
    """
    rows = []
    for seen in observed:
        mine = tags_of(seen.prediction or "")
        counted = [(len(mine & theirs), len(mine), len(theirs)) for theirs in map(tags_of, seen.references)]
        rows.append(max(counted, key=lambda row: row[0] / max(1, row[1] + row[2])))
    return np.array(rows, np.float64)


def precision(parts: Parts) -> float:
    """The share of the tags written that are right; NaN where none was written."""
    return float(parts[0] / parts[1]) if parts[1] else float("nan")


def recall(parts: Parts) -> float:
    """The share of the right tags that were written; NaN where there is none."""
    return float(parts[0] / parts[2]) if parts[2] else float("nan")


def f1(parts: Parts) -> float:
    """The harmonic mean of both, of all tags together; NaN where there is no tag at all."""
    return float(2 * parts[0] / (parts[1] + parts[2])) if parts[1] + parts[2] else float("nan")
