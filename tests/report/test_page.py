"""The skeleton: data that can't end its element, a policy that lets nothing in, a script for each kind of block."""

import json
import math
import re
from pathlib import Path

import pytest
from playwright.sync_api import Browser

from florence2ner.report.page import Page, build_page, skeleton
from tests.browser import watched_page
from tests.report.support import CLOSING, HOSTILE, SCREENS, ground_of, opened

FACTS = {"block": "facts", "title": "Facts", "facts": [[text, text] for text in HOSTILE]}


def page_of(**fields: object) -> str:
    return build_page(Page(tool="florence2ner test", title=CLOSING, **fields))  # type: ignore[arg-type]


def test_no_text_ends_the_element_that_it_stands_in() -> None:
    text = page_of(blocks=[FACTS], lead=HOSTILE, notes=HOSTILE, facts={CLOSING: CLOSING})
    assert text.count("<script") == text.count("</script") == 2
    assert "<!--" not in text.partition("<!doctype html>")[2]
    (data,) = re.findall(r'<script type="application/json" id="data">(.*?)</script>', text, re.DOTALL)
    assert json.loads(data)["blocks"][0]["facts"] == FACTS["facts"]
    assert "\u2028" not in data


def test_numbers_that_json_lacks_and_names_that_are_no_utf8_do_not_break_the_data() -> None:
    block = {
        "block": "facts",
        "title": "\udcff.png",
        "facts": [],
        "values": [math.nan, math.inf, {"a": -math.inf}, 1.5],
    }
    text = page_of(blocks=[block])
    text.encode()
    (data,) = re.findall(r'id="data">(.*?)</script>', text, re.DOTALL)
    (read,) = json.loads(data)["blocks"]
    assert read["values"] == [None, None, {"a": None}, 1.5]
    assert read["title"] == "\udcff.png"


def test_the_policy_allows_this_script_and_style_alone(browser: Browser, tmp_path: Path) -> None:
    text = page_of(blocks=[FACTS])
    policy = re.search(r'Content-Security-Policy" content="(.*?)"', text)
    assert policy
    assert "unsafe" not in policy[1]
    assert policy[1].startswith("default-src 'none'; img-src data:;")
    foreign = "<script>document.title = 'taken'</script><img src='https://example.org/a.png'>"
    file = tmp_path / "page.html"
    file.write_text(text.replace("<noscript>", f"{foreign}<noscript>"), encoding="utf-8")
    with watched_page(browser) as watched:
        refused: list[str] = []
        watched.page.on("requestfailed", lambda request: refused.append(f"{request.url} {request.failure}"))
        watched.page.goto(file.as_uri())
        assert watched.page.locator("section").count() == 1, "ours has run"
        assert watched.page.title() != "taken"
        assert len(watched.errors) == 2, "both were refused"
        assert refused == ["https://example.org/a.png csp"]


def test_a_page_without_a_script_may_run_none() -> None:
    text = skeleton(title="<b>", style="b { color: red; }", body="<p></p>")
    assert "script-src" not in text
    assert "<script" not in text
    assert "<title>&lt;b&gt;</title>" in text


@pytest.mark.parametrize("screen", SCREENS, ids=["light, wide", "dark, phone"])
def test_whatever_the_texts_say_is_text(browser: Browser, tmp_path: Path, screen: dict[str, object]) -> None:
    text = page_of(blocks=[FACTS], lead=HOSTILE, facts={"tile": HOSTILE[0]})
    with opened(browser, tmp_path / "page.html", text, **screen) as watched:
        shown = watched.page.inner_text("body")
        assert all(line.strip("\u2028 ") in shown for line in HOSTILE)
        assert (ground_of(watched) > 600) == (screen["color_scheme"] == "light")


def test_pictures_are_read_when_they_are_shown(browser: Browser, tmp_path: Path) -> None:
    """They stand in elements of 64 each, and each is found."""
    pixel = "data:image/gif;base64,R0lGODlhAQABAAAAACH5BAEKAAEALAAAAAABAAEAAAICTAEAOw=="
    row = {"texts": [{"who": "a", "parts": ["b"], "flags": [], "kind": ""}], "scores": {}}
    rows = [row | {"image": f"{number}.png", "picture": number} for number in range(70)]
    block = {"block": "gallery", "title": "Captions", "rows": rows, "metrics": {}, "sort": None}
    text = page_of(blocks=[block], pictures=[pixel] * 65)
    assert text.count('id="pictures-') == 2
    with opened(browser, tmp_path / "page.html", text, viewport={"width": 900, "height": 700}) as watched:
        watched.page.get_by_role("searchbox").fill("64.png")
        assert watched.page.locator(".card img").count() == 1
        watched.page.get_by_role("searchbox").fill("69.png")
        assert watched.page.locator(".frame.none").inner_text() == "no picture"


def test_texts_without_end_are_cut_where_there_are_many() -> None:
    facts = [[f"{number}", "long " * 5000] for number in range(1000)]
    text = page_of(blocks=[{"block": "facts", "title": "Facts", "facts": facts}])
    assert 4_000_000 < len(text) < 17_000_000
    (data,) = re.findall(r'id="data">(.*?)</script>', text, re.DOTALL)
    (block,) = json.loads(data)["blocks"]
    assert all(value.endswith("…") for _, value in block["facts"])
    few = page_of(blocks=[{"block": "facts", "title": "Facts", "facts": facts[:10]}])
    assert few.count("long ") == 50_000, "few are whole"
