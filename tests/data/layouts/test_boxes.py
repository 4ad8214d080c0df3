"""Boxes are cut to their picture and turned as it is, and each kind of what is left out is one line."""

import numpy as np
import pytest
from PIL import Image, ImageOps

from florence2ner.data.layouts.boxes import Box, Notes, fit, quarter_turn


@pytest.mark.parametrize(
    ("box", "inside", "note"),
    [
        ((10, 20, 30, 40), (10, 20, 30, 40), None),
        ((-0.1, 0, 200.1, 100), (0, 0, 200, 100), None),  # less than the model's locations tell apart
        ((-5, 90, 250, 120), (0, 90, 200, 100), "boxes reach over the edges of their pictures and are cut there"),
        ((10, 20, 10, 40), None, "boxes are empty and are left out"),
        ((10, 40, 30, 20), None, "boxes are empty and are left out"),
        ((float("nan"), 20, 30, 40), None, "boxes are empty and are left out"),
        ((200, 0, 210, 10), None, "boxes lie outside of their pictures and are left out"),
        ((0, -20, 10, 0), None, "boxes lie outside of their pictures and are left out"),
    ],
)
def test_a_box_is_cut_to_its_picture_or_left_out(box: Box, inside: Box | None, note: str | None) -> None:
    notes = Notes()
    assert fit(box, (200, 100), "a box", notes) == inside
    assert [str(fault) for fault in notes.faults()] == ([f"1 {note}: a box"] if note else [])


def test_each_kind_is_one_line_with_a_few_names() -> None:
    notes = Notes()
    for number in range(5):
        notes.add("odd", "are odd", number)
    notes.add("even", "are even", "x")
    assert [str(fault) for fault in notes.faults()] == ["5 are odd: 0, 1, 2 and 2 more", "1 are even: x"]


@pytest.mark.parametrize("orientation", [5, 6, 7, 8])
def test_boxes_turn_as_the_pixels_do(orientation: int) -> None:
    pixels = np.zeros((50, 80), np.uint8)
    pixels[10:20, 30:70] = 255
    stored = Image.fromarray(pixels)
    stored.getexif()[0x0112] = orientation
    assert quarter_turn((30, 10, 70, 20), (80, 50), orientation) == ImageOps.exif_transpose(stored).getbbox()
