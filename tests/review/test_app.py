"""What the page asks for and changes; files outside of the folder are out of reach."""

import shutil
from pathlib import Path

import pytest
from PIL import Image

from tests.conftest import Start
from tests.review.support import Reviewing


@pytest.fixture
def reviewing(start: Start, photos: Path) -> Reviewing:
    return Reviewing(start, photos).enter()


def test_the_page_and_what_it_needs_are_there(reviewing: Reviewing) -> None:
    for path, kind in (("/", "text/html"), ("/page.css", "text/css"), ("/page.js", "text/javascript")):
        assert reviewing.send(path).headers["content-type"].startswith(kind)
    state = reviewing.get("/api/state")
    assert (state["folder"], state["undo"], state["model"]) == ("photos", None, None)
    picture = reviewing.send("/api/picture/0/large")
    assert picture.headers["content-type"] == "image/jpeg"
    assert reviewing.send("/api/picture/0/large", If_None_Match=picture.headers["etag"]).status == 304


def test_a_caption_is_edited_accepted_and_given_back(reviewing: Reviewing, photos: Path) -> None:
    assert reviewing.edit("3.png", " better\n")["message"] == "saved"
    assert (photos / "3.txt").read_text() == "better\n"
    item = reviewing.item("3.png")
    assert (item["text"], item["changed"], item["accepted"]) == ("better", True, False)
    assert reviewing.post("/api/accept", items=[item["id"]], version=item["version"])["message"] == "accepted"
    assert reviewing.item("3.png")["accepted"]
    assert reviewing.get("/api/state")["undo"] == "accept 3.txt"
    assert reviewing.post("/api/undo")["items"] == [item["id"]]
    assert reviewing.post("/api/undo")["message"] == "undone: edit 3.txt"
    assert (photos / "3.txt").read_text() == "a red thing, number 3\n"
    reviewing.post("/api/redo")
    assert (photos / "3.txt").read_text() == "better\n"


def test_a_caption_that_was_changed_elsewhere_is_told(reviewing: Reviewing, photos: Path) -> None:
    item = reviewing.item("0.png")
    (photos / "0.txt").write_text("theirs")
    answer = reviewing.send("/api/edit", {"item": item["id"], "text": "mine", "version": item["version"]})
    assert (answer.status, answer.json()["text"]) == (409, "theirs")
    assert (photos / "0.txt").read_text() == "theirs"


def test_nothing_outside_of_the_folder_is_served_or_written(start: Start, photos: Path, tmp_path: Path) -> None:
    secret = tmp_path / "secret.png"
    shutil.copy(photos / "0.png", secret)
    (tmp_path / "secret.txt").write_text("a secret")
    (photos / "link.png").symlink_to(secret)
    shutil.copy(photos / "0.png", photos / "other.png")
    (photos / "other.txt").symlink_to(tmp_path / "secret.txt")
    (photos / "inside.png").symlink_to(photos / "0.png")
    reviewing = Reviewing(start, photos).enter()
    for path in (
        "/../secret.png",
        "/api/picture/../../secret.png/large",
        "/api/picture/..%2f..%2fsecret.png/large",
        "/api/picture/0/..%2f..%2fsecret.png",
        "/api/picture/999/large",
        "/api/picture/-1/large",
        "/api/item/0.png",
        "/photos/0.png",
        "/page.py",
        "/../server.py",
        "/%2e%2e/server.py",
    ):
        assert reviewing.send(path).status == 404, path
    link = reviewing.item("link.png")["id"]
    assert reviewing.send(f"/api/picture/{link}/large").headers["content-type"] == "image/svg+xml"
    assert "leads out of the folder" in reviewing.get(f"/api/why/{link}")["reason"]
    inside = reviewing.item("inside.png")["id"]
    assert reviewing.send(f"/api/picture/{inside}/large").headers["content-type"] == "image/jpeg"
    other = reviewing.item("other.png")
    assert (other["text"], other["locked"]) == ("", True)
    assert reviewing.send("/api/edit", {"item": other["id"], "text": "x", "version": other["version"]}).status == 422
    assert (tmp_path / "secret.txt").read_text() == "a secret"
    reviewing.running.close()
    allowed = Reviewing(start, photos, "--allow-outside").enter()
    assert allowed.item("other.png")["text"] == "a secret"
    assert allowed.send(f"/api/picture/{link}/large").headers["content-type"] == "image/jpeg"


def test_why_a_picture_is_not_shown(reviewing: Reviewing, photos: Path) -> None:
    (photos / "1.png").write_bytes(b"no picture")
    Image.new("RGB", (1, 1)).save(photos / "2.png")
    one, two = (reviewing.item(name)["id"] for name in ("1.png", "2.png"))
    assert reviewing.send(f"/api/picture/{one}/small").headers["content-type"] == "image/svg+xml"
    assert reviewing.get(f"/api/why/{one}")["reason"] == "not an image that can be read"
    assert reviewing.get(f"/api/why/{two}")["reason"] == ""


@pytest.mark.parametrize(
    ("path", "body", "status"),
    [
        ("/api/edit", {"item": 0, "text": "x"}, 422),
        ("/api/edit", {"item": 999, "text": "x", "version": ""}, 404),
        ("/api/edit", {"item": "../0", "text": "x", "version": ""}, 422),
        ("/api/edit", {"item": 0, "text": "x" * 600_000, "version": ""}, 422),
        ("/api/accept", {"items": [-1]}, 404),
        ("/api/accept", {"items": []}, 422),
        ("/api/accept", {"items": [0], "file": "../x.txt"}, 422),
        ("/api/preview", {"items": [0], "wish": {"do": "delete"}}, 422),
        ("/api/preview", {"items": [0], "wish": {"do": "replace", "find": "(", "replace": "", "regex": True}}, 422),
        ("/api/change", {"items": [0], "wish": {"do": "add", "tag": "x"}, "digest": "wrong"}, 422),
        ("/api/ask", {"item": 0}, 422),
        ("/api/undo", {"more": 1}, 422),
        ("/api/state", {}, 405),
        ("/api/nowhere", {}, 404),
    ],
)
def test_what_makes_no_sense_is_refused(
    reviewing: Reviewing, photos: Path, path: str, body: dict[str, object], status: int
) -> None:
    before = {file: file.read_bytes() for file in photos.iterdir()}
    assert reviewing.send(path, body).status == status
    assert {file: file.read_bytes() for file in photos.iterdir()} == before
