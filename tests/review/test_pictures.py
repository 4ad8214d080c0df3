"""Pictures for the page: small and large, upright, kept as far as there is room, and anew when the file changes."""

from pathlib import Path

import pytest
from PIL import Image

from florence2ner.data.pictures import ImageError
from florence2ner.data.samples import ImageRef
from florence2ner.review import pictures
from florence2ner.review.pictures import Pictures


def draw(path: Path, colour: str = "red") -> ImageRef:
    Image.new("RGB", (3000, 1500), colour).save(path)
    return ImageRef.at(path)


def test_a_picture_is_made_once_until_the_file_changes(tmp_path: Path) -> None:
    made, image = Pictures(10_000_000), draw(tmp_path / "a.png")
    first, tag = made.get(image, "large"), made.tag(image, "large")
    assert made.get(image, "large") is first
    assert made.tag(image, "small") != tag
    draw(tmp_path / "a.png", "blue")
    assert made.get(image, "large") != first
    assert made.tag(image, "large") != tag


def test_what_was_not_asked_for_lately_makes_room(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    images = [draw(tmp_path / f"{number}.png") for number in range(3)]
    size = len(Pictures(10_000_000).get(images[0], "small"))
    monkeypatch.setattr(pictures, "_BUDGET", 2 * size)
    made = Pictures(10_000_000)
    first, second = made.get(images[0], "small"), made.get(images[1], "small")
    assert made.get(images[0], "small") is first
    made.get(images[2], "small")
    assert made.get(images[0], "small") is first
    assert made.get(images[1], "small") is not second


def test_too_many_pixels_are_not_decoded(tmp_path: Path) -> None:
    with pytest.raises(ImageError, match="more than the limit of 1000"):
        Pictures(1000).get(draw(tmp_path / "a.png"), "small")
