"""The walk that finds images: links, odd names, folders that can't be read, plugins that are missing."""

import os
import socket
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from florence2ner.data import formats
from florence2ner.data.formats import LeftOut, discover_images, sidecar_of
from florence2ner.data.layouts.pairs import discover_samples
from florence2ner.data.pictures import ImageError, load_image
from florence2ner.data.samples import ImageRef
from florence2ner.data.split import SplitRule, discover_split
from florence2ner.data.split_file import Contents, read_split, split_to_json
from florence2ner.display import Display
from florence2ner.files import write_text
from tests.conftest import ROOT
from tests.data.support import PICTURE, put, root_of
from tests.support import without_roots_powers


def test_discover_images_takes_files_and_folders_once(tmp_path: Path) -> None:
    first, second = put(tmp_path / "a.png"), put(tmp_path / "sub" / "b.png")
    assert discover_images([second, tmp_path]) == [second, first]


def test_a_file_named_twice_is_one_image(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    put(tmp_path / "a.png")
    (tmp_path / "link").symlink_to(".")
    (tmp_path / "other.png").symlink_to("a.png")  # a link to a file is a file of its own
    monkeypatch.chdir(tmp_path)
    names = ["a.png", "./a.png", "link/a.png", str(tmp_path / "a.png"), ".", "other.png"]
    assert discover_images(map(Path, names)) == [Path("a.png"), Path("other.png")]


def test_without_its_plugin_a_heic_is_listed_but_not_trained_on_and_says_what_it_needs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(formats.PLUGINS, ".heic", "no_such_plugin")
    (tmp_path / "a.heic").write_bytes(b"\0\0\0\x18ftypheic")
    (tmp_path / "a.txt").write_text("a caption")
    assert discover_images([tmp_path]) == [tmp_path / "a.heic"]
    assert discover_samples(tmp_path, "<CAPTION>").samples == ()
    with pytest.raises(ImageError, match=r"^needs the Python package no_such_plugin$"):
        load_image(ImageRef.at(tmp_path / "a.heic"))


def names_below(root: Path) -> list[str]:
    return [path.relative_to(root).as_posix() for path in discover_images([root])]


@pytest.mark.parametrize(("link", "real"), [("a", "b"), ("b", "a")])
def test_a_linked_folder_is_listed_once_under_its_real_name(tmp_path: Path, link: str, real: str) -> None:
    (tmp_path / real / "deep").mkdir(parents=True)
    (tmp_path / real / "deep" / "x.jpg").touch()
    (tmp_path / link).symlink_to(real)
    (tmp_path / real / "deep" / "up").symlink_to("../..")  # a loop
    assert names_below(tmp_path) == [f"{real}/deep/x.jpg"]


def test_links_that_lead_outside_are_followed_once(tmp_path: Path) -> None:
    root, outside = tmp_path / "root", tmp_path / "outside"
    root.mkdir()
    outside.mkdir()
    (outside / "x.png").touch()
    (outside / "back").symlink_to(root)
    (root / "one").symlink_to(outside)
    (root / "two").symlink_to(outside)
    (root / "file.JPG").symlink_to(outside / "x.png")
    (root / "gone.png").symlink_to("nowhere")
    (root / "gone").symlink_to("nowhere")
    assert names_below(root) == ["file.JPG", "gone.png", "one/x.png"]


def test_a_folder_that_cannot_be_read_is_named(tmp_path: Path) -> None:
    (tmp_path / "closed").mkdir(mode=0)
    (tmp_path / "a.png").touch()
    code = (
        "import sys, pathlib; from florence2ner.data.formats import LeftOut, discover_images\n"
        "from florence2ner.data.layouts.pairs import discover_samples\n"
        "root, left_out = pathlib.Path(sys.argv[1]), LeftOut()\n"
        "assert discover_images([root], left_out) == [root / 'a.png']\n"
        "assert left_out == LeftOut([root / 'closed']), left_out\n"
        "print(discover_samples(root, '<CAPTION>').report()[-1])"
    )
    result = without_roots_powers("-c", code, tmp_path)
    assert result.returncode == 0, result.stderr
    assert result.stdout == f"1 folders can't be read and are left out: {tmp_path}/closed\n"


def test_pipes_sockets_and_devices_are_left_out_and_named_also_behind_links(tmp_path: Path) -> None:
    folder = tmp_path / "sub"
    folder.mkdir()
    image = put(folder / "a.png")
    (folder / "link.png").symlink_to(image)
    (folder / "gone.png").symlink_to("nowhere")  # reported when it is opened
    os.mkfifo(folder / "pipe.JPG")
    os.mkfifo(folder / "pipe.pdf")  # nobody looks for it
    (folder / "zero.png").symlink_to("/dev/zero")
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(folder / "socket.png"))
        left_out = LeftOut()
        assert discover_images([tmp_path], left_out) == [image, folder / "gone.png", folder / "link.png"]
        assert sorted(left_out.special) == [folder / name for name in ("pipe.JPG", "socket.png", "zero.png")]
        left_out.special.sort()
        (line,) = left_out.report()
    assert line == (
        f"3 pipes, sockets or devices have the name of a file and are left out: {folder}/pipe.JPG, "
        f"{folder}/socket.png, {folder}/zero.png"
    )


def test_order_is_each_folders_files_then_its_folders(tmp_path: Path) -> None:
    for name in ("b/a.png", "b/c/z.png", "b-2/a.png", "z.png", "B.png", ".hidden/a.png", "b/.a.png"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    assert names_below(tmp_path) == ["B.png", "z.png", "b/a.png", "b/c/z.png", "b-2/a.png"]


ODD_NAMES = [
    "a b[1]*?.png",
    "ü 日本 🙂.png",
    "two\nlines.png",
    "n" * 251 + ".png",
    os.fsdecode(b"caf\xe9.png"),
    "a..PNG",
]


def test_odd_names_work_throughout(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    root = tmp_path / os.fsdecode(b"folder \xe9")
    root.mkdir()
    for turns, name in enumerate(ODD_NAMES):  # so that no two are equal
        Image.fromarray(np.roll(PICTURE, turns, axis=0)).save(root / name, "PNG")
        write_text(sidecar_of(root / name), "a caption")
    assert sorted(root.iterdir()) == sorted({root / n for n in ODD_NAMES} | {sidecar_of(root / n) for n in ODD_NAMES})
    found = discover_samples(root, "<CAPTION>")
    assert {sample.image.path.name for sample in found.samples} == set(ODD_NAMES)
    for sample in found.samples:
        assert load_image(sample.image).size == (48, 32)
        Display(is_main=True).warn(f"{sample.image} is skipped")
    shown = capfd.readouterr().err
    assert "\\udce9.png is skipped" in shown
    assert "ü 日本 🙂.png" in shown
    split, _ = discover_split([root_of(root)], rule=SplitRule(seed=0, ratio=0.3))
    contents = Contents.of(split, {})
    write_text(tmp_path / "split.json", split_to_json(split, [root_of(root)], contents))
    assert read_split(tmp_path / "split.json", [root_of(root)], found) == (split, contents)


def test_discovery_imports_neither_pillow_nor_torch(tmp_path: Path) -> None:
    (tmp_path / "a.png").touch()
    code = (
        "import sys, pathlib; from florence2ner.data.formats import discover_images; "
        "assert discover_images([pathlib.Path(sys.argv[1])]); sys.exit(bool({'PIL', 'torch'} & {*sys.modules}))"
    )
    assert subprocess.run([sys.executable, "-c", code, str(tmp_path)], cwd=ROOT).returncode == 0
