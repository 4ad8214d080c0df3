"""An image and the .txt beside it: what is paired, what is left out and named, and what is refused."""

import os
from pathlib import Path
from typing import Any

import pytest

from florence2ner import EvalConfig, UserError, evaluate
from florence2ner.config.options import ReadingOptions
from florence2ner.data.layouts.choice import discover
from florence2ner.data.layouts.pairs import discover_samples, read_captions
from florence2ner.data.samples import merge
from florence2ner.data.split import SplitRule, discover_split
from tests.data.support import put, root_of


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


@pytest.mark.parametrize(("layout", "folder"), [("files", "."), ("tasks", "<CAPTION>")])
def test_images_that_need_a_package_are_named_with_it(
    tmp_path: Path, without_plugins: None, layout: Any, folder: str
) -> None:
    (tmp_path / folder).mkdir(exist_ok=True)
    for name in ("phone.HEIC", "other.heif", "a.png"):
        put(tmp_path / "a.png").rename(tmp_path / name)
        (tmp_path / folder / name).with_suffix(".txt").write_text("a caption")
    found = discover(root_of(tmp_path, ReadingOptions(layout=layout)))
    assert [sample.image.key for sample in found.samples] == ["a.png"]
    named = f"images need a Python package (pip install pillow-heif) and are left out: {tmp_path}/other.heif, "
    assert sum(line == f"2 {named}{tmp_path}/phone.HEIC" for line in merge([found, found]).report()) == 1
    (tmp_path / "a.png").unlink()
    with pytest.raises(UserError, match=r"need a Python package \(pip install pillow-heif\)"):
        discover_split([root_of(tmp_path, ReadingOptions(layout=layout))], rule=None)


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


def test_all_captions_that_are_not_utf8_are_named_in_one_go(tmp_path: Path) -> None:
    put(tmp_path / "train" / "good.png", "café")
    bad = [put(tmp_path / folder / f"{n}.png").with_suffix(".txt") for folder in ("train", "eval") for n in range(5)]
    for path in bad:
        path.write_bytes("café".encode("latin-1"))
    message = f"10 captions are not UTF-8 text, save them as UTF-8: {', '.join(map(str, bad))}"
    with pytest.raises(UserError) as error:
        discover_split([root_of(tmp_path)], rule=SplitRule(seed=0, ratio=0.1))
    assert str(error.value) == message
    with pytest.raises(UserError, match="10 captions are not UTF-8 text"):
        read_captions(tmp_path)
    with pytest.raises(UserError, match="5 captions are not UTF-8 text"):
        evaluate(EvalConfig(dataset_path=tmp_path, model_name="nowhere"))


def test_all_captions_that_cannot_be_opened_are_named_in_one_go(tmp_path: Path) -> None:
    bad = [put(tmp_path / f"{number}.png").with_suffix(".txt") for number in range(2)]
    for path in bad:
        path.symlink_to(path.name)
    names = ", ".join(f"{path} (Too many levels of symbolic links)" for path in bad)
    with pytest.raises(UserError) as error:
        discover_split([root_of(tmp_path)], rule=None)
    assert str(error.value) == f"2 captions can't be read, give yourself the right to: {names}"


def test_captions_of_another_extension_are_read_where_that_is_asked_for(tmp_path: Path) -> None:
    put(tmp_path / "a.png", "the .txt")
    put(tmp_path / "b.b.png")
    put(tmp_path / "c.png")
    for name in ("a.caption", "b.b.Caption", "c.x.caption"):
        (tmp_path / name).write_text(name)
    found = discover_samples(tmp_path, "<CAPTION>", extensions=[".caption"])
    assert [sample.caption for sample in found.samples] == ["a.caption", "b.b.Caption"]
    assert [s.caption for s in discover_samples(tmp_path, "<CAPTION>", extensions=[".X.caption"]).samples] == [
        "c.x.caption"
    ]
    assert read_captions(tmp_path, extensions=[".caption"]) == ["a.caption", "b.b.Caption", "c.x.caption"]
    for extension, said in ((".PNG", "is for images"), ("caption", r"doesn't begin with a dot: give \.caption")):
        with pytest.raises(UserError, match=f"--caption-extension {extension} {said}"):
            discover_samples(tmp_path, "<CAPTION>", extensions=[extension])


@pytest.mark.parametrize(("written", "asked"), [(".caption", ".txt"), (".txt", ".caption")])
@pytest.mark.parametrize("folder", ["", "train", "eval"])
def test_captions_of_another_extension_are_pointed_to_where_there_are_no_others(
    tmp_path: Path, written: str, asked: str, folder: str
) -> None:
    for name in "abc":
        put(tmp_path / folder / f"{name}.png").with_suffix(written).write_text(name)
    hint = f"; 3 captions are in {written} files: --caption-extension {written} reads them"
    missing = f"each image needs a {asked} of the same name beside it (3 images without a caption were found)"
    with pytest.raises(UserError) as error:
        discover_split(
            [root_of(tmp_path, ReadingOptions(caption_extension=(asked,)))], rule=SplitRule(seed=0, ratio=0.4)
        )
    where = tmp_path / ("train" if folder == "train" else "")
    assert str(error.value) == f"no image with a caption in {where}: {missing}{hint}"
    where = tmp_path / ("eval" if folder == "eval" else "")
    with pytest.raises(UserError) as error:
        evaluate(EvalConfig(dataset_path=tmp_path, model_name="nowhere", caption_extension=(asked,)))
    assert str(error.value) == f"no image with a caption in {where}: {missing}{hint}"
    with pytest.raises(UserError) as error:
        read_captions(tmp_path, extensions=[asked])
    assert str(error.value) == f"no caption ({asked}) in {tmp_path}{hint}"


def captions_of(root: Path, **how: Any) -> dict[str, list[tuple[str, ...]]]:
    captions: dict[str, list[tuple[str, ...]]] = {}
    for sample in discover_samples(root, "<CAPTION>", **how).samples:
        captions.setdefault(sample.image.key, []).append(sample.captions)
    return captions


def test_an_image_may_have_several_captions(tmp_path: Path) -> None:
    put(tmp_path / "a.png", " one \r\n\ntwo\none\n")
    (tmp_path / "a.caption").write_text("three\ntwo")
    put(tmp_path / "b.png", "four")
    put(tmp_path / "c.png", "\n \n")
    both = [".caption", ".txt"]
    assert captions_of(tmp_path) == {"a.png": [("one \n\ntwo\none",)], "b.png": [("four",)]}
    assert captions_of(tmp_path, lines="first") == {"a.png": [("one",)], "b.png": [("four",)]}
    assert captions_of(tmp_path, lines="each") == {"a.png": [("one",), ("two",)], "b.png": [("four",)]}
    assert captions_of(tmp_path, lines="random") == {"a.png": [("one", "two")], "b.png": [("four",)]}
    assert captions_of(tmp_path, extensions=both) == {
        "a.png": [("three\ntwo",), ("one \n\ntwo\none",)],
        "b.png": [("four",)],
    }
    assert captions_of(tmp_path, extensions=both, lines="first")["a.png"] == [("three",)]
    assert captions_of(tmp_path, extensions=both, lines="random")["a.png"] == [("three", "two", "one")]
    found = discover_samples(tmp_path, "<CAPTION>", extensions=both, lines="each")
    assert found.captions_without_image == ()
    assert [path.name for path in found.images_without_caption] == ["c.png"]
