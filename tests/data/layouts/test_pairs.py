"""An image and the .txt beside it: what is paired, what is left out and named, and what is refused."""

import os
from pathlib import Path

from florence2ner.data.layouts.pairs import discover_samples, read_captions
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


def test_pipes_are_left_out_and_named_once(tmp_path: Path) -> None:
    put(tmp_path / "a.png", "a caption")
    image = put(tmp_path / "b.png")
    os.mkfifo(tmp_path / "b.txt")  # opening it would wait for somebody who writes
    (tmp_path / "c.txt").write_text("of a pipe")
    os.mkfifo(tmp_path / "c.png")
    found = discover_samples(tmp_path, "<CAPTION>")
    assert [sample.caption for sample in found.samples] == ["a caption"]
    assert found.images_without_caption == (image,)
    assert found.captions_without_image == (tmp_path / "c.txt",)
    assert found.report()[-1] == (
        f"2 pipes, sockets or devices have the name of a file and are left out: {tmp_path}/b.txt, {tmp_path}/c.png"
    )
    assert read_captions(tmp_path) == ["a caption", "of a pipe"]
