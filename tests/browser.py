"""A real browser for tests of pages: Chromium, without a window, that tells of every request and every error."""

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import pytest
from playwright.sync_api import Browser, Page, sync_playwright


@dataclass
class Watched:
    """A page, and what it has done."""

    page: Page
    requests: list[str] = field(default_factory=list)  # URLs, without those of data: and blob:
    errors: list[str] = field(default_factory=list)  # exceptions, and errors and warnings of the console


@contextmanager
def chromium() -> Iterator[Browser]:
    """The browser. Skips the test where there is none."""
    path = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    if path is None:
        pytest.skip("needs chromium")
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=path, args=["--no-sandbox"])
        yield browser
        browser.close()


@contextmanager
def watched_page(browser: Browser, **options: Any) -> Iterator[Watched]:
    """A page with a context of its own; `options` are those of `Browser.new_context`, such as `color_scheme`."""
    context = browser.new_context(**options)
    watched = Watched(context.new_page())
    page = watched.page
    page.on("request", lambda request: None if _is_inside(request.url) else watched.requests.append(request.url))
    page.on("pageerror", lambda error: watched.errors.append(str(error)))
    page.on(
        "console",
        lambda message: watched.errors.append(message.text) if message.type in ("error", "warning") else None,
    )
    yield watched
    context.close()


def _is_inside(url: str) -> bool:
    return url.startswith(("data:", "blob:"))
