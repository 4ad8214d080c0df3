"""What the tests of reports share: rows of captions, some of them hostile, and pages opened in a browser."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from PIL import Image
from playwright.sync_api import Browser

from florence2ner.data.samples import ImageRef
from florence2ner.evaluation.rows import Row
from tests.browser import Watched, watched_page

SCRIPT = "<script>alert(1)</script>"
IMAGE = '"><img src=x onerror=alert(2)>'
CLOSING = "</script><!-- <b>bold</b> \u2028"
HOSTILE = (SCRIPT, IMAGE, CLOSING)
SCREENS: tuple[dict[str, Any], ...] = (
    {"color_scheme": "light", "viewport": {"width": 1280, "height": 900}},
    {"color_scheme": "dark", "viewport": {"width": 390, "height": 800}},
)


def row(image: str, truth: str | tuple[str, ...], prediction: str | None, **fields: Any) -> Row:
    references = (truth,) if isinstance(truth, str) else truth
    given = {"task_prompt": "<CAPTION>", "nats": 5.0, "tokens": 10} | fields
    return Row(image=image, references=references, prediction=prediction, **given)


def rows_of(count: int) -> list[Row]:
    """So many rows: the first three are hostile, of the others every fifth is wrong and every seventh flagged."""
    rows = [row(f"{text.replace('/', '')}.png", f"a red {text} star", f"a blue {text} star") for text in HOSTILE]
    for number in range(count - len(rows)):
        wrong = "square" if number % 5 == 0 else "star"
        flags = ("loop",) if number % 7 == 0 else ()
        rows.append(row(f"{number:04d}.png", "a small red star", f"a small red {wrong}", flags=flags))
    return rows


def images_of(folder: Path, rows: Sequence[Row], size: tuple[int, int] = (48, 32)) -> dict[str, ImageRef]:
    """A picture for each image of these rows."""
    folder.mkdir(exist_ok=True)
    found = {}
    for number, name in enumerate(dict.fromkeys(row.image for row in rows)):
        path = folder / f"{number}.png"
        Image.new("RGB", size, (number % 256, 90, 160)).save(path)
        found[name] = ImageRef(name, path)
    return found


@contextmanager
def opened(browser: Browser, file: Path, page: str, **screen: Any) -> Iterator[Watched]:
    """The page in a browser. At the end nothing may have gone wrong, run or been asked for, nor run over the edge."""
    file.write_text(page, encoding="utf-8")
    with watched_page(browser, **screen) as watched:
        watched.page.on("dialog", lambda dialog: watched.errors.append(f"dialog: {dialog.message}"))
        watched.page.goto(file.as_uri())
        watched.page.wait_for_selector("section")
        yield watched
        assert not watched.errors
        assert watched.requests == [file.as_uri()]
        assert watched.page.evaluate("document.documentElement.scrollWidth <= innerWidth"), "wider than the screen"
        made = watched.page.evaluate("[...document.querySelectorAll('main *')].map(e => e.localName)")
        assert not {*made} & {"script", "b2", "iframe", "object", "a", "form"}
        assert watched.page.evaluate("document.scripts.length") == watched.page.evaluate(
            "document.querySelectorAll('body > script').length"
        )


def ground_of(watched: Watched) -> int:
    """How bright the page is, from 0 to 765."""
    text = watched.page.evaluate("getComputedStyle(document.body).backgroundColor")
    return sum(map(int, text.removeprefix("rgb(").removesuffix(")").split(",")))
