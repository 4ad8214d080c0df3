"""The page in a real browser: keys, pictures, changes of many captions, and nothing of the dataset as markup."""

import signal
from collections.abc import Iterator
from pathlib import Path

import pytest
from playwright.sync_api import Browser, Page, expect

from tests.browser import Watched, chromium, watched_page
from tests.conftest import Start
from tests.review.support import Reviewing

SCRIPT = "<script>document.title='caught'</script>"
EVIL = "<img src=x onerror=alert(1)>"


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with chromium() as browser:
        yield browser


def visit(watched: Watched, reviewing: Reviewing) -> Page:
    watched.page.goto(reviewing.address)
    watched.page.wait_for_selector("body[data-ready]")
    return watched.page


def assert_quiet(watched: Watched, reviewing: Reviewing) -> None:
    assert not watched.errors
    assert all(url.startswith(reviewing.base) for url in watched.requests)


def test_a_folder_is_reviewed_by_keys_alone(browser: Browser, start: Start, photos: Path) -> None:
    reviewing = Reviewing(start, photos)
    with watched_page(browser) as watched:
        page = visit(watched, reviewing)
        assert page.url == f"{reviewing.base}/"
        expect(page.locator("#name")).to_have_text("0.png")
        page.keyboard.press("j")
        expect(page.locator("#name")).to_have_text("1.png")
        page.keyboard.press("e")
        expect(page.locator("#caption")).to_be_focused()
        page.keyboard.type(" and more")
        page.keyboard.press("Control+Enter")
        expect(page.locator("#name")).to_have_text("2.png")
        assert (photos / "1.txt").read_text() == "a red thing, number 1 and more\n"
        page.keyboard.press("a")
        expect(page.locator("#name")).to_have_text("3.png")
        page.keyboard.press("Enter")
        page.keyboard.type(" not")
        page.keyboard.press("Escape")
        expect(page.locator("#caption")).to_have_value("a red thing, number 3")
        page.keyboard.press("k")
        expect(page.locator("#state")).to_have_text("accepted")
        page.keyboard.press("u")
        expect(page.locator("#state")).to_have_text("not accepted")
        page.keyboard.press("Control+z")
        expect(page.locator("#name")).to_have_text("1.png")
        expect(page.locator("#caption")).to_have_value("a red thing, number 1")
        assert (photos / "1.txt").read_text() == "a red thing, number 1\n"
        page.keyboard.press("r")
        expect(page.locator("#caption")).to_have_value("a red thing, number 1 and more")
        page.keyboard.press("/")
        page.keyboard.type("NUMBER 4")
        expect(page.locator("#counted")).to_have_text("1 image")
        expect(page.locator("#name")).to_have_text("4.png")
        page.keyboard.press("Enter")
        expect(page.locator("#words")).not_to_be_focused()
        expect(page.locator("#counted")).to_have_text("1 image")
        page.keyboard.press("/")
        page.keyboard.press("Escape")
        expect(page.locator("#words")).to_have_value("")
        expect(page.locator("#counted")).to_have_text("6 images")
        page.keyboard.press("?")
        expect(page.locator("#help-dialog")).to_be_visible()
        page.keyboard.press("Escape")
        assert_quiet(watched, reviewing)


def test_what_is_typed_is_saved_on_the_way_to_another_image(browser: Browser, start: Start, photos: Path) -> None:
    reviewing = Reviewing(start, photos)
    with watched_page(browser) as watched:
        page = visit(watched, reviewing)
        page.fill("#caption", "typed")
        expect(page.locator("#dirty")).to_be_visible()
        page.click("#row-2")
        expect(page.locator("#name")).to_have_text("2.png")
        assert (photos / "0.txt").read_text() == "typed\n"
        page.fill("#caption", "typed and accepted")
        page.click("#accept")
        expect(page.locator("#name")).to_have_text("3.png")
        page.keyboard.press("k")
        expect(page.locator("#state")).to_have_text("accepted")
        assert_quiet(watched, reviewing)


