"""References to images, which are opened without a wait; and the lines about what was left out."""

import os
from collections import Counter
from pathlib import Path

import pytest

from florence2ner.data.formats import LeftOut
from florence2ner.data.samples import Discovery, Fault, ImageRef, Sample, merge


def test_the_key_is_the_path_below_the_root_with_slashes() -> None:
    image = ImageRef.below(Path("/data/photos"), Path("/data/photos/a b/é.PNG"))
    assert (image.key, image.path, str(image)) == (
        "a b/é.PNG",
        Path("/data/photos/a b/é.PNG"),
        "/data/photos/a b/é.PNG",
    )


@pytest.mark.parametrize("root", ["/data/photos", "."])
def test_the_key_of_an_image_outside_of_the_root_is_the_way_there(root: str) -> None:
    path = Path(os.path.abspath(root)).parent / "other" / "a.png"
    assert ImageRef.below(Path(root), path) == ImageRef("../other/a.png", path)


@pytest.mark.parametrize("path", ["a.png", "some/a.png", "/data/a.png"])
def test_without_a_root_the_key_is_the_path_as_given(path: str) -> None:
    assert ImageRef.at(Path(path)) == ImageRef(path, Path(path))


@pytest.mark.parametrize(("name", "suffix"), [("a.PNG", ".png"), ("a.b.JpeG", ".jpeg"), ("a", ""), (".png", "")])
def test_the_suffix_is_the_last_extension_in_lower_case(name: str, suffix: str) -> None:
    assert ImageRef.at(Path("some.dir", name)).suffix == suffix


def test_a_file_is_opened_for_reading_and_so_is_a_link_to_one(tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(b"pixels")
    (tmp_path / "link.png").symlink_to("a.png")
    for name in ("a.png", "link.png"):
        with ImageRef.at(tmp_path / name).open() as file:
            assert file.read() == b"pixels"


@pytest.mark.parametrize(
    ("kind", "reason"),
    [
        ("pipe", "not a regular file"),  # opening it would wait for somebody who writes
        ("folder", "not a regular file"),
        ("device", "not a regular file"),
        ("broken link", "broken link"),
        ("nothing", "No such file or directory"),
    ],
)
def test_what_is_no_file_is_refused_with_a_reason_that_names_no_path(tmp_path: Path, kind: str, reason: str) -> None:
    path = tmp_path / "a.png"
    match kind:
        case "pipe":
            os.mkfifo(path)
        case "folder":
            path.mkdir()
        case "device":
            path.symlink_to("/dev/zero")
        case "broken link":
            path.symlink_to("gone.png")
    with pytest.raises(OSError, match=reason) as error:
        ImageRef.at(path).open()
    assert error.value.strerror == reason


def test_a_samples_caption_is_its_first() -> None:
    image = ImageRef.at(Path("a.png"))
    assert Sample(image, "<CAPTION>", ("one", "two")).caption == "one"
    assert Sample(image, "<CAPTION>").captions == ()


def test_a_report_has_a_line_for_each_kind_of_file_that_is_left_out() -> None:
    images = tuple(Path(f"{number}.png") for number in range(5))
    found = Discovery(
        (), images, (Path("x.txt"),), LeftOut([Path("locked"), Path("gone")], [Path("a.png")]), notes=("7 are odd",)
    )
    assert found.report() == [
        "5 images have no caption and are left out: 0.png, 1.png, 2.png and 2 more",
        "1 captions have no image and are left out: x.txt",
        "2 folders can't be read and are left out: locked, gone",
        "1 pipes, sockets or devices have the name of a file and are left out: a.png",
        "7 are odd",
    ]
    assert Discovery((Sample(ImageRef.at(images[0]), "<CAPTION>"),)).report() == []
    assert Discovery((), captions_without_image=images[:1]).report() == [
        "1 captions have no image and are left out: 0.png"
    ]


def test_a_fault_that_is_found_in_two_folders_counts_once() -> None:
    parts = [Discovery((), faults=(Fault("odd", "are odd", names),)) for names in (("a", "b", "b"), ("b", "c"))]
    assert merge(parts).report() == ["4 are odd: a, b, b and 1 more"]


def test_of_several_captions_one_is_drawn_for_each_epoch_and_all_come_alike() -> None:
    captions = ("one", "two", "three")
    samples = [Sample(ImageRef(f"{n}.png", Path(f"{n}.png")), "<CAPTION>", captions) for n in range(30)]
    drawn = [[sample.caption_at(epoch, 7) for sample in samples] for epoch in range(40)]
    assert drawn == [[sample.caption_at(epoch, 7) for sample in samples] for epoch in range(40)]
    assert drawn != [[sample.caption_at(epoch, 8) for sample in samples] for epoch in range(40)]
    numbers = Counter(caption for epoch in drawn for caption in epoch)
    assert all(330 < numbers[caption] < 470 for caption in captions), "of 1200"
    assert all(len({epoch[n] for epoch in drawn}) == 3 for n in range(30)), "each image comes with all of them"
    assert samples[0].caption_at(None, 7) == "one", "evaluation has one reference"
