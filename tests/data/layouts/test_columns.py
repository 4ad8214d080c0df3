"""What rows and columns hold: the usual names, captions in cells, and the samples that they make."""

from pathlib import Path
from typing import Any

import pytest

from florence2ner.config.options import ReadingOptions
from florence2ner.data.layouts.columns import captions_in, find_column, to_samples
from florence2ner.data.samples import ImageRef
from florence2ner.errors import UserError


def test_a_named_column_wins_over_the_usual_ones() -> None:
    columns = ("caption", "text", "mine")
    assert find_column("caption", ReadingOptions(), columns) == "text"
    assert find_column("caption", ReadingOptions(caption_column="mine"), columns) == "mine"
    assert find_column("prompt", ReadingOptions(), columns) == ""


@pytest.mark.parametrize(
    ("cell", "lines", "expected"),
    [
        (" one\ntwo ", "whole", ["one\ntwo"]),
        (" one\n\ntwo ", "each", ["one", "two"]),
        (["one", "", "two"], "whole", ["one", "two"]),
        (None, "whole", []),
    ],
)
def test_a_cell_holds_captions(cell: Any, lines: str, expected: list[str]) -> None:
    assert captions_in(cell, "text", ReadingOptions(caption_lines=lines), "row 3") == expected


@pytest.mark.parametrize("cell", [7, ["one", 7], {"one": 1}])
def test_a_cell_without_text_is_one_line(cell: Any) -> None:
    with pytest.raises(UserError, match=r"row 3 has no text in the column text, but .*: mend or delete it"):
        captions_in(cell, "text", ReadingOptions(), "row 3")


def test_each_caption_of_an_image_makes_a_sample_or_one_holds_them_all() -> None:
    first, second = ImageRef.at(Path("b.png")), ImageRef.at(Path("a.png"))
    captions = {(first, "<OD>"): ["one", "two"], (second, "<CAPTION>"): []}
    samples, empty = to_samples(captions, ReadingOptions())
    assert [(s.image, s.captions) for s in samples] == [(first, ("one",)), (first, ("two",))]
    assert empty == (Path("a.png"),)
    samples, _ = to_samples(captions, ReadingOptions(caption_lines="random"))
    assert [s.captions for s in samples] == [("one", "two")]