def test_many_captions_change_as_the_preview_shows(browser: Browser, start: Start, photos: Path) -> None:
    reviewing = Reviewing(start, photos)
    with watched_page(browser) as watched:
        page = visit(watched, reviewing)
        for key in ("x", "j", "j"):
            page.keyboard.press(key)
        expect(page.locator("#name")).to_have_text("2.png")
        page.keyboard.press("Shift+X")
        expect(page.locator("#all")).to_have_text("Clear 3 selected")
        page.keyboard.press("b")
        page.fill("#find", "red")
        page.fill("#replace", SCRIPT)
        expect(page.locator("#preview li")).to_have_count(3)
        expect(page.locator("#preview li").first).to_contain_text(f"a red{SCRIPT} thing, number 0")
        assert page.locator("#preview li").first.locator("del").all_inner_texts() == ["red"]
        page.click("#apply")
        expect(page.locator("#message")).to_have_text("3 captions changed")
        assert [SCRIPT in (photos / f"{n}.txt").read_text() for n in range(6)] == [True] * 3 + [False] * 3
        page.keyboard.press("b")
        page.select_option("#scope", "view")
        page.select_option("#action", "add")
        page.fill("#tag", "night")
        expect(page.locator("#apply")).to_have_text("Add to 6 captions")
        page.keyboard.press("Tab")
        page.click("#apply")
        expect(page.locator("#message")).to_have_text("6 captions changed")
        page.keyboard.press("u")
        expect(page.locator("#message")).to_contain_text("undone: add the tag “night” in 6 captions")
        page.keyboard.press("u")
        expect(page.locator("#message")).to_contain_text("undone: replace “red”")
        assert all((photos / f"{n}.txt").read_text() == f"a red thing, number {n}\n" for n in range(6))
        assert_quiet(watched, reviewing)


def test_a_caption_that_somebody_else_changed_is_not_overwritten(browser: Browser, start: Start, photos: Path) -> None:
    reviewing = Reviewing(start, photos)
    with watched_page(browser) as watched:
        page = visit(watched, reviewing)
        page.fill("#caption", "mine")
        (photos / "0.txt").write_text("theirs\n")
        page.click("#save")
        expect(page.locator("#theirs")).to_have_text("theirs")
        expect(page.locator("#caption")).to_have_value("mine")
        assert (photos / "0.txt").read_text() == "theirs\n"
        page.click("#take-theirs")
        expect(page.locator("#caption")).to_have_value("theirs")
        page.fill("#caption", "mine")
        (photos / "0.txt").write_text("theirs again\n")
        page.click("#next")
        expect(page.locator("#theirs")).to_have_text("theirs again")
        page.click("#keep-mine")
        expect(page.locator("#message")).to_have_text("saved")
        assert (photos / "0.txt").read_text() == "mine\n"


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_nothing_of_the_dataset_becomes_markup(browser: Browser, start: Start, photos: Path, scheme: str) -> None:
    (photos / "0.txt").write_text(f"{SCRIPT}{EVIL}")
    (photos / "0.png").rename(photos / f"{EVIL}.png")
    (photos / "0.txt").rename(photos / f"{EVIL}.txt")
    (photos / "1.png").write_bytes(b"no picture")
    (photos / "2.txt").write_bytes(b"caf\xe9 <b>")
    (photos / "3.txt").unlink()
    folder = photos.rename(photos.with_name("<b>photos"))
    reviewing = Reviewing(start, folder)
    with watched_page(browser, color_scheme=scheme) as watched:
        page = visit(watched, reviewing)
        page.fill("#words", "<")
        expect(page.locator("#counted")).to_have_text("2 images")
        page.fill("#words", "")
        expect(page.locator("#counted")).to_have_text("6 images")
        page.keyboard.press("Escape")
        for number in range(6):
            expect(page.locator("#position")).to_have_text(f"{number + 1} of 6")
            page.wait_for_load_state("networkidle")
            page.keyboard.press("j")
        page.click("#row-0")
        expect(page.locator("#no-picture")).to_contain_text("be shown: not an image that can be read.")
        assert page.locator("h1").inner_text() == "<b>photos"
        page.keyboard.press("End")
        expect(page.locator("#caption")).to_have_value(f"{SCRIPT}{EVIL}")
        assert page.locator("#name").inner_text() == f"{EVIL}.png"
        assert page.locator("main script, main b, main [onerror]").count() == 0
        assert "caught" not in page.title()
        assert_quiet(watched, reviewing)


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_it_is_usable_at_the_width_of_a_phone(browser: Browser, start: Start, photos: Path, scheme: str) -> None:
    (photos / f"{'long' * 40}.png").write_bytes((photos / "0.png").read_bytes())
    (photos / f"{'long' * 40}.txt").write_text("word" * 200)
    reviewing = Reviewing(start, photos)
    size = {"width": 390, "height": 844}
    with watched_page(browser, color_scheme=scheme, viewport=size, has_touch=True) as watched:
        page = visit(watched, reviewing)
        page.click("#open-list")
        page.click("#row-6")
        expect(page.locator("#panel")).to_be_hidden()
        expect(page.locator("#position")).to_have_text("7 of 7")
        assert page.evaluate("document.documentElement.scrollWidth") == 390
        page.click("#previous")
        expect(page.locator("#name")).to_have_text("5.png")
        page.fill("#caption", "short")
        for button in ("#accept", "#save", "#previous", "#next", "#open-list"):
            box = page.locator(button).bounding_box()
            assert box is not None
            assert box["height"] >= 40
            assert box["x"] >= 0
            assert box["x"] + box["width"] <= 390
        page.click("#save")
        expect(page.locator("#message")).to_have_text("saved")
        page.click("#bulk")
        page.fill("#find", "a")
        expect(page.locator("#preview li").first).to_be_visible()
        assert page.evaluate("document.documentElement.scrollWidth") == 390
        assert_quiet(watched, reviewing)


