"""Captioning images as they appear in a folder."""

import re
import shutil
import signal
import time
from pathlib import Path

import pytest

from tests.conftest import Start
from tests.programs.starting import Running
from tests.support import assert_one_clear_line

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
