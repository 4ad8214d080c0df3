"""CIDEr-D: how like a caption is to those that people wrote, where rare words count more than common ones.

Vedantam, Zitnick and Parikh, "CIDEr: Consensus-based Image Description Evaluation" (CVPR 2015), equations 1 to 4 and
the changes of section 6 (clipping, and a penalty for another length); on the same tokens the values are those of the
COCO caption evaluation's scorer.
"""

import math
from collections import Counter
from collections.abc import Sequence

from florence2ner.metrics.words import ngrams, words

_LONGEST = 4  # words of an n-gram
_SIGMA = 6.0  # of the penalty
_SCALE = 10.0
_Counts = list[Counter[tuple[str, ...]]]  # by the length of the n-gram


def cider_d(predictions: Sequence[str], references: Sequence[Sequence[str]]) -> list[float]:
    """CIDEr-D of each caption, from 0 to 10, with several references for each.

    How rare an n-gram is follows from the references of all images given here: 0 for a single image.
    """
    return cider_d_of_tokens(
        [words(text) for text in predictions], [[words(text) for text in texts] for texts in references]
    )


def cider_d_of_tokens(
    predictions: Sequence[Sequence[str]], references: Sequence[Sequence[Sequence[str]]]
) -> list[float]:
    """The same, for texts that are split into tokens already."""
    truths = [[_counts(tokens) for tokens in texts] for texts in references]
    images_with = Counter(
        ngram for texts in truths for ngram in {ngram for counts in texts for part in counts for ngram in part}
    )
    weigh = _Weights(images_with, len(references))
    return [
        _score(weigh(_counts(tokens)), [weigh(counts) for counts in texts])
        for tokens, texts in zip(predictions, truths, strict=True)
    ]


def _counts(tokens: Sequence[str]) -> _Counts:
    return [ngrams(tokens, n) for n in range(1, _LONGEST + 1)]


class _Weighed:
    """A text as a vector for each length of n-gram, with their norms."""

    def __init__(self, vectors: list[dict[tuple[str, ...], float]], length: int) -> None:
        self.vectors = vectors
        self.norms = [math.sqrt(sum(value * value for value in vector.values())) for vector in vectors]
        self.length = length


class _Weights:
    """Weighs n-grams by how often they occur in a text, and by how few images' references have them."""

    def __init__(self, images_with: Counter[tuple[str, ...]], images: int) -> None:
        self._images_with = images_with
        self._log = math.log(images) if images else 0.0

    def __call__(self, counts: _Counts) -> _Weighed:
        vectors = [
            {ngram: count * (self._log - math.log(max(1, self._images_with[ngram]))) for ngram, count in part.items()}
            for part in counts
        ]
        return _Weighed(vectors, counts[1].total())  # the scorer counts pairs of words, not words


def _score(text: _Weighed, truths: Sequence[_Weighed]) -> float:
    total = 0.0
    for truth in truths:
        penalty = math.exp(-((text.length - truth.length) ** 2) / (2 * _SIGMA**2))
        for mine, theirs, norm, other in zip(text.vectors, truth.vectors, text.norms, truth.norms, strict=True):
            product = sum(min(value, theirs[ngram]) * theirs[ngram] for ngram, value in mine.items() if ngram in theirs)
            total += penalty * (product / (norm * other) if norm and other else product)
    return _SCALE * total / (_LONGEST * len(truths))