@pytest.mark.slow
def test_the_model_is_asked_and_an_answer_taken(
    browser: Browser, start: Start, photos: Path, trained_model: Path
) -> None:
    reviewing = Reviewing(start, photos, "--model-name", trained_model, "--max-new-tokens", 16)
    with watched_page(browser) as watched:
        page = visit(watched, reviewing)
        page.keyboard.press("m")
        page.keyboard.press("j")  # goes on meanwhile
        expect(page.locator("#name")).to_have_text("1.png")
        page.keyboard.press("k")
        expect(page.locator("#answers li")).to_have_count(0)
        page.keyboard.press("m")
        expect(page.locator("#asking")).to_have_text("", timeout=120_000)
        first = page.locator("#answers .text").first
        text = first.inner_text()
        page.keyboard.press("1")
        expect(page.locator("#caption")).to_have_value(text)
        assert (photos / "0.txt").read_text() == f"{text}\n"
        page.click("#settings summary")
        page.fill("#task", "<OCR_WITH_REGION")
        page.fill("#beams", "2")
        page.fill("#temperature", "1.5")
        page.click("#ask-so")
        expect(page.locator("#answers")).to_contain_text("<OCR_WITH_REGION sampled at 1.5", timeout=120_000)
        page.click("#undo")
        expect(page.locator("#message")).to_have_text("undone: take the model's answer for 0.txt")
        expect(page.locator("#caption")).to_have_value("a red thing, number 0")
        assert_quiet(watched, reviewing)


def test_a_wrong_token_shows_nothing(browser: Browser, start: Start, photos: Path) -> None:
    reviewing = Reviewing(start, photos)
    with watched_page(browser) as watched:
        watched.page.goto(f"{reviewing.base}/?token=wrong")
        assert watched.page.inner_text("body") == "The token is wrong: open the address that florence2ner printed."
        watched.page.goto(reviewing.base)
        assert "with its token" in watched.page.inner_text("body")


def test_another_page_in_the_browser_gets_nothing(browser: Browser, start: Start, photos: Path) -> None:
    """A page of another site, in the very browser that has the cookie."""
    reviewing = Reviewing(start, photos)
    with watched_page(browser) as watched:
        visit(watched, reviewing)
        other = watched.page.context.new_page()
        other.route("http://evil.example/*", lambda route: route.fulfill(body="<p>evil", content_type="text/html"))
        other.goto("http://evil.example/")
        results = other.evaluate(
            """async (base) => {
              const tries = [fetch(`${base}/api/state`, { credentials: "include" }),
                fetch(`${base}/api/undo`, { method: "POST", body: "{}", mode: "no-cors", credentials: "include" })];
              const done = await Promise.allSettled(tries);
              const image = new Image();
              const shown = new Promise((told) => {
                image.onload = () => told(true);
                image.onerror = () => told(false);
              });
              image.src = `${base}/api/picture/0/large`;
              return [done[0].status, done[1].status === "rejected" || done[1].value.type === "opaque", await shown];
            }""",
            reviewing.base,
        )
        assert results == ["rejected", True, False]
    assert (photos / "0.txt").read_text() == "a red thing, number 0\n"


def test_the_end_of_the_review_is_said_and_what_was_typed_stays(browser: Browser, start: Start, photos: Path) -> None:
    reviewing = Reviewing(start, photos)
    with watched_page(browser) as watched:
        page = visit(watched, reviewing)
        page.fill("#caption", "typed")
        reviewing.running.signal(signal.SIGKILL)
        reviewing.running.wait()
        page.click("#next")
        expect(page.locator("#lost")).to_be_visible()
        expect(page.locator("#caption")).to_have_value("typed")
        expect(page.locator("#name")).to_have_text("0.png")
