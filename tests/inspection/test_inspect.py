"""The inspection as a whole: each fault is found and no other, a clean folder has none, and what the command writes."""

import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from PIL import Image

from florence2ner import InspectConfig, TrainConfig, UserError, inspect_dataset
from florence2ner.cli import main
from florence2ner.data.split import SplitRule, discover_split
from tests.conftest import Start
from tests.data.support import captioned, root_of, write_shard
from tests.inspection.support import SIZE, findings, inspected, make_clean, names, picture, put

Fault = Callable[[Path], object]


@pytest.mark.parametrize("split", [False, True], ids=["one folder", "train and eval"])
def test_nothing_is_found_in_a_clean_folder(tmp_path: Path, tiny_model: Path, split: bool) -> None:
    root = make_clean(tmp_path / "data", split=split)
    found = inspected(root, model_name=str(tiny_model))
    assert found.findings == ()
    assert found.unchecked == ()
    assert not found.breaks


def _turn_into(path: Path, data: bytes) -> None:
    path.write_bytes(data)


def _opening(root: Path) -> None:
    for number in range(5):
        text = root / f"{number}.txt"
        text.write_text(f"The image shows {text.read_text()}")


def _same_word(root: Path) -> None:
    for number in range(11):
        text = root / f"{number}.txt"
        text.write_text(f"{text.read_text()}, Sks")


FAULTS: dict[str, tuple[Fault, str]] = {
    "image-without-caption": (lambda root: (root / "1.txt").unlink(), "hurts"),
    "caption-without-image": (lambda root: (root / "lost.txt").write_text("of nothing"), "note"),
    "other-extension": (lambda root: (root / "1.caption").write_text("another"), "note"),
    "special-file": (lambda root: os.mkfifo(root / "pipe.png"), "note"),
    "empty-caption": (lambda root: (root / "1.txt").write_text(" \n"), "hurts"),
    "not-utf8": (lambda root: (root / "1.txt").write_bytes("café".encode("latin-1")), "breaks"),
    "unreadable-caption": (lambda root: _loop(root / "1.txt"), "breaks"),
    "special-token": (lambda root: (root / "1.txt").write_text("a dog</s> and <loc_5>"), "hurts"),
    "common-opening": (_opening, "note"),
    "word-everywhere": (_same_word, "note"),
    "unreadable-image": (lambda root: _turn_into(root / "1.png", (root / "1.png").read_bytes()[:200]), "hurts"),
    "tiny": (lambda root: picture(1, (63, 70)).save(root / "1.png"), "hurts"),
    "extreme-aspect": (lambda root: picture(1, (400, 99)).save(root / "1.png"), "hurts"),
    "single-colour": (lambda root: Image.new("RGB", SIZE, "teal").save(root / "1.png"), "hurts"),
    "shared-caption": (lambda root: picture(99).save(root / "1.webp"), "hurts"),
    "copies-differ": (lambda root: shutil.copy(root / "1.png", root / "2.png"), "hurts"),
    "copy": (lambda root: [shutil.copy(root / f"1.{end}", root / f"copy.{end}") for end in ("png", "txt")], "note"),
    "similar": (lambda root: put(root / "smaller.jpg", "boats once more", seed=1, size=(72, 64)), "note"),
}


def _loop(path: Path) -> None:
    path.unlink()
    path.symlink_to(path.name)


@pytest.mark.parametrize("kind", FAULTS)
def test_each_fault_is_found_and_no_other(tmp_path: Path, kind: str) -> None:
    make, severity = FAULTS[kind]
    make(make_clean(tmp_path))
    found = inspected(tmp_path)
    assert [(finding.kind, finding.severity) for finding in found.findings] == [(kind, severity)]
    assert found.findings[0].count == len(found.findings[0].examples) == 1
    assert found.breaks == (severity == "breaks")


@pytest.mark.parametrize("kind", ["copy-across-split", "similar-across-split"])
def test_what_is_in_train_and_eval_is_found(tmp_path: Path, kind: str) -> None:
    make_clean(tmp_path, split=True)
    if kind == "copy-across-split":
        for end in ("png", "txt"):
            shutil.copy(tmp_path / "train" / f"1.{end}", tmp_path / "eval" / f"seen.{end}")
    else:
        put(tmp_path / "eval" / "seen.jpg", "boats", seed=1)
    assert {kind: finding.severity for kind, finding in findings(tmp_path).items()} == {kind: "hurts"}


