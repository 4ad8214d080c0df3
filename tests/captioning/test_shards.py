"""Shards in, shards or JSON Lines out: every image once, and a shard that was begun is gone on with."""

import json
import re
import shutil
import signal
import tarfile
from collections.abc import Mapping
from pathlib import Path

import pytest

from florence2ner.config.options import ReadingOptions
from florence2ner.data.layouts import tables
from florence2ner.data.shards import Faults, read_shards
from florence2ner.errors import UserError
from tests.conftest import Caption, Start
from tests.data.support import write_shard
from tests.support import assert_one_clear_line, files_in, finish


@pytest.fixture
def shards(tmp_path: Path, shapes: Path) -> str:
    for number in range(2):
        write_shard(tmp_path / "in" / f"{number}.tar", pictures(shapes, range(3 * number, 3 * number + 3)))
    return str(tmp_path / "in" / "{0..1}.tar")


@pytest.fixture
def large_shards(tmp_path: Path, shapes: Path) -> str:
    """Three shards of 24 images each: enough for a signal in the middle of one."""
    for shard in range(3):
        members = {f"{n}.png": (shapes / f"{(shard + n) % 24:04d}.png").read_bytes() for n in range(24)}
        write_shard(tmp_path / "large" / f"{shard}.tar", members)
    return str(tmp_path / "large" / "{0..2}.tar")


def pictures(shapes: Path, numbers: range) -> dict[str, bytes]:
    return {f"{n}.png": (shapes / f"{n:04d}.png").read_bytes() for n in numbers}


def rows(*files: Path) -> dict[str, str]:
    """The captions in files of JSON Lines, by image: each has one."""
    read = [json.loads(line) for file in files for line in file.read_text().splitlines()]
    assert len({row["path"] for row in read}) == len(read), "no image twice"
    return {row["path"]: row["caption"] for row in read}


def contents(folder: Path) -> Mapping[str, object]:
    """What is in the files of a folder, by name; of JSON Lines the captions in their order. Locks are files, too."""
    read = {
        file: list(rows(file).items()) if file.suffix == ".jsonl" else file.read_bytes() for file in folder.iterdir()
    }
    return {file.name: content for file, content in read.items()}


def test_each_shard_gets_its_captions_and_goes_on_where_it_was_left(run: Caption, shards: str, tmp_path: Path) -> None:
    out = tmp_path / "out"
    first = run(paths=(shards,), output_dir=out)
    assert (first.done, first.kept, first.failed) == (6, 0, 0)
    written = contents(out)
    assert [*rows(out / "0.jsonl"), *rows(out / "1.jsonl")] == [f"{n // 3}/{n}.png" for n in range(6)]
    assert run(paths=(shards,), output_dir=out).done == 0
    lines = (out / "1.jsonl").read_text().splitlines(keepends=True)
    (out / "1.jsonl").unlink()
    (out / "1.unfinished.jsonl").write_text(lines[0] + lines[1][:20])  # as a kill leaves it
    (tmp_path / "in" / "0.tar").write_bytes(b"it is not read again")
    again = run(paths=(shards,), output_dir=out)
    assert (again.done, again.kept, again.failed) == (2, 1, 0)
    assert contents(out) == written


