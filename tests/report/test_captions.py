"""The page of a captioning run: what is kept of many images, flags, several tasks, boxes over the pictures."""

import io
from pathlib import Path

import pytest
from PIL import Image
from playwright.sync_api import Browser, expect

from florence2ner.data.samples import ImageRef
from florence2ner.data.shards import ShardImage
from florence2ner.outputs.answers import Answer, Question
from florence2ner.report.captions import Gallery, captions_page
from tests.report.support import HOSTILE, SCREENS, opened

CAPTION, BOXES = Question("<CAPTION>", "caption", True), Question("<OD>", "od", False)


def image_of(folder: Path, name: str) -> ImageRef:
    path = folder / name
    Image.new("RGB", (80, 40), "teal").save(path)
    return ImageRef.at(path)


def test_the_flagged_are_kept_and_the_first_of_the_others() -> None:
    gallery = Gallery(4)
    for number in range(20):
        flags = ("loop",) if number in (3, 11, 17) else ()
        gallery.add(ImageRef.at(Path(f"{number}.png")), (8, 8), [Answer(CAPTION, "text", flags)])
    assert [entry.name for entry in gallery.shown] == ["3.png", "11.png", "17.png", "0.png"]
    assert gallery.seen == 20
    other = Gallery(4)
    other.merge(gallery.seen, gallery.shown)
    other.merge(5, gallery.shown)
    assert other.seen == 25
    assert [entry.name for entry in other.shown] == ["3.png", "11.png", "17.png", "3.png"]
    text = captions_page(other, title="many", settings={})
    assert "4 of 25 images are shown" in text


def test_an_image_of_a_shard_is_made_a_picture_of_while_it_is_there(tmp_path: Path) -> None:
    file = io.BytesIO()
    Image.new("RGB", (50, 30), "red").save(file, "PNG")
    gallery = Gallery(2)
    gallery.add(ShardImage.within("a.tar", "b.png", file.getvalue()), (50, 30), [Answer(CAPTION, "red")])
    gallery.add(ShardImage.within("a.tar", "c.png", b"broken"), (50, 30), [Answer(CAPTION, "?")])
    first, second = gallery.shown
    assert first.name == "a.tar/b.png"
    assert first.picture.startswith("data:image/jpeg")
    assert first.image is None, "its bytes are not kept"
    assert not second.picture


@pytest.mark.parametrize("screen", SCREENS, ids=["light, wide", "dark, phone"])
def test_answers_are_filtered_by_flag_and_task_and_boxes_are_drawn(
    browser: Browser, tmp_path: Path, screen: dict[str, object]
) -> None:
    gallery = Gallery()
    boxes = {"bboxes": [[8, 4, 40, 20]], "labels": [HOSTILE[0]]}
    quads = {"quad_boxes": [[0, 0, 80, 0, 80, 40, 0, 40]], "labels": ["all"]}
    polygons = {"polygons": [[[0, 0, 40, 0, 40, 20], [1, 1, 2, 2, 3, 3]]], "labels": [""]}
    for number, content in enumerate((boxes, quads, polygons, {"bboxes": [], "bboxes_labels": []})):
        flags = ("cut_off",) if number == 1 else ()
        answers = [Answer(CAPTION, f"{HOSTILE[number % 3]} {number}", flags), Answer(BOXES, content)]
        gallery.add(image_of(tmp_path, f"{number} {HOSTILE[1].replace('/', '')}.png"), (80, 40), answers)
    gallery.add(ImageRef.at(tmp_path / "gone.png"), (80, 40), [Answer(CAPTION, "")])
    text = captions_page(gallery, title=HOSTILE[2], settings={"paths": HOSTILE})
    with opened(browser, tmp_path / "page.html", text, **screen) as watched:
        page = watched.page
        assert page.locator(".card").count() == 5
        assert [card.locator("polygon").count() for card in page.locator(".card").all()] == [1, 1, 2, 0, 0]
        assert page.locator(".card").first.locator(".flag").inner_text() == "cut off", "the flagged one is first"
        assert page.locator(".card", has_text="gone.png").locator(".frame.none").count() == 1
        expect(page.locator(".shapes").first).to_have_attribute("viewBox", "0 0 80 40")
        page.get_by_label("task").select_option("<OD>")
        assert page.locator(".card").count() == 4
        assert set(page.locator(".card dt").all_inner_texts()) == {"<OD>"}
        page.get_by_label("task").select_option("<CAPTION>")
        page.get_by_role("button", name="cut off").click()
        assert page.locator(".total").inner_text() == "1 of 5 images"


def test_a_run_that_captioned_nothing_has_a_page_too(browser: Browser, tmp_path: Path) -> None:
    text = captions_page(Gallery(), title="empty", settings={"a": 1})
    with opened(browser, tmp_path / "page.html", text, **SCREENS[0]) as watched:
        assert "images captioned" in watched.page.inner_text("header")
