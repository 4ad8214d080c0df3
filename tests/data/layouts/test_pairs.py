"""An image and the .txt beside it: what is paired, what is left out and named, and what is refused."""

import os
from pathlib import Path

import pytest

from florence2ner.data.layouts.pairs import discover_samples
from florence2ner.errors import UserError
from tests.data.support import put


def test_discovery_pairs_recursively_and_reports_what_is_left_out(tmp_path: Path) -> None:
    put(tmp_path / "b.png", "  two words\n")
    put(tmp_path / "sub" / "dir" / "A.b.JPG", "\ufeffwith a BOM")
    put(tmp_path / "alone.webp")
    put(tmp_path / "empty.png", "")
    (tmp_path / "orphan.txt").write_text("no image")
    put(tmp_path / ".hidden.png", "hidden")
    found = discover_samples(tmp_path, "<CAPTION>")
    assert [(s.image.path.name, s.caption) for s in found.samples] == [
        ("b.png", "two words"),
        ("A.b.JPG", "with a BOM"),
    ]
    assert [path.name for path in found.images_without_caption] == ["alone.webp", "empty.png"]
    assert [path.name for path in found.captions_without_image] == ["orphan.txt"]
    assert found.report() == [
        f"2 images have no caption and are left out: {tmp_path}/alone.webp, {tmp_path}/empty.png",
        f"1 captions have no image and are left out: {tmp_path}/orphan.txt",
    ]


def test_a_caption_that_is_a_pipe_is_refused(tmp_path: Path) -> None:
    (tmp_path / "a.png").touch()
    os.mkfifo(tmp_path / "a.txt")
    with pytest.raises(UserError, match=r"a\.txt is not a regular file"):
        discover_samples(tmp_path, "<CAPTION>")
