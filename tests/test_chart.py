"""A curve as text and as a picture."""

import pytest

from florence2ner.chart import as_picture, in_a_line, in_text


def test_a_curve_rises_from_the_lower_left() -> None:
    assert in_text([0, 1, 2, 3, 4, 5, 6, 7], width=4, height=2) == ["  ⡠⠊".replace(" ", "⠀"), "⡠⠊  ".replace(" ", "⠀")]


def test_a_leap_leaves_no_hole() -> None:
    assert in_text([0, 0, 1, 1], width=2, height=2) == ["⠀⡏", "⣀⠇"]


@pytest.mark.parametrize("values", [[0.0], [0.0, 0.0], [3.0], [1.0] * 1000])
def test_any_curve_has_its_place(values: list[float]) -> None:
    lines = in_text(values, width=5, height=3)
    dots = [line for line in lines if set(line) != {"⠀"}]
    assert [len(line) for line in lines] == [5, 5, 5]
    assert dots == [lines[0] if values[0] else lines[-1]]


def test_the_picture_has_the_curve_between_its_lines() -> None:
    picture = as_picture([0, 1], title="<b>", top="1e-05", width=400, height=200)
    blue = [(x, y) for x in range(400) for y in range(200) if picture.getpixel((x, y)) == (0x2B, 0x6C, 0xB0)]
    columns = {x for x, _ in blue}
    assert columns >= set(range(62, 338))
    assert min(blue)[1] > 130
    assert max(blue)[1] < 70


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ([], ""),
        ([5.0], "▁"),
        ([3.0, 3.0], "▁▁"),
        ([0, 1, 2, 3, 4, 5, 6, 7], "▁▂▃▄▅▆▇█"),
        ([9, 9, 0, 1, 2, 3, 4, 5, 6, 7], "▁▂▃▄▅▆▇█"),
        ([-1.0, float("nan"), 1.0, float("inf")], "▁ █ "),
        ([float("nan")], " "),
    ],
)
def test_a_line_has_the_newest_values_from_the_lowest_to_the_highest(values: list[float], expected: str) -> None:
    assert in_a_line(values, width=8) == expected
