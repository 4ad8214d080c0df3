"""Folder in, captions out: nothing is loaded where nothing is to do, and no kill costs a caption."""

import csv
import json
import os
import random
import shutil
import signal
import socket
from pathlib import Path

import pytest

from florence2ner.files import has_text
from tests.conftest import Caption, ColdStart, Start
from tests.support import assert_one_clear_line, files_in, many


def test_dry_run_and_nothing_to_do_need_no_torch(cold_start: ColdStart, images: Path) -> None:
    for flags, said in ((["--dry-run"], "5 images would be captioned"), ([], "nothing to do: all 5 images")):
        before = files_in(images)
        watch = "import sys; from florence2ner.cli import main; sys.argv = sys.argv[1:]\n"
        watch += "try: main()\nfinally: assert 'torch' not in sys.modules"
        result = cold_start("-c", watch, "florence2ner", "caption", images, *flags)
        _, errors = result.communicate(timeout=60)
        assert result.returncode == 0, errors
        assert said in errors
        assert files_in(images) == before
        for image in images.rglob("*.png"):
            image.with_suffix(".txt").write_text("done\n")


@pytest.mark.slow
@pytest.mark.parametrize("form", ["sidecars", "jsonl"])
def test_kill_minus_nine_leaves_every_image_with_one_whole_caption(
    run: Caption, start: Start, images: Path, trained_model: Path, shapes: Path, tmp_path: Path, form: str
) -> None:
    run(paths=(shapes,), output=tmp_path / "expected.jsonl")
    rows = map(json.loads, (tmp_path / "expected.jsonl").read_text().splitlines())
    expected = {Path(row["path"]).name: row["caption"] for row in rows}
    shutil.rmtree(images)
    images.mkdir()
    paths = many(images, shapes, 300)
    output = tmp_path / "captions.jsonl"
    flags = ["--model-name", trained_model, "--batch-size", 2, "--num-beams", 1, "--max-new-tokens", 16, "--no-retry"]
    flags += ["--output", output] if form == "jsonl" else []

    def written() -> dict[Path, str]:
        if form == "sidecars":
            return {path.with_suffix(".png"): path.read_text() for path in images.glob("*.txt")}
        lines = output.read_text().split("\n")[:-1] if output.exists() else []
        rows = [json.loads(line) for line in lines]
        assert len({row["path"] for row in rows}) == len(rows), "no image twice"
        return {tmp_path / row["path"]: row["caption"] + "\n" for row in rows}

    rng = random.Random(0)
    for _ in range(5):
        goal = len(written()) + rng.randint(1, 10)
        running = start("florence2ner", "caption", images, *flags, processes=2)
        while len(written()) < goal:
            assert running.poll() is None, running.stderr
        running.poll(rng.uniform(0, 0.05))  # somewhere in the next batch
        running.signal(signal.SIGKILL)
        assert running.wait().returncode == -signal.SIGKILL
    assert 0 < len(written()) < 300, "it was killed on the way"
    result = start("florence2ner", "caption", images, *flags, processes=2).wait()
    assert result.returncode == 0, result.stderr
    assert written() == {path: expected[path.resolve().name] + "\n" for path in paths}


