"""Differing words: the texts stay whole, and what differs is marked, in any script and at any length."""

import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from florence2ner.report.words import mark_differences

WORDS = st.lists(st.sampled_from(["a", "red", "star", ",", "naïve", "日本", "\n", "don't", "🙂"]), max_size=9).map(
    " ".join
)


def marked(parts: list[str]) -> list[str]:
    return [part for part in parts[1::2] if part]


@pytest.mark.parametrize(
    ("truth", "prediction", "lacking", "odd"),
    [
        ("a small red star", "a small red star", [], []),
        ("a small red star", "a large red star", ["small"], ["large"]),
        ("a red star in the middle", "a red star", ["in the middle"], []),
        ("a red star", "a red star a star a star", [], ["a star a star"]),
        ("a red star.", "a red star", ["."], []),
        ("A star", "a star", ["A"], ["a"]),
        ("", "a star", [], ["a star"]),
        ("a star", "", ["a star"], []),
        ("赤い星", "青い星", ["赤"], ["青"]),
        ("two words here", "other texts here", ["two words"], ["other texts"]),
    ],
)
def test_words_that_differ_are_marked(truth: str, prediction: str, lacking: list[str], odd: list[str]) -> None:
    closest, first, second = mark_differences(prediction, [truth])
    assert closest == 0
    assert (marked(first), marked(second)) == (lacking, odd)


@given(WORDS, WORDS)
def test_the_texts_stay_whole_and_what_is_alike_is_the_same(truth: str, prediction: str) -> None:
    _, first, second = mark_differences(prediction, [truth])
    assert "".join(first) == truth
    assert "".join(second) == prediction
    assert "".join("".join(first[::2]).split()) == "".join("".join(second[::2]).split())


def test_the_closest_reference_is_compared_with() -> None:
    closest, truth, _ = mark_differences("a blue boat", ["one red star", "a blue ship", "no"])
    assert closest == 1
    assert marked(truth) == ["ship"]


def test_a_caption_without_end_takes_no_time_without_end() -> None:
    start = time.perf_counter()
    _, first, second = mark_differences("a b " * 20_000, ["b a " * 20_000])
    assert time.perf_counter() - start < 20
    assert "".join(first) == "b a " * 20_000
    assert "".join(second) == "a b " * 20_000
