"""How long and how varied captions are, whatever they say."""

from collections.abc import Sequence

import numpy as np

from florence2ner.metrics.metric import Parts
from florence2ner.metrics.observed import Observed
from florence2ner.metrics.words import ngrams, words


def length_parts(observed: Sequence[Observed]) -> Parts:
    """Of each caption: its words, and those of the reference whose length is closest (N, 2)."""
    rows = []
    for seen in observed:
        length = len(words(seen.prediction or ""))
        lengths = [len(words(text)) for text in seen.references]
        rows.append([length, min(lengths, key=lambda other: (abs(other - length), other))])
    return np.array(rows, np.float64)


def distinct(observed: Sequence[Observed], n: int) -> float:
    """Different n-grams by all n-grams of the captions, from 0 to 1; NaN where there is none.

    Li et al., "A Diversity-Promoting Objective Function for Neural Conversation Models" (NAACL 2016).
    """
    counted = [ngrams(words(seen.prediction or ""), n) for seen in observed]
    total = sum(counts.total() for counts in counted)
    return len(set().union(*counted)) / total if total else float("nan")
