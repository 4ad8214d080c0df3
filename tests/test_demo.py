"""The drawn dataset: the same for the same seed, and each caption says what the pixels show."""

import json
import random
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageColor

from florence2ner.demo import COLOURS, FORMS, PLACES, SIDE, SIZES, demo, draw_dataset, draw_shape
from florence2ner.errors import UserError
from tests.support import box_of_shape, files_in

SHARES = {"star": (0, 0.45), "triangle": (0.45, 0.6), "circle": (0.7, 0.85), "square": (0.95, 1)}  # of its box


def test_every_caption_says_what_the_pixels_show() -> None:
    rng = random.Random(0)
    seen: set[str] = set()
    for _ in range(300):
        picture, caption = draw_shape(rng)
        _, size, colour, form, where = caption.split(maxsplit=4)
        seen |= {size, colour, form, where}
        pixels = np.asarray(picture)
        assert pixels.shape == (SIDE, SIDE, 3)
        drawn = (pixels == ImageColor.getrgb(COLOURS[colour])).all(-1)
        assert len(np.unique(pixels[~drawn], axis=0)) == 1, f"one shape on one ground: {caption}"

        y, x = drawn.nonzero()
        width, height = np.ptp(x) + 1, np.ptp(y) + 1
        assert box_of_shape(picture) == (x.min(), y.min(), x.min() + width, y.min() + height)
        assert (max(width, height) > 20) == (size == "large"), caption
        low, high = SHARES[form]
        assert low < drawn.sum() / (width * height) <= high, caption
        across, down = (("left", "middle", "right")[int(x.mean() / SIDE * 3)], ("top", "middle", "bottom"))
        assert across in where, caption
        assert down[int(y.mean() / SIDE * 3)] in where, caption
    assert seen == {*SIZES, *COLOURS, *FORMS, *PLACES}, "all there is to draw"


def test_a_seed_always_draws_the_same_and_another_something_else(tmp_path: Path) -> None:
    for name, seed in (("first", 1), ("again", 1), ("other", 2)):
        draw_dataset(tmp_path / name, 5, seed=seed)
    first, again, other = (
        {name: (tmp_path / folder / name).read_bytes() for name in files_in(tmp_path / folder)}
        for folder in ("first", "again", "other")
    )
    assert first.keys() == {f"000{n}.{end}" for n in range(5) for end in ("png", "txt")}
    assert first == again
    assert first != other


def test_captions_stand_beside_the_pictures_or_all_in_one_file(tmp_path: Path) -> None:
    draw_dataset(tmp_path / "beside", 3, seed=4)
    draw_dataset(tmp_path / "apart", 3, seed=4, captions=False)
    assert files_in(tmp_path / "apart") == {"0000.png", "0001.png", "0002.png", "truth.json"}
    truth = json.loads((tmp_path / "apart" / "truth.json").read_text())
    for name, caption in truth.items():
        assert (tmp_path / "beside" / name).with_suffix(".txt").read_text() == f"{caption}\n"
        one, other = (Image.open(tmp_path / folder / name).tobytes() for folder in ("beside", "apart"))
        assert one == other


def test_a_folder_that_exists_is_refused_and_left_as_it_is(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"exists already: delete it or name another folder") as error:
        demo(tmp_path)
    assert str(tmp_path) in str(error.value)
    with pytest.raises(FileExistsError):
        draw_dataset(tmp_path, 1, seed=0)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("report", "reason"), [("page.txt", r"must end in \.html"), ("file/page.html", "choose another --report")]
)
def test_a_report_that_cannot_be_written_is_refused_before_anything_is_drawn(
    tmp_path: Path, report: str, reason: str
) -> None:
    (tmp_path / "file").write_text("no folder")
    with pytest.raises(UserError, match=reason):
        demo(tmp_path / "new", tmp_path / report)
    assert not (tmp_path / "new").exists()
