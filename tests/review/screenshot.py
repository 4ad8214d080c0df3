"""A picture of the review page, for the README and for those who change it: `python -m tests.review.screenshot`."""

import os
import re
import signal
import subprocess
import sys
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from playwright.sync_api import expect

from tests.browser import chromium, watched_page
from tests.conftest import ROOT
from tests.photos import make_photos

_DETAILS = ("", ", seen from the left", ", in soft light", ", close up", ", a little darker", ", cropped")


def take(path: Path, *, scheme: str = "light", size: tuple[int, int] = (1440, 900)) -> None:
    """Write a PNG of the page with some photographs, a few of them accepted, and one that is being edited.

    `scheme` is light or dark, `size` that of the window in pixels.
    """
    with TemporaryDirectory() as place:
        folder = Path(place) / "photos"
        make_photos(folder, 24)
        _tell_apart(folder)
        command = [sys.executable, "-m", "florence2ner", "review", str(folder)]
        environment = os.environ | {"PYTHONPATH": str(ROOT)}
        running = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment)
        try:
            assert running.stdout is not None
            found = re.search(r"http://\S+", running.stdout.readline())
            assert found
            _photograph(found[0], path, color_scheme=scheme, viewport={"width": size[0], "height": size[1]})
        finally:
            running.send_signal(signal.SIGINT)
            running.communicate()


def _photograph(address: str, path: Path, **options: Any) -> None:
    with chromium() as browser, watched_page(browser, **options) as watched:
        page = watched.page
        page.goto(address)
        page.wait_for_selector("body[data-ready]")
        for number in range(3):
            expect(page.locator("#position")).to_have_text(f"{number + 1} of 24")
            page.keyboard.press("a")
        for _ in range(3):
            page.keyboard.press("j")
        expect(page.locator("#position")).to_have_text("7 of 24")
        page.keyboard.press("e")
        page.keyboard.type(", its ears pricked up")
        page.wait_for_load_state("networkidle")
        page.wait_for_selector("#message:not(.shown)", state="attached")
        page.screenshot(path=str(path))


def _tell_apart(folder: Path) -> None:
    """Mix the subjects, and give photographs of the same one captions of their own; one has none, and one repeats."""
    for path in folder.iterdir():
        name, _, number = path.stem.partition("-")
        path.rename(path.with_name(f"{int(number):02d}-{name}{path.suffix}"))
    captions = sorted(folder.glob("*.txt"))
    for number, caption in enumerate(captions):
        text = caption.read_text(encoding="utf-8").strip()
        caption.write_text(f"{text}{_DETAILS[number // 4]}\n", encoding="utf-8")
    captions[3].unlink()
    captions[8].write_text("a cat a cat a cat a cat a cat a cat\n", encoding="utf-8")


if __name__ == "__main__":
    take(Path("review.png"))