def test_new_shards_are_read_by_tarfile_and_trained_on(
    run: Caption, shapes: Path, shards: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run(paths=(shards,), output=tmp_path / "captions.jsonl")
    expected = rows(tmp_path / "captions.jsonl")
    out = tmp_path / "out"
    flags = {"paths": (shards,), "output_dir": out, "shard_form": "tar"}
    assert run(**flags).done == 6
    with tarfile.open(out / "1.tar") as archive:
        members = {name: file.read() for name in archive.getnames() if (file := archive.extractfile(name))}
    assert list(members) == ["3.png", "3.txt", "4.png", "4.txt", "5.png", "5.txt"]
    assert members["3.png"] == (shapes / "0003.png").read_bytes()
    samples = read_shards([str(out / "0.tar"), str(out / "1.tar")], ReadingOptions(), Faults())
    assert {sample.image.name.replace(".tar", ""): sample.caption for sample in samples} == expected
    written = contents(out)
    (out / "0.tar").rename(out / ".0.tar.unfinished")  # as a kill leaves it, between the last caption and the new shard
    (out / "0.unfinished.jsonl").write_text("".join((tmp_path / "captions.jsonl").read_text().splitlines(True)[:3]))
    (out / "1.unfinished.jsonl").touch()  # and, here, just after it
    again = run(**flags)
    assert (again.done, again.kept) == (0, 3)
    assert contents(out) == written
    capsys.readouterr()
    assert run(**flags).done == 0
    assert "nothing to do: all 2 shards have captions" in capsys.readouterr().err


def test_captions_beside_unpacked_shards_are_a_dataset(run: Caption, shards: str, tmp_path: Path) -> None:
    for outputs in ({"output": tmp_path / "one" / "captions.jsonl"}, {"output_dir": tmp_path / "several"}):
        run(paths=(shards,), **outputs)
    for folder in (tmp_path / "one", tmp_path / "several"):
        for number in range(2):
            with tarfile.open(tmp_path / "in" / f"{number}.tar") as archive:
                archive.extractall(folder / str(number), filter="data")
        found = tables.discover(folder, ReadingOptions())
        assert not found.report()
        captions = rows(*sorted(folder.glob("*.jsonl")))
        assert {sample.image.name: sample.caption for sample in found.samples} == captions
        assert len(captions) == 6


def test_one_file_for_all_goes_on_with_more_shards_and_after_each_kind_of_kill(
    run: Caption, shards: str, tmp_path: Path
) -> None:
    run(paths=(shards,), output_dir=tmp_path / "out")
    parts = [tmp_path / "out" / f"{n}.jsonl" for n in range(2)]
    output, folder = tmp_path / "captions.jsonl", tmp_path / "captions.unfinished"
    assert run(paths=(str(tmp_path / "in" / "0.tar"),), output=output).done == 3
    assert rows(output) == rows(parts[0])
    with output.open("a") as file:
        file.write('{"path": "0/tor')  # of whatever else appended to it
    folder.mkdir()
    shutil.copy(parts[0], folder)  # killed after it was joined, and before it was removed
    assert run(paths=(shards,), output=output).done == 3
    assert list(rows(output).items()) == list(rows(*parts).items())
    output.unlink()
    folder.mkdir()
    for part in parts:  # killed before they were joined
        shutil.copy(part, folder)
    assert run(paths=(shards,), output=output).done == 0
    assert list(rows(output).items()) == list(rows(*parts).items())
    assert run(paths=(shards,), output=output, existing="overwrite", max_new_tokens=3).done == 6
    assert rows(output).keys() == rows(*parts).keys()
    assert rows(output) != rows(*parts)
    assert not folder.exists()
    assert {path.name for path in tmp_path.iterdir()} == {"images", "in", "out", "captions.jsonl"}


def test_overwrite_replaces_and_skip_keeps(run: Caption, shards: str, tmp_path: Path) -> None:
    out = tmp_path / "out"
    run(paths=(shards,), output_dir=out)
    before = contents(out)
    run(paths=(shards,), output_dir=out, max_new_tokens=3)
    assert contents(out) == before
    assert run(paths=(shards,), output_dir=out, max_new_tokens=3, existing="overwrite").done == 6
    assert contents(out).keys() == before.keys()
    assert contents(out) != before


@pytest.mark.parametrize("form", ["jsonl", "tar"])
def test_what_cannot_be_used_is_named_and_counted_and_costs_nothing_else(
    run: Caption, shapes: Path, tmp_path: Path, form: str, capsys: pytest.CaptureFixture[str]
) -> None:
    picture = (shapes / "0000.png").read_bytes()
    odd = {"x/a.png": picture, "y/a.png": picture, "bad.png": b"no image", "text.txt": b"alone", "two.png": picture}
    folder = tmp_path / "in"
    write_shard(folder / "odd.tar", odd | {"two.jpg": picture, "z.png": picture, "x/a.JPG": picture})
    write_shard(folder / "empty.tar", {})
    torn = write_shard(folder / "torn.tar", pictures(shapes, range(5)))
    with tarfile.open(torn) as archive:
        half_way = archive.getmember("4.png").offset_data + 10
    torn.write_bytes(torn.read_bytes()[:half_way])
    out, failures = tmp_path / "out", tmp_path / "failures.jsonl"
    flags = {"paths": (folder,), "output_dir": out, "shard_form": form, "failures": failures}
    summary = run(**flags)
    said = capsys.readouterr().err
    assert (summary.done, summary.failed) == (4 + 4, 2), said
    expected = ["odd/x/a.png", "odd/y/a.png", "odd/two.png", "odd/z.png"]
    if form == "jsonl":
        assert list(rows(out / "odd.jsonl")) == expected
    else:
        with tarfile.open(out / "odd.tar") as archive:
            assert [f"odd/{name}" for name in archive.getnames()[::2]] == expected
            assert archive.getnames()[1::2] == ["x/a.txt", "y/a.txt", "two.txt", "z.txt"]
    assert files_in(out) == {f"odd.{form}", f"empty.{form}", "torn.unfinished.jsonl"}
    assert len(rows(out / "torn.unfinished.jsonl")) == 4
    assert f"1 keys have no image and are left out: {folder}/odd.tar/text" in said
    assert f"2 images share their key with another and are left out: {folder}/odd.tar/two.jpg, {folder}/odd.tar" in said
    assert f"1 shards have no image: {folder}/empty.tar" in said
    reason = f"it can't be read to its end; what could be is in {out}/torn.unfinished.jsonl"
    assert f"warning: {torn} is skipped: {reason}" in said
    failed = {row["path"]: row["reason"] for row in map(json.loads, failures.read_text().splitlines())}
    assert failed.keys() == {f"{folder}/odd.tar/bad.png", str(torn)}
    write_shard(torn, pictures(shapes, range(5)))
    again = run(**flags)
    assert (again.done, again.kept, again.failed) == (1, 4, 0)
    assert files_in(out) == {f"{name}.{form}" for name in ("odd", "empty", "torn")}
    (row,) = map(json.loads, failures.read_text().splitlines())
    assert row["path"] == f"{folder}/odd.tar/bad.png", "of a shard that isn't read again"


def test_a_shard_that_fails_when_it_is_read_again_keeps_its_captions(
    run: Caption, shards: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A new shard takes the images from a second reading, which over a network may fail."""
    shard, out = tmp_path / "in" / "0.tar", tmp_path / "out"
    (tmp_path / "once").touch()
    command = f"pipe:rm {tmp_path}/once && cat {shard} || head -c 2000 {shard}"
    flags = {"paths": (command,), "output_dir": out, "shard_form": "tar"}
    assert run(**flags).failed == 1
    assert f"warning: {command} is skipped: it can't be read to its end" in capsys.readouterr().err
    assert len(rows(out / "0.unfinished.jsonl")) == 3
    assert files_in(out) == {"0.unfinished.jsonl"}
    again = run(**flags | {"paths": (str(shard),)})
    assert (again.done, again.kept) == (0, 3)
    assert files_in(out) == {"0.tar"}


def test_dry_run_says_what_and_where_and_writes_nothing(
    run: Caption, shards: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run(paths=(str(tmp_path / "in" / "0.tar"),), output_dir=tmp_path / "out")
    before = files_in(tmp_path)
    capsys.readouterr()
    run(paths=(shards,), output_dir=tmp_path / "out", dry_run=True)
    said = "1 of 2 shards have their captions already\n1 shards would be captioned\n"
    assert capsys.readouterr().err == f"{said}  {tmp_path}/in/1.tar -> {tmp_path}/out/1.jsonl\n"
    run(paths=(shards,), output=tmp_path / "captions.jsonl", dry_run=True)
    assert f"  {tmp_path}/in/0.tar -> {tmp_path}/captions.jsonl\n" in capsys.readouterr().err
    assert files_in(tmp_path) == before


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({}, r"--output-dir FOLDER\) or into one file .*, not beside the shards: give one of them"),
        ({"output": "captions.csv"}, "one file of JSON Lines .*, not captions.csv"),
        ({"output": "metadata.jsonl"}, "one file of JSON Lines .*, not metadata.jsonl"),
        ({"output": "-"}, "one file of JSON Lines .*, not -"),
        ({"output": "captions.jsonl", "shard_form": "tar"}, "give --output-dir, not --output"),
        ({"output_dir": "out", "existing": "append"}, "--existing append is not for tar shards"),
        ({"output_dir": "out", "watch": True}, "--watch is not for tar shards"),
        ({"output_dir": "out", "on_collision": "full-name"}, "--on-collision full-name is not for tar shards"),
        ({"output_dir": "in", "shard_form": "tar"}, "in/0.tar would be written over: choose another --output-dir"),
        ({"output_dir": "out", "failures": "in/0.tar"}, "--failures in/0.tar is a shard, too"),
        ({"output_dir": "out", "failures": "notes.txt"}, "holds something else than failures: name another"),
        ({"output": "notes.jsonl"}, "notes.jsonl holds something else than captions"),
        ({"output_dir": "notes"}, r"notes/0.jsonl holds something else than captions"),
        ({"output_dir": "out", "paths": ("in/{0..2}.tar",)}, "1 of 3 shards are missing: in/2.tar"),
        ({"output_dir": "out", "paths": ("{in,notes}/0.tar",)}, "in/0.tar and notes/0.tar would both be written to"),
    ],
)
def test_what_is_not_for_shards_is_refused_and_nothing_is_changed(
    run: Caption,
    shards: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    settings: dict[str, object],
    message: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "notes").mkdir()
    shutil.copy("in/0.tar", "notes")
    for name in ("notes.txt", "notes.jsonl", "notes/0.jsonl"):
        Path(name).write_text('{"id": 1}\n')
    before = files_in(tmp_path)
    for more in ({}, {"dry_run": True}):
        if not (more and settings.get("watch")):
            with pytest.raises(UserError, match=message):
                run(**{"paths": ("in/{0..1}.tar",)} | settings | more)
    assert files_in(tmp_path) == before


def test_captions_may_be_beside_the_shards_and_other_tasks_have_another_place(
    run: Caption, shards: str, tmp_path: Path
) -> None:
    folder, output = tmp_path / "in", tmp_path / "captions.jsonl"
    for settings in ({"output_dir": folder}, {"output": output}):
        assert run(paths=(folder,), **settings).done == 6
        assert run(paths=(folder,), **settings).done == 0
        with pytest.raises(UserError, match=r"l has answers to <CAPTION>, and none to <OD>: .*--existing overwrite"):
            run(paths=(folder,), **settings, task_prompt=("<CAPTION>", "<OD>"))
    assert files_in(folder) == {"0.tar", "1.tar", "0.jsonl", "1.jsonl"}


@pytest.mark.slow
@pytest.mark.parametrize(
    ("settings", "processes", "number"),
    [
        ({"output_dir": "", "shard_form": "tar"}, 1, signal.SIGKILL),
        ({"output_dir": ""}, 2, signal.SIGINT),
        ({"output": "captions.jsonl"}, 2, signal.SIGKILL),
    ],
)
def test_a_run_that_is_stopped_within_a_shard_ends_as_if_it_had_not_been(
    run: Caption,
    start: Start,
    large_shards: str,
    trained_model: Path,
    tmp_path: Path,
    settings: dict[str, str],
    processes: int,
    number: signal.Signals,
) -> None:
    out, expected = tmp_path / "out", tmp_path / "expected"

    def places(folder: Path) -> dict[str, object]:
        return {name: value if name == "shard_form" else folder / value for name, value in settings.items()}

    run(paths=(large_shards,), batch_size=1, max_new_tokens=8, **places(expected))
    flags = ("--model-name", trained_model, "--batch-size", 1, "--num-beams", 1, "--max-new-tokens", 8, "--no-retry")
    where = [word for name, value in places(out).items() for word in (f"--{name.replace('_', '-')}", value)]
    command = ("florence2ner", "caption", large_shards, *flags, *where)

    def begun() -> dict[Path, int]:
        return {path: path.read_text().count("\n") for path in out.rglob("*.unfinished.jsonl")}

    running = start(*command, processes=processes)
    while len([count for count in begun().values() if count]) < processes:
        assert running.poll(0.005) is None, running.stderr
    running.signal(number)
    assert running.wait().returncode == (130 if number == signal.SIGINT else -number), running.stderr
    assert all(0 < count < 24 for count in begun().values()), "it was stopped within a shard"
    assert len(begun()) == processes
    finish(start(*command, processes=processes))
    assert contents(out) == contents(expected)


@pytest.mark.slow
def test_a_killed_process_ends_the_other_with_one_line_and_costs_nothing(
    start: Start, large_shards: str, trained_model: Path, tmp_path: Path
) -> None:
    flags = ("--model-name", trained_model, "--batch-size", 1, "--num-beams", 1, "--max-new-tokens", 8, "--no-retry")
    command = ("caption", large_shards, *flags, "--output-dir", "out")
    running = start("tests.programs.impatient", 5, *command, processes=2)
    while len(list((tmp_path / "out").glob("*.unfinished.jsonl"))) < 2:
        assert running.poll(0.005) is None, running.stderr
    assert_one_clear_line(running, 1, "; the same command goes on with the rest")
    finish(start("florence2ner", *command, processes=2))
    assert len(rows(*(tmp_path / "out").iterdir())) == 72
    assert files_in(tmp_path / "out") == {"0.jsonl", "1.jsonl", "2.jsonl"}


def test_two_runs_share_a_folder_without_a_word(
    start: Start, large_shards: str, trained_model: Path, tmp_path: Path
) -> None:
    """As on two machines that are given the same shards: each takes those that the other hasn't."""
    flags = ("--model-name", trained_model, "--batch-size", 1, "--num-beams", 1, "--max-new-tokens", 8, "--no-retry")
    command = ("florence2ner", "caption", large_shards, *flags, "--output-dir", "out")
    runs = [start(*command), start(*command)]
    for running in runs:
        finish(running)
    finish(start(*command))
    assert len(rows(*(tmp_path / "out").iterdir())) == 72
    assert files_in(tmp_path / "out") == {"0.jsonl", "1.jsonl", "2.jsonl"}
    done = [int(found[1]) for running in runs if (found := re.search(r"(\d+) captioned", running.stderr))]
    assert sum(done) == 72, [running.stderr for running in runs]