@pytest.mark.slow
@pytest.mark.parametrize(("form", "killed"), [("sidecars", 0), ("jsonl", 1), ("csv", 0), ("json", 1)])
def test_a_killed_process_ends_the_other_and_the_next_run_leaves_one_caption_each(
    start: Start, images: Path, trained_model: Path, shapes: Path, tmp_path: Path, form: str, killed: int
) -> None:
    paths = many(images, shapes, 100) + sorted(images.glob("?.png")) + sorted((images / "sub").iterdir())
    output = tmp_path / f"captions.{form}"
    flags = ["--model-name", trained_model, "--batch-size", 1, "--num-beams", 1, "--max-new-tokens", 8, "--no-retry"]
    flags += [] if form == "sidecars" else ["--output", output]
    growing = tmp_path / "captions.unfinished.jsonl" if form == "json" else output

    def begun() -> bool:
        return bool(list(images.glob("*.txt"))) if form == "sidecars" else has_text(growing)

    running = start("tests.programs.impatient", 5, "caption", images, *flags, processes=2)
    while not begun():
        assert running.poll() is None, running.stderr
    assert_one_clear_line(running, killed, "; the same command goes on with the rest")
    result = start("florence2ner", "caption", images, *flags, processes=2).wait()
    assert result.returncode == 0, result.stderr
    if form == "sidecars":
        assert all(path.with_suffix(".txt").read_text().endswith("\n") for path in paths)
        return
    read = {"jsonl": lambda file: map(json.loads, file), "csv": csv.DictReader, "json": json.load}[form]
    with output.open(newline="") as file:
        rows = list(read(file))
    assert sorted(row["path"] for row in rows) == sorted(path.relative_to(tmp_path).as_posix() for path in paths)
    assert all(row["caption"] for row in rows)


@pytest.mark.slow
def test_the_launcher_ends_the_other_process_too_late_to_cut_its_line_off(
    cold_start: ColdStart, images: Path, trained_model: Path, shapes: Path
) -> None:
    """The first process is the one with which all contact is lost."""
    many(images, shapes, 1000)
    launch = ("-m", "accelerate.commands.launch", "--multi_gpu", "--num_processes", 2, "--main_process_port", 0)
    flags = ("--model-name", trained_model, "--batch-size", 1, "--num-beams", 1, "--max-new-tokens", 16, "--no-retry")
    command = ("-m", "florence2ner", "caption", images, *flags)
    launcher = cold_start(*launch, *command, ACCELERATE_USE_CPU="true", OMP_NUM_THREADS="1")
    while len(list(images.glob("*.txt"))) < 10:
        assert launcher.poll() is None
    for pid in Path(f"/proc/{launcher.pid}/task/{launcher.pid}/children").read_text().split():
        if "RANK=0" in Path(f"/proc/{pid}/environ").read_text().split("\0"):
            os.kill(int(pid), signal.SIGKILL)
    _, errors = launcher.communicate(timeout=120)
    assert launcher.returncode == 1
    assert "forcefully" not in errors, "the launcher had to kill it"
    (line,) = (line for line in errors.splitlines() if line.startswith("error: "))
    assert "lost contact with another process" in line
    assert "; the same command goes on with the rest" in line


@pytest.mark.parametrize("form", ["sidecars", "csv"])
def test_a_second_run_is_told_who_the_first_is_until_that_is_gone(
    start: Start, images: Path, trained_model: Path, tmp_path: Path, form: str
) -> None:
    """Of two processes, the main one holds the output, and both write."""
    output = tmp_path / "captions.csv"
    flags = ["--model-name", trained_model, "--batch-size", 1, "--num-beams", 1, "--max-new-tokens", 8, "--no-retry"]
    flags += ["--output", output] if form == "csv" else []
    first = start("florence2ner", "caption", images, *flags, "--watch", processes=2)
    while "watching" not in first.stderr:
        assert first.poll(0.01) is None, first.stderr
    before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    place = f"the output {output}" if form == "csv" else f"the folder {images}"
    said = f"error: {place} is in use by process {first.pids[0]} on {socket.gethostname()}: start again when that has"
    again = ["--existing", "overwrite"] if form == "csv" else ["--existing", "append"]
    second = start("florence2ner", "caption", images, *flags, *again).wait()
    assert second.returncode == 2
    assert second.stderr == f"{said} ended\n"
    assert {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()} == before
    assert start("florence2ner", "caption", images, *flags, "--dry-run").wait().returncode == 0, "that changes nothing"
    first.signal(signal.SIGKILL)
    first.wait()
    third = start("florence2ner", "caption", images, *flags).wait()
    assert third.returncode == 0, third.stderr
    assert "all 5 images have captions" in third.stderr
    assert not list(tmp_path.rglob(".*.in-use")), "not even what the kill has left"
