"""What train says of a dataset at its start: nothing in a usual one, a line where captions are alike or shared."""

from pathlib import Path

from florence2ner.data.layouts.choice import discover
from florence2ner.demo import draw_dataset
from florence2ner.inspection.at_start import notes_at_start
from tests.data.support import root_of
from tests.inspection.support import make_clean, put


def notes(path: Path) -> list[str]:
    root = root_of(path)
    return notes_at_start(discover(root).samples, [root])


def test_there_is_nothing_to_say_of_a_usual_dataset(tmp_path: Path) -> None:
    draw_dataset(tmp_path / "shapes", 40, seed=1)
    assert notes(tmp_path / "shapes") == notes(make_clean(tmp_path / "clean")) == []


def test_captions_that_are_alike_or_shared_are_named(tmp_path: Path) -> None:
    for number in range(10):
        put(tmp_path / "same" / f"{number}.png", "a photo", seed=number)
        put(tmp_path / "opening" / f"{number}.png", f"The image shows {number} dogs", seed=number)
    more = f"; florence2ner inspect {tmp_path}"
    assert notes(tmp_path / "same") == [f"10 of 10 captions are the same: a photo{more}/same says more"]
    assert notes(tmp_path / "opening") == [
        f"10 of 10 captions begin with the same 3 words: the image shows{more}/opening says more"
    ]
    put(make_clean(tmp_path / "shared") / "3.jpg", None, seed=50)
    assert notes(tmp_path / "shared") == [
        f"1 captions are shared by images that differ in their extension only: 3.jpg and 3.png{more}/shared says more"
    ]
