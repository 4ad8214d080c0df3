"""Repeats of folders named as kohya names them."""

from pathlib import Path

import pytest

from florence2ner.data.repeats import apply_repeats
from florence2ner.data.samples import ImageRef, Sample


def samples(*names: str, weight: float = 1.0) -> list[Sample]:
    return [Sample(ImageRef(name, Path("/data", name)), "<CAPTION>", ("x",), weight) for name in names]


def test_a_folder_says_how_often_its_images_are_taken() -> None:
    found = samples(
        "10_cats/a.png", "10_cats/b.png", "3_my dogs/4_big/c.png", "train/2_x/d.png", "e.png", "x10_y/f.png"
    )
    repeated, notes = apply_repeats(found, Path("/data"), wanted=True)
    assert [sample.weight for sample in repeated] == [10, 10, 3, 2, 1, 1]
    assert notes == ["repeats in each epoch: 10 x 2 in 10_cats, 2 x 1 in 2_x, 3 x 1 in 3_my dogs"]
    half, _ = apply_repeats(samples("10_cats/a.png", weight=0.5), Path("/data"), wanted=True)
    assert half[0].weight == 5
    assert apply_repeats(samples("a.png"), Path("/data/7_all"), wanted=True)[0][0].weight == 7


def test_no_repeats_leave_a_folder_out_as_in_kohya() -> None:
    repeated, notes = apply_repeats(samples("0_off/a.png", "1_on/b.png"), Path("/data"), wanted=True)
    assert [sample.image.key for sample in repeated] == ["1_on/b.png"]
    assert notes == ["repeats in each epoch: 0 x 1 in 0_off, 1 x 1 in 1_on"]


@pytest.mark.parametrize(
    ("names", "wanted", "note"),
    [
        (["10_cats/a.png", "5_x/b.png"], False, "--kohya-repeats: 10_cats, 5_x"),
        (["cats/a.png"], True, "no folder is named as kohya names them"),
    ],
)
def test_repeats_that_are_not_asked_for_or_not_there_are_told(names: list[str], wanted: bool, note: str) -> None:
    found = samples(*names)
    unchanged, (line,) = apply_repeats(found, Path("/data"), wanted=wanted)
    assert list(unchanged) == found
    assert note in line


def test_nothing_is_said_where_there_is_nothing_to_say() -> None:
    assert apply_repeats(samples("cats/a.png"), Path("/data"), wanted=False)[1] == []
