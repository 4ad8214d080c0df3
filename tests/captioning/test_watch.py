"""Captioning images as they appear in a folder."""

import json
import os
import re
import shutil
import signal
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.conftest import Start
from tests.programs.starting import Running
from tests.support import assert_one_clear_line, many

PATIENCE = 5  # seconds


@pytest.fixture
def watching(start: Start, images: Path, trained_model: Path) -> Running:
    """Two processes that have captioned all images, wait for more, and are tired of it after `PATIENCE` seconds."""
    flags = ("--model-name", trained_model, "--num-beams", 1, "--max-new-tokens", 8, "--no-retry", "--watch")
    running = start("tests.programs.impatient", PATIENCE, "caption", images, *flags, processes=2)
    while "watching" not in running.stderr:
        assert running.poll(0.01) is None, running.stderr
    return running


def test_watch_captions_images_as_they_appear(start: Start, images: Path, trained_model: Path, shapes: Path) -> None:
    flags = ("--model-name", trained_model, "--num-beams", 1, "--max-new-tokens", 8, "--no-retry", "--watch")
    running = start("florence2ner", "caption", images, *flags)

    def wait_for(stem: str) -> None:
        while not (images / f"{stem}.txt").exists():
            assert running.poll(0.01) is None, running.stderr

    wait_for("0")
    start_of_watch = time.monotonic()
    (images / "bad.png").write_text("no image")
    for name in ("new", "newer"):
        shutil.copy(shapes / "0007.png", images / f"{name}.png")
        wait_for(name)
    seconds = time.monotonic() - start_of_watch
    running.signal(signal.SIGINT)
    assert running.wait().returncode == 130
    assert running.stderr.count("bad.png is skipped") == 1, "a bad file is tried once"
    found = re.search(r"7 captioned, 0 kept, 1 failed \(([\d.]+) images/s\)", running.stderr)
    assert found, running.stderr
    assert float(found[1]) > 1.5 * 7 / seconds, "waiting for images is not captioning"


def test_an_image_that_was_incomplete_at_the_start_is_captioned_when_it_is_whole(
    start: Start, images: Path, trained_model: Path, shapes: Path
) -> None:
    """It is completed while the others are captioned, before anybody watches."""
    whole = (shapes / "0007.png").read_bytes()
    (images / "+.png").write_bytes(whole[: len(whole) // 2])  # the first in order
    many(images, shapes, 40)
    flags = ("--model-name", trained_model, "--batch-size", 1, "--num-beams", 1, "--max-new-tokens", 8, "--no-retry")
    running = start("florence2ner", "caption", images, *flags, "--watch")

    def wait_for(condition: Callable[[], bool]) -> None:
        while not condition():
            assert running.poll(0.01) is None, running.stderr

    wait_for(lambda: "+.png is skipped" in running.stderr)
    assert "watching" not in running.stderr
    (images / "+.png").write_bytes(whole)
    wait_for(lambda: "watching" in running.stderr)
    shutil.copy(shapes / "0007.png", images / "later.png")
    wait_for((images / "later.txt").exists)
    assert (images / "+.txt").exists()


@pytest.mark.parametrize("processes", [1, 2])
def test_what_cannot_be_captioned_is_named_and_does_not_end_the_watch(
    start: Start, images: Path, trained_model: Path, shapes: Path, processes: int
) -> None:
    flags = ("--model-name", trained_model, "--num-beams", 1, "--max-new-tokens", 8, "--no-retry", "--watch")
    running = start("florence2ner", "caption", images, *flags, processes=processes)
    while "watching" not in running.stderr:
        assert running.poll(0.01) is None, running.stderr
    (images / "folder.txt").mkdir()
    for name in ("0.jpg", "a.png", "folder.png", "b.png", "b.jpg"):
        shutil.copy(shapes / "0007.png", images / f".{name}")
        (images / f".{name}").rename(images / name)
    (images / "gone.png").symlink_to("nowhere")
    for name in ("a", "b"):
        while not (images / f"{name}.txt").exists():
            assert running.poll(0.01) is None, running.stderr
    shutil.copy(shapes / "0007.png", images / "later.png")
    while not (images / "later.txt").exists():
        assert running.poll(0.01) is None, running.stderr
    running.signal(signal.SIGINT)
    running.wait()
    assert [running.code(rank) for rank in range(processes)] == [130] * processes, running.stderr
    for image in ("0.jpg", "folder.png", "gone.png"):
        assert running.stderr.count(f"{image} is skipped: ") == 1, running.stderr
    assert len(re.findall(r"b\.(?:png|jpg) is skipped: .* would share the caption file", running.stderr)) == 1
    assert "8 captioned, 0 kept, 4 failed" in running.stderr
    assert "Traceback" not in running.stderr


def test_a_changed_image_has_one_row_even_where_the_output_was_overwritten(
    start: Start, images: Path, trained_model: Path, shapes: Path, tmp_path: Path
) -> None:
    output = tmp_path / "captions.jsonl"
    flags = ("--model-name", trained_model, "--num-beams", 1, "--max-new-tokens", 8, "--no-retry", "--watch")
    running = start("florence2ner", "caption", images, *flags, "--output", output, "--existing", "overwrite")
    while "watching" not in running.stderr:
        assert running.poll(0.01) is None, running.stderr
    os.utime(images / "0.png", (1, 1))
    shutil.copy(shapes / "0007.png", images / "later.png")
    while output.read_text().count("\n") < 6:
        assert running.poll(0.01) is None, running.stderr
    running.signal(signal.SIGINT)
    running.wait()
    rows = [json.loads(line)["path"] for line in output.read_text().splitlines()]
    assert sorted(Path(row).stem for row in rows) == ["0", "1", "2", "3", "4", "later"]


@pytest.mark.slow
def test_two_processes_watch_for_longer_than_a_collective_may_take_and_heed_a_signal_to_either(
    watching: Running, images: Path, shapes: Path
) -> None:
    watching.poll(PATIENCE + 3)
    assert [watching.code(rank) for rank in range(2)] == [None, None], watching.stderr
    shutil.copy(shapes / "0007.png", images / "new.png")
    while not (images / "new.txt").exists():
        assert watching.poll(0.01) is None, watching.stderr
    watching.signal(signal.SIGTERM, 1)
    watching.wait()
    assert [watching.code(rank) for rank in range(2)] == [143, 143], watching.stderr
    assert "6 captioned, 0 kept, 0 failed" in watching.stderr
    assert "Traceback" not in watching.stderr


@pytest.mark.slow
@pytest.mark.parametrize("killed", [0, 1])
def test_a_killed_process_ends_the_watch_with_one_line(watching: Running, killed: int) -> None:
    assert_one_clear_line(watching, killed, "; the same command goes on with the rest")
