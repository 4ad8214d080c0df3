"""Lists of images: searched, filtered, and as they were found while captions change."""

import json
from pathlib import Path

import pytest

from florence2ner.review.findings import load_findings
from florence2ner.review.rules import AddTag
from florence2ner.review.views import Views
from tests.review.support import Opened


@pytest.fixture
def opened(photos: Path) -> Opened:
    (photos / "0.txt").unlink()
    (photos / "1.txt").write_text("loop " * 20)
    (photos / "2.txt").write_text("a blue thing </s>")
    (photos / "3.txt").write_bytes(b"\xff\xfea\0")
    return Opened(photos)


def views_of(opened: Opened, *findings: object) -> Views:
    for number in range(len(opened.library.files)):
        opened.library.look(number)
    return Views(opened.library, opened.changes, findings)  # type: ignore[arg-type]


def names(views: Views, words: str = "", filter_: str = "all") -> list[str]:
    view, total = views.open(words, filter_)
    rows = views.rows(views.items(view) or [])
    assert len(rows) == total
    return [row["name"] for row in rows]


def test_names_and_captions_are_searched_in_any_case(opened: Opened) -> None:
    views = views_of(opened)
    assert names(views) == [f"{n}.png" for n in range(6)]
    assert names(views, "BLUE thing") == ["2.png"]
    assert names(views, "4.PNG") == ["4.png"]
    assert names(views, "<script>") == []


def test_flags_and_states_are_filters(opened: Opened) -> None:
    views = views_of(opened)
    opened.changes.accept([4], accepted=True)
    opened.edit("5.png", "new")
    found = {
        "flag:empty": ["0.png"],
        "flag:loop": ["1.png"],
        "flag:special_tokens": ["2.png"],
        "flag:not_utf8": ["3.png"],
        "accepted": ["4.png"],
        "open": ["0.png", "1.png", "2.png", "3.png", "5.png"],
        "changed": ["5.png"],
        "nonsense": [],
        "finding:nonsense": [],
    }
    assert {value: names(views, filter_=value) for value in found} == found
    counts = {filter_["value"]: filter_["count"] for filter_ in views.filters()}
    assert counts == {value: len(of) for value, of in found.items() if of} | {"all": 6}


def test_a_list_stays_as_it_was_found(opened: Opened) -> None:
    views = views_of(opened)
    view, _ = views.open("", "open")
    opened.changes.accept([4], accepted=True)
    assert [row["accepted"] for row in views.rows(views.items(view) or [])] == [False] * 4 + [True, False]
    for _ in range(20):
        views.open("", "all")
    assert views.items(view) is None


def test_an_item_is_read_from_the_disk(opened: Opened, photos: Path) -> None:
    views = views_of(opened)
    (photos / "4.txt").write_text("new\n")
    assert views.item(4)["text"] == "new"
    (photos / "4.txt").unlink()
    assert (views.item(4)["text"], views.item(4)["flags"]) == ("", ["no caption"])


def test_findings_are_filters_and_stand_beside_their_images(opened: Opened, photos: Path, tmp_path: Path) -> None:
    case = {"name": "4.png", "detail": "8 x 8 pixels", "images": ["4.png"]}
    finding = {"kind": "small", "title": "images are small", "examples": [case]}
    file = tmp_path / "found.json"
    file.write_text(json.dumps({"dataset_path": [str(photos)], "eval_path": [], "findings": [finding]}))
    views = views_of(opened, *load_findings(file, photos))
    assert names(views, filter_="finding:small") == ["4.png"]
    assert views.item(4)["findings"] == [{"title": "images are small", "detail": "8 x 8 pixels"}]
    assert views.filters()[-1] == {
        "group": "Findings",
        "value": "finding:small",
        "label": "images are small",
        "count": 1,
    }


def test_a_tag_makes_a_caption_where_there_is_none(opened: Opened, photos: Path) -> None:
    wish = AddTag(do="add", tag="night")
    opened.changes.change([0], wish, opened.changes.preview([0], wish).digest)
    assert (photos / "0.txt").read_text() == "night\n"