def test_what_is_outside_of_train_and_eval_is_found(tmp_path: Path) -> None:
    put(make_clean(tmp_path, split=True) / "lonely.png", "on its own", seed=50)
    assert names(findings(tmp_path)["outside-of-train"]) == ["lonely.png"]


@pytest.mark.parametrize("kind", ["nothing", "one image", "empty eval/", "only unreadable"])
def test_a_dataset_that_training_refuses_breaks(tmp_path: Path, kind: str) -> None:
    if kind == "one image":
        put(tmp_path / "a.png", "a caption", seed=1)
    elif kind == "empty eval/":
        make_clean(tmp_path)
        (tmp_path / "eval").mkdir()
    elif kind == "only unreadable":
        (tmp_path / "eval").mkdir()
        put(tmp_path / "eval" / "a.png", "a caption", seed=1)
        put(tmp_path / "b.png", "another", seed=2).write_bytes(b"no picture")
    found = inspected(tmp_path)
    assert found.breaks
    if kind != "only unreadable":  # training finds that out when it decodes
        with pytest.raises(UserError):
            discover_split([root_of(tmp_path)], rule=SplitRule(seed=42, ratio=0.1))


def test_the_command_says_what_is_wrong_and_exits_with_1_where_training_would_refuse(
    tmp_path: Path, command: Start
) -> None:
    root = make_clean(tmp_path / "data")
    done = command("inspect", root)
    assert (done.returncode, done.stderr) == (0, "")
    assert "nothing found that is wrong" in done.stdout
    assert "--model-name" in done.stdout  # what was not checked
    (root / "1.txt").write_bytes(b"caf\xe9 \x1b]0;owned\x07")
    done = command("inspect", root, "--json", "-")
    assert done.returncode == 1
    found = json.loads(done.stdout)
    assert [finding["kind"] for finding in found["findings"]] == ["not-utf8"]
    assert found["figures"]["captioned_images"] == 11
    assert "training would refuse this dataset" in done.stderr
    assert "\x1b" not in done.stderr


@pytest.mark.parametrize(("kind", "code"), [("clean", 0), ("hurts", 0), ("breaks", 1), ("shards", 2), ("setting", 2)])
def test_exit_codes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], kind: str, code: int
) -> None:
    one, two = make_clean(tmp_path / "one"), tmp_path / "two"
    put(two / "a.png", "of its own", seed=50)
    args = [str(one), str(two), "--eval-split-count", "3"]
    if kind == "hurts":
        (one / "1.txt").unlink()
    elif kind == "breaks":
        (two / "a.txt").unlink()
    elif kind == "shards":
        args.append(str(write_shard(tmp_path / "a.tar", captioned("one"))))
    elif kind == "setting":
        args += ["--eval-path", str(one / "nowhere")]
    monkeypatch.setattr("sys.argv", ["florence2ner", "inspect", *args])
    with pytest.raises(SystemExit) as end:
        main()
    printed = capsys.readouterr()
    assert (end.value.code or 0) == code
    assert len(printed.err.splitlines()) == (code == 2)
    assert bool(printed.out) == (code != 2)


def stamps(folder: Path) -> dict[Path, int]:
    return {path: path.stat().st_mtime_ns for path in folder.rglob("*")}


def test_the_files_are_written_and_the_dataset_is_not_touched(tmp_path: Path) -> None:
    root = make_clean(tmp_path / "data")
    FAULTS["copy"][0](root)
    before = stamps(root)
    config = InspectConfig(dataset_path=root, json_file=tmp_path / "f.json", report=tmp_path / "p.html", fix=True)
    inspect_dataset(config)
    assert stamps(root) == before
    assert json.loads((tmp_path / "f.json").read_text())["findings"][0]["examples"][0]["name"] == "1.png"
    assert (tmp_path / "p.html").read_text().startswith("<!doctype html>")


def test_outputs_that_cannot_be_written_are_refused_at_once(tmp_path: Path) -> None:
    root = make_clean(tmp_path / "data")
    (tmp_path / "file").touch()
    for name in ("json_file", "report"):
        with pytest.raises(UserError, match="choose another --"):
            inspect_dataset(InspectConfig(dataset_path=root, **{name: tmp_path / "file" / "x.html"}))


