"""A caption file beside each image: what is kept or extended, where it goes, and what would share a name."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from florence2ner import UserError
from florence2ner.outputs.answers import Answer, Question, Record
from florence2ner.outputs.sidecars import Sidecars
from tests.conftest import ROOT, Caption
from tests.support import files_in, plan


def test_full_names_that_collide_too_are_refused(tmp_path: Path) -> None:
    for name in ("a.jpg", "a.png", "a.jpg.png"):
        (tmp_path / name).touch()
    with pytest.raises(UserError, match=r"a\.jpg and .*a\.jpg\.png would share the caption file .*a\.jpg\.txt: rename"):
        plan(tmp_path, on_collision="full-name")
    (tmp_path / "a.jpg.png").unlink()
    made = plan(tmp_path, on_collision="full-name")
    places = [Path(made.output.place_of(image)).name for image, _ in made.todo]
    assert places == ["a.jpg.txt", "a.png.txt"]


@pytest.mark.parametrize(
    ("extension", "tasks", "expected"),
    [
        (".txt", "<CAPTION>", "a.txt"),
        (".caption", "<CAPTION>", "a.caption"),
        (".caption", "<OD>", "a.json"),
        (".txt", "<CAPTION> <OD> <OCR>", "a.caption.txt a.od.json a.ocr.txt"),
        (".caption", "<CAPTION> <OD> <OCR>", "a.caption a.od.json a.ocr.caption"),
        (".caption", "<DETAILED_CAPTION> <CAPTION>", "a.detailed_caption.caption a.caption"),
        (".caption.txt", "<CAPTION> <OCR>", "a.caption.txt a.ocr.caption.txt"),
        (".od", "<CAPTION> <OD>", "a.caption.od a.od.json"),
        (".json", "<CAPTION> <OD>", "a.caption.json a.od.json"),
    ],
)
def test_every_task_has_a_file_with_its_name_once(tmp_path: Path, extension: str, tasks: str, expected: str) -> None:
    (tmp_path / "a.png").touch()
    made = plan(tmp_path, caption_extension=extension, task_prompt=tuple(tasks.split()))
    assert made.output.place_of(Path("a.png")) == expected.replace(" ", ", ")


def test_tasks_that_would_share_a_file_are_refused(tmp_path: Path) -> None:
    for name in ("a.png", "a.ocr.png"):
        (tmp_path / name).touch()
    with pytest.raises(
        UserError, match=r"a\.ocr\.png and .*a\.png would share the caption file .*a\.ocr\.caption: rename"
    ):
        plan(tmp_path, caption_extension=".caption", task_prompt=("<CAPTION>", "<OCR>"))
    questions = (Question("<A>", "b", is_text=True), Question("<B>", "b", is_text=True))
    with pytest.raises(UserError, match=r"<A> and <B> would share .*a\.b\.txt: choose another --caption-extension"):
        Sidecars(questions, ".txt").look([tmp_path / "a.png"])


def test_no_image_is_replaced_by_a_caption(tmp_path: Path) -> None:
    image = tmp_path / "a.txt"  # what is named is taken for an image
    image.write_text("pixels")
    with pytest.raises(UserError, match=r"the caption of .*a\.txt would replace the image .*a\.txt"):
        plan(image, existing="overwrite")
    (tmp_path / "a.png").touch()
    for extension in (".JPG", ".caption.heic"):
        with pytest.raises(UserError, match=f"--caption-extension {extension} is for images: choose another"):
            plan(tmp_path / "a.png", caption_extension=extension)


def test_existing_captions_are_kept_overwritten_or_extended(run: Caption, images: Path) -> None:
    (images / "0.txt").write_text("by hand\n")
    (images / "1.txt").write_text("")
    summary = run()
    assert (summary.done, summary.kept, summary.failed) == (4, 1, 0)
    assert (images / "0.txt").read_text() == "by hand\n"
    written = {path: path.read_text() for path in images.rglob("*.txt")}
    assert len(written) == 5
    assert all(text.endswith("\n") and text.strip() and text.count("\n") == 1 for text in written.values())

    first = (images / "0.png",)
    assert run(paths=first, existing="append", backup=True).done == 1
    text = (images / "0.txt").read_text()
    model_text = text.removeprefix("by hand ")
    assert text == f"by hand {model_text}" != model_text
    assert (images / "0.txt.bak").read_text() == "by hand\n"
    run(paths=first, existing="append", backup=True)
    assert (images / "0.txt").read_text() == text, "a run that is started again adds nothing twice"
    run(paths=first, existing="prepend", separator=" | ")
    assert (images / "0.txt").read_text() == text, "nor does one that adds the same text at the other end"
    for _ in range(2):
        run(paths=first, existing="overwrite", backup=True)
        assert (images / "0.txt").read_text() == model_text
    assert {path.name for path in images.glob("0.txt.bak*")} == {"0.txt.bak", "0.txt.bak2"}, "none needless"
    assert (images / "0.txt.bak").read_text() == "by hand\n", "the oldest text is never lost"


def write(path: Path, text: str, existing: str, **settings: Any) -> None:
    """Write an answer about the image of the same name, as a run does."""
    question = Question("<CAPTION>", "caption", is_text=True)
    output = Sidecars((question,), ".txt", existing=existing, **settings)
    output.write([Record(path.with_suffix(".png"), (8, 8), 0.1, (Answer(question, text),))])


@pytest.mark.parametrize(
    ("old", "existing", "new"),
    [
        (b"by hand\n", "append", b"by hand a dog\n"),
        (b"by hand", "prepend", b"a dog by hand\n"),
        (b"\xef\xbb\xbfby\r\nhand\r\n", "append", b"\xef\xbb\xbfby\r\nhand a dog\r\n"),
        (b"\xef\xbb\xbfby\r\nhand", "prepend", b"\xef\xbb\xbfa dog by\r\nhand\r\n"),
        (b"by\rhand\n", "append", b"by\rhand a dog\n"),
        (b"\xef\xbb\xbf\r\n", "append", b"\xef\xbb\xbfa dog\r\n"),
        (b"this is a dog\n", "append", b"this is a dog\n"),
        (b"this is a dog\r\n", "prepend", b"this is a dog\r\n"),
        (b"a dog, big\n", "append", b"a dog, big\n"),
        (b"schema dog\n", "append", b"schema dog a dog\n"),
        (b"a dogs' home\n", "prepend", b"a dog a dogs' home\n"),
    ],
)
def test_a_text_is_added_once_and_what_is_there_stays_to_the_byte(
    tmp_path: Path, old: bytes, existing: str, new: bytes
) -> None:
    (tmp_path / "a.txt").write_bytes(old)
    for _ in range(2):
        write(tmp_path / "a.txt", "a dog", existing)
        assert (tmp_path / "a.txt").read_bytes() == new


def test_one_bad_caption_file_is_named_and_the_others_are_written(
    run: Caption, images: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def summary(existing: str) -> tuple[int, int, int]:
        result = run(existing=existing, failures=tmp_path / "failures.jsonl")
        return result.done, result.kept, result.failed

    (images / "0.txt").mkdir()
    (images / "1.txt").write_bytes("caf\xe9\n".encode("latin-1"))
    os.mkfifo(images / "2.txt")
    assert summary("skip") == (2, 1, 2)
    assert summary("append") == summary("prepend") == (2, 0, 3)
    failures = [json.loads(line) for line in (tmp_path / "failures.jsonl").read_text().splitlines()]
    reasons = {Path(row["path"]).name: row["reason"] for row in failures}
    folder = "where its caption file would be is a folder or the like: move that away"
    assert reasons["0.png"] == reasons["2.png"] == folder
    assert "is not UTF-8 text" in reasons["1.png"]
    assert "images/1.png is skipped: its caption file is not UTF-8 text" in capsys.readouterr().err
    assert summary("overwrite") == (3, 0, 2), "Latin-1 is replaced like any text"
    assert (images / "1.txt").read_text()


@pytest.mark.skipif(os.geteuid() == 0 and not shutil.which("setpriv"), reason="as root this needs setpriv")
def test_a_file_that_may_not_be_read_is_replaced_but_not_extended(tmp_path: Path) -> None:
    """Root may read anything: without its powers, in a process of its own."""
    code = """if True:
        import sys
        from pathlib import Path
        from florence2ner.outputs.answers import Answer, Question, Record
        from florence2ner.outputs.sidecars import Sidecars
        question = Question("<CAPTION>", "caption", is_text=True)
        for settings in ({"existing": "append"}, {"existing": "overwrite", "backup": True}, {"existing": "overwrite"}):
            record = Record(Path(sys.argv[1]), (8, 8), 0.1, (Answer(question, "new"),))
            print([reason for _, reason in Sidecars((question,), ".txt", **settings).write([record])])
    """
    (tmp_path / "a.txt").write_text("old")
    (tmp_path / "a.txt").chmod(0)
    powers = ["setpriv", "--bounding-set=-dac_override,-dac_read_search"] if os.geteuid() == 0 else []
    command = [*powers, sys.executable, "-c", code, str(tmp_path / "a.png")]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    said = "its caption file can't be read: Permission denied"
    assert done.stdout.splitlines() == [str([said]), str([said]), "[]"], done.stderr
    assert (tmp_path / "a.txt").read_text() == "new\n"


def test_a_link_is_written_through_and_its_backup_has_the_old_text(tmp_path: Path) -> None:
    (tmp_path / "store").mkdir()
    target = tmp_path / "store" / "a.caption"
    target.write_text("old\n")
    (tmp_path / "a.txt").symlink_to("store/a.caption")
    (tmp_path / "b.txt").symlink_to("store/b.caption")
    write(tmp_path / "a.txt", "old", "overwrite", backup=True)
    assert files_in(tmp_path) == {"a.txt", "store/a.caption"}, "nothing has changed: no backup"
    write(tmp_path / "a.txt", "new", "overwrite", backup=True)
    write(tmp_path / "b.txt", "b", "skip")
    assert (tmp_path / "a.txt").is_symlink()
    assert (tmp_path / "b.txt").is_symlink()
    assert (target.read_text(), (tmp_path / "a.txt.bak").read_text()) == ("new\n", "old\n")
    assert (tmp_path / "store" / "b.caption").read_text() == "b\n"


def test_output_dir_mirrors_the_tree_and_long_names_fit(run: Caption, images: Path, tmp_path: Path) -> None:
    long = "ü" * 121 + " [1].png"  # 250 bytes, of 255 that most file systems allow
    shutil.copy(images / "0.png", images / long)
    run(output_dir=tmp_path / "out")
    assert files_in(tmp_path / "out") == {path.replace(".png", ".txt") for path in files_in(images)}
    assert not list(images.rglob("*.txt"))


def test_images_that_would_share_a_caption_are_refused_or_named_in_full(run: Caption, images: Path) -> None:
    Image.open(images / "0.png").convert("RGB").save(images / "0.jpg")
    before = files_in(images)
    with pytest.raises(UserError, match=r"0\.jpg and .*0\.png would share .*0\.txt.*--on-collision full-name"):
        run()
    assert files_in(images) == before
    run(on_collision="full-name")
    assert files_in(images) - before == {"0.jpg.txt", "0.png.txt", "1.txt", "2.txt", "sub/3.txt", "sub/4.txt"}


def test_nothing_is_added_to_a_pipe(run: Caption, images: Path, capsys: pytest.CaptureFixture[str]) -> None:
    os.mkfifo(images / "0.txt")  # opening it would wait for somebody who writes
    summary = run(existing="append")
    assert (summary.done, summary.failed) == (4, 1)
    assert "0.png is skipped: where its caption file would be is a folder or the like" in capsys.readouterr().err


def test_runs_share_no_folder_that_either_writes_to(tmp_path: Path) -> None:
    (tmp_path / "a" / "sub" / "deep").mkdir(parents=True)
    (tmp_path / "b").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "a" / "sub")
    image = tmp_path / "a" / "sub" / "deep" / "1.png"
    image.touch()
    Image.new("RGB", (8, 8)).save(tmp_path / "b" / "2.png")
    questions = (Question("<CAPTION>", "caption", is_text=True),)

    def holding(*folders: str, output_dir: Path | None = None, images: tuple[Path, ...] = (image,)) -> Any:
        roots = tuple(tmp_path / folder for folder in folders)
        return Sidecars(questions, ".txt", roots=roots, output_dir=output_dir).hold(images)

    with holding("a/sub"):
        for folders in (("a",), ("a/sub",), ("link",), ("a/sub/deep",), ("b", "a"), ()):
            with pytest.raises(UserError, match=r"the folder .* is in use by process"), holding(*folders):
                pass
        for output_dir, images in ((None, (tmp_path / "b" / "2.png",)), (tmp_path / "out", (image,))):
            with holding("b", output_dir=output_dir, images=images):
                pass
    with holding("a", "a/sub", "link"):  # one run may be given a folder twice
        pass
    with holding("a", output_dir=tmp_path / "out"), pytest.raises(UserError, match=r"the folder .*out is in use"):
        holding("b", output_dir=tmp_path / "out").__enter__()
    assert not list(tmp_path.rglob(".*"))
