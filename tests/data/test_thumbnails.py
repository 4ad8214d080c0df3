"""Small pictures: upright, in proportion, never larger than the image."""

import io
from pathlib import Path

import pytest
from PIL import Image

from florence2ner.data.pictures import ImageError
from florence2ner.data.samples import ImageRef
from florence2ner.data.thumbnails import make_thumbnail


@pytest.mark.parametrize(
    ("size", "orientation", "expected"),
    [((800, 400), 1, (100, 50)), ((800, 400), 6, (50, 100)), ((30, 20), 1, (30, 20)), ((5000, 2), 1, (100, 1))],
)
def test_a_thumbnail_fits(tmp_path: Path, size: tuple[int, int], orientation: int, expected: tuple[int, int]) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    Image.new("RGB", size, "red").save(tmp_path / "a.jpg", exif=exif)
    made = Image.open(io.BytesIO(make_thumbnail(ImageRef.at(tmp_path / "a.jpg"), 100, max_pixels=10_000_000)))
    assert (made.format, made.size) == ("JPEG", expected)


def test_what_cannot_be_read_has_none(tmp_path: Path) -> None:
    with pytest.raises(ImageError):
        make_thumbnail(ImageRef.at(tmp_path / "nowhere.png"), 100, max_pixels=1000)
