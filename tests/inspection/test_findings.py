"""Findings: their order and words, and text and paths of a dataset made harmless."""

import os
import subprocess
from pathlib import Path

import pytest

from florence2ner.inspection.findings import Example, Finding, bins_of, in_order, plain, shell_word


def finding(severity: str, count: int) -> Finding:
    examples = tuple(Example(str(number)) for number in range(count))
    return Finding("kind", severity, "[caption is|captions are] odd", "advice", examples)  # type: ignore[arg-type]


def test_the_gravest_and_most_frequent_come_first_and_none_without_a_case() -> None:
    given = [finding("note", 9), finding("hurts", 1), finding("breaks", 0), finding("hurts", 3), finding("breaks", 1)]
    assert [(f.severity, f.count) for f in in_order(given)] == [("breaks", 1), ("hurts", 3), ("hurts", 1), ("note", 9)]


def test_the_headline_agrees_with_the_number() -> None:
    assert finding("note", 1).headline == "caption is odd"
    assert finding("note", 2).headline == "captions are odd"


def test_text_is_one_harmless_line() -> None:
    assert plain("a\n\tb\x1b[2J\x9b ü") == r"a b\x1b[2J\x9b ü"
    assert plain(os.fsdecode(b"\xff.png")) == r"\xff.png"
    assert plain("abcdef", 4) == "abc…"


@pytest.mark.parametrize("name", ["a b", "it's", "-n", "$(id)", "`id`", "new\nline", "\x1b[31m1", "ü", b"\xff0\xfe'"])
def test_a_shell_reads_a_path_as_it_is(name: str | bytes) -> None:
    path = Path("folder", os.fsdecode(name))
    word = shell_word(path)
    assert word.isprintable()
    done = subprocess.run(["bash", "-c", f"printf %s {word}"], capture_output=True, check=True)
    assert done.stdout == bytes(path)


def test_bins_hold_every_value_once() -> None:
    assert bins_of([0, 4.9, 5, 7, 100], [5, 10], ["a", "b", "c"]) == (("a", 2), ("b", 2), ("c", 1))
