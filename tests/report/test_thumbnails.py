"""Pictures: upright, of the size that fits, within the budget however large and noisy the images are."""

import base64
import io
from pathlib import Path

import pytest
from PIL import Image

from florence2ner.data.pictures import ImageError
from florence2ner.data.samples import ImageRef
from florence2ner.report import thumbnails as module
from florence2ner.report.thumbnails import thumbnail, thumbnails


def saved(path: Path, picture: Image.Image, **options: object) -> ImageRef:
    picture.save(path, **options)
    return ImageRef.at(path)


def opened(text: str) -> Image.Image:
    assert text.startswith("data:image/jpeg;base64,")
    return Image.open(io.BytesIO(base64.b64decode(text.partition(",")[2])))


def test_a_picture_is_upright_and_as_large_as_asked(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6  # a quarter turn
    image = saved(tmp_path / "a.jpg", Image.new("RGB", (400, 100), "red"), exif=exif)
    assert opened(thumbnail(image, side=200)).size == (50, 200)
    assert opened(thumbnail(saved(tmp_path / "b.png", Image.new("RGB", (30, 20))), side=200)).size == (30, 20)


def test_a_picture_of_too_many_bytes_is_made_smaller_until_it_fits(tmp_path: Path) -> None:
    image = saved(tmp_path / "noise.png", Image.effect_noise((500, 500), 200))
    whole = thumbnail(image, side=360)
    less = thumbnail(image, side=360, most_bytes=len(whole) // 3)
    assert len(less) <= len(whole) // 3
    assert opened(less).width < opened(whole).width == 360
    assert opened(thumbnail(image, side=360, most_bytes=1)).width == 32, "never none"


def test_an_image_that_cannot_be_read_says_so_alone_and_is_missing_among_others(tmp_path: Path) -> None:
    (tmp_path / "broken.png").write_bytes(b"no picture")
    broken = ImageRef.at(tmp_path / "broken.png")
    with pytest.raises(ImageError):
        thumbnail(broken, side=100)
    good = saved(tmp_path / "good.png", Image.new("RGB", (9, 9)))
    assert [text is not None for text in thumbnails([good, broken, None, good])] == [True, False, False, True]
    assert thumbnails([]) == []
    assert thumbnails([good], max_pixels=80) == [None]


def test_all_together_stay_within_the_budget(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "BUDGET", 200_000)
    image = saved(tmp_path / "noise.png", Image.effect_noise((500, 500), 200))
    found = thumbnails([image] * 40)
    assert 0 < sum(len(text or "") for text in found) <= 200_000
