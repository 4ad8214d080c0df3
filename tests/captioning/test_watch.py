"""Captioning images as they appear in a folder."""

import re
import shutil
import signal
import time
from pathlib import Path

from tests.conftest import Start


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
