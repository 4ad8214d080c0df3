"""Length and variety against plain loops."""

import pytest

from florence2ner.metrics.table import measure
from florence2ner.metrics.words import words
from tests.metrics.pairs import made_pairs
from tests.metrics.support import observed

PREDICTIONS, REFERENCES = made_pairs()
SEEN = observed(PREDICTIONS, REFERENCES)


def test_distinct_counts_each_ngram_once() -> None:
    found = measure(SEEN, ["eval/distinct1", "eval/distinct2"])
    for n in (1, 2):
        grams = [tuple(split[i : i + n]) for split in map(words, PREDICTIONS) for i in range(len(split) - n + 1)]
        assert found[f"eval/distinct{n}"] == len(set(grams)) / len(grams)
    assert measure(observed(["a a a a"], [["b"]]), ["eval/distinct1"]) == {"eval/distinct1": 0.25}
    assert measure(observed([""], [["b"]]), ["eval/distinct1"]) == {}


def test_length_is_compared_with_the_closest_reference() -> None:
    found = measure(observed(["one two three", "one"], [["1 2", "1 2 3 4 5 6"], ["1 2 3 4"]]), ["eval/length_ratio"])
    assert found["eval/length_ratio"] == 4 / 6
    mine = theirs = 0
    for text, texts in zip(PREDICTIONS, REFERENCES, strict=True):
        length = len(words(text))
        mine += length
        theirs += sorted((abs(len(words(truth)) - length), len(words(truth))) for truth in texts)[0][1]
    assert measure(SEEN, ["eval/length_ratio"])["eval/length_ratio"] == pytest.approx(mine / theirs)
