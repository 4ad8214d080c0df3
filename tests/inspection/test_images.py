"""Images: how copies are told apart, what is said of sizes, and who is set aside."""

import shutil
from pathlib import Path

from PIL import Image

from tests.inspection.support import CAPTIONS, figures, findings, inspected, make_clean, picture, put


def test_the_figures_are_those_of_the_upright_pictures(tmp_path: Path) -> None:
    make_clean(tmp_path)
    exif = Image.Exif()
    exif[0x0112] = 8
    picture(90, (200, 100)).save(tmp_path / "0.png", exif=exif)
    found = figures(tmp_path)
    assert found["width"] == "96 / 96 / 100 pixels (least / median / most)"
    assert found["height"] == "80 / 80 / 200 pixels (least / median / most)"
    assert found["squash to a square"].startswith("1.20 times in the median, 2.00 at most; 1 of 12 images")
    assert found["turned by EXIF"].startswith("1 images")


def test_a_copy_without_a_caption_is_the_one_to_set_aside(tmp_path: Path) -> None:
    make_clean(tmp_path)
    shutil.copy(tmp_path / "5.png", tmp_path / "1-first.png")
    found = findings(tmp_path)
    assert "copies-differ" not in found
    (fix,) = found["copy"].fixes
    assert "1-first.png" in fix
    assert "5.txt" not in fix


def test_near_duplicates_on_both_sides_are_told_from_those_on_one(tmp_path: Path) -> None:
    make_clean(tmp_path, split=True)
    put(tmp_path / "eval" / "seen.jpg", "boats once more", seed=1, size=(72, 64))
    found = findings(tmp_path)
    assert [*found] == ["similar-across-split"]
    assert "--split-by-similarity 4" in found["similar-across-split"].advice
    kept = findings(tmp_path, split_by_similarity=4)
    assert {kind: finding.count for kind, finding in kept.items()} == {"near-duplicate-of-eval": 1, "similar": 1}
    assert [image.key for image in kept["near-duplicate-of-eval"].examples[0].images] == ["train/1.png"]


def test_copies_differ_only_in_captions_for_the_same_task(tmp_path: Path) -> None:
    make_clean(tmp_path / "one")
    for number in range(12):
        put(tmp_path / "two" / f"{number}.png", f"{number} {CAPTIONS[number]}", seed=number)
    other = {"path": str(tmp_path / "two"), "task_prompt": "<DETAILED_CAPTION>"}
    assert [*findings([str(tmp_path / "one"), other])] == ["copy"]
    other = {"path": str(tmp_path / "two")}
    assert findings([str(tmp_path / "one"), other])["copies-differ"].count == 12


def test_single_colours_are_not_similar_to_each_other(tmp_path: Path) -> None:
    make_clean(tmp_path)
    for number, colour in enumerate(("#808080", "#828282")):
        path = put(tmp_path / f"flat{number}.png", f"number {number}", seed=1)
        Image.new("RGB", (96, 80), colour).save(path)
    assert {kind: finding.count for kind, finding in findings(tmp_path).items()} == {"single-colour": 2}


def test_shapes_that_differ_are_not_similar(shapes: Path) -> None:
    """The demo's pictures differ in a few pixels of 64 x 64 only."""
    found = [example for finding in inspected(shapes).findings for example in finding.examples]
    for example in found:
        captions = {image.path.with_suffix(".txt").read_text() for image in example.images}
        assert len(captions) <= 1, captions


def test_the_distance_is_a_setting(tmp_path: Path) -> None:
    make_clean(tmp_path)
    picture(1, (960, 800)).resize((70, 64), Image.Resampling.BOX).save(tmp_path / "other.jpg", quality=20)
    (tmp_path / "other.txt").write_text("boats again")
    assert "similar" in findings(tmp_path, similarity=10)