def test_a_model_that_is_none_is_refused_before_an_image_is_decoded(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("florence2ner.inspection.inspect.look_at_all", lambda *_, **__: pytest.fail("looked"))
    with pytest.raises(UserError, match="can't find the model nowhere/at-all"):
        inspect_dataset(InspectConfig(dataset_path=make_clean(tmp_path / "data"), model_name="nowhere/at-all"))
    assert capsys.readouterr().out == ""


NASTY = ["a b", "it's", "-n", "$(touch owned)", "new\nline", "\x1b[31m", "ünï", os.fsdecode(b"\xff\xfe")]


@pytest.mark.parametrize("stem", NASTY, ids=range(len(NASTY)))
def test_the_commands_of_fix_mend_what_they_are_about(
    tmp_path: Path, stem: str, capfd: pytest.CaptureFixture[str]
) -> None:
    root = make_clean(tmp_path / f"data {stem}")
    (root / "0.png").rename(root / f"{stem}.png")
    (root / "0.txt").rename(root / f"{stem}.txt")
    picture(70).save(root / f"{stem}.webp")
    (root / f"{stem}-latin.txt").write_bytes("café".encode("latin-1"))
    picture(71).save(root / f"{stem}-latin.png")
    put(root / f"{stem}-broken.png", "broken", seed=72).write_bytes(b"no picture")
    for end in ("png", "txt"):
        shutil.copy(root / f"1.{end}", root / f"{stem}-copy.{end}")
    (root / f"{stem}-lost.txt").write_text("of nothing")
    config = InspectConfig(dataset_path=root, fix=True)
    kinds = {"shared-caption", "not-utf8", "unreadable-image", "copy", "caption-without-image"}
    assert {finding.kind for finding in inspect_dataset(config).findings} == kinds
    commands = capfd.readouterr().out
    assert commands.isascii() or "ü" in commands
    done = subprocess.run(["bash", "-e"], input=commands, text=True, capture_output=True, cwd=tmp_path)
    assert (done.returncode, done.stderr) == (0, "")
    assert not list(tmp_path.rglob("owned"))
    # The caption that was copied is about one of the two images only: nobody but the user can write the other's.
    assert findings(root) == {}
    assert (root / f"{stem}-latin.txt").read_text() == "café"
    aside = {path.name for path in Path(f"{root.resolve()}.set-aside").rglob("*") if path.is_file()}
    assert {f"{stem}-broken.png", f"{stem}-broken.txt", f"{stem}-lost.txt"} < aside
    assert aside & {"1.png", f"{stem}-copy.png"}
    assert len(aside) == 5


def test_settings_are_those_of_train() -> None:
    own = {"dataset_path", "model_name"}
    shared = InspectConfig.model_fields.keys() & TrainConfig.model_fields.keys() - own
    assert {"eval_path", "too_long", "kohya_repeats", "seed", "eval_steps", "epochs"} < shared
    for name in shared:
        here, there = InspectConfig.model_fields[name], TrainConfig.model_fields[name]
        assert (here.default, here.description) == (there.default, there.description)
    with pytest.raises(ValueError, match="epochs"):
        InspectConfig(dataset_path=Path("."), epochs=0)


def test_one_process_of_several_inspects(tmp_path: Path) -> None:
    root = make_clean(tmp_path / "data")
    (root / "0.png").write_bytes(b"no picture")
    command = [sys.executable, "-m", "florence2ner", "inspect", str(root)]
    for rank in ("0", "1"):
        done = subprocess.run(command, capture_output=True, text=True, env={**os.environ, "RANK": rank})
        assert (done.returncode == 0 and not done.stdout) == (rank == "1"), done.stdout


def test_it_imports_no_torch_and_starts_fast(tmp_path: Path) -> None:
    make_clean(tmp_path / "data")
    code = f"""
import sys
from florence2ner import InspectConfig, inspect_dataset
inspect_dataset(InspectConfig(dataset_path={str(tmp_path / "data")!r}, report={str(tmp_path / "p.html")!r}))
sys.exit('torch' in sys.modules or 'transformers' in sys.modules)
"""
    assert subprocess.run([sys.executable, "-c", code], capture_output=True).returncode == 0


@pytest.mark.slow
def test_memory_does_not_grow_with_the_number_of_images(tmp_path: Path) -> None:
    """Pictures of 16 MB, decoded: a few of them are in memory at a time, however many there are."""
    peaks = []
    for count in (4, 24):
        root = tmp_path / str(count)
        for number in range(count):
            put(root / f"{number}.png", "a caption", seed=number, size=(2667, 2000))
        code = f"""
import resource
from florence2ner import InspectConfig, inspect_dataset
inspect_dataset(InspectConfig(dataset_path={str(root)!r}, decode_threads=2))
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)
"""
        start = time.monotonic()
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
        assert time.monotonic() - start < 120
        peaks.append(int(done.stdout.split()[-1]))  # KiB
    assert peaks[1] < peaks[0] + 100_000
