"""Nobody gets in but who has the token, by the right name, from the page itself."""

import socket
from pathlib import Path

import pytest

from tests.conftest import Start
from tests.review.support import Reviewing


@pytest.fixture
def reviewing(start: Start, photos: Path) -> Reviewing:
    return Reviewing(start, photos).enter()


def test_without_the_cookie_there_is_nothing(reviewing: Reviewing) -> None:
    for path in ("/", "/page.js", "/page.css", "/icon.svg", "/api/state", "/api/picture/0/large", "/nowhere"):
        for cookie in (None, "florence2ner=x", f"{reviewing.cookie}x", "\x01=;;"):
            answer = reviewing.send(path, Cookie=cookie)
            assert answer.status == 403, (path, cookie)
            assert b"photos" not in answer.content
    assert reviewing.send("/").status == 200


@pytest.mark.parametrize("token", ["", "wrong", "%00", "%ff", "\u00e9".encode().hex()])
def test_a_wrong_token_gives_no_cookie(reviewing: Reviewing, token: str) -> None:
    answer = reviewing.send(f"/?token={token}", Cookie=None)
    assert answer.status == 403
    assert "set-cookie" not in answer.headers


def test_the_token_becomes_a_strict_cookie(reviewing: Reviewing) -> None:
    answer = reviewing.send(reviewing.address.removeprefix(reviewing.base), Cookie=None)
    assert (answer.status, answer.headers["location"]) == (303, "/")
    token = reviewing.address.partition("token=")[2]
    assert len(token) > 40
    cookie = answer.headers["set-cookie"].lower()
    assert all(word in cookie for word in ("httponly", "samesite=strict", "path=/"))
    assert token.lower() not in cookie
    assert reviewing.send(f"/api/state?token={token}", Cookie=None).status == 403


def test_a_foreign_host_is_refused(reviewing: Reviewing) -> None:
    port = reviewing.host.partition(":")[2]
    for host in (
        "evil.example",
        f"evil.example:{port}",
        "127.0.0.1",
        "127.0.0.1:1",
        f"127.0.0.1.evil.example:{port}",
        "",
    ):
        assert reviewing.send("/", Host=host).status == 400, host
    assert reviewing.send("/", Host=f"localhost:{port}").status == 200


def test_changes_come_from_the_page_only(reviewing: Reviewing, photos: Path) -> None:
    item = reviewing.item("0.png")
    body = {"item": item["id"], "text": "changed", "version": item["version"]}
    for headers in (
        {"Origin": "http://evil.example"},
        {"Origin": "null"},
        {"Origin": f"https://{reviewing.host}"},
        {"Origin": None},
        {"Origin": None, "Sec_Fetch_Site": "cross-site"},
        {"Origin": None, "Sec_Fetch_Site": "same-site"},
    ):
        assert reviewing.send("/api/edit", body, **headers).status == 403, headers
    assert reviewing.send("/api/edit", body, Content_Type="text/plain").status == 415
    assert (photos / "0.txt").read_text() == "a red thing, number 0\n"
    assert reviewing.send("/api/edit", body, Origin=None, Sec_Fetch_Site="same-origin").status == 200
    assert (photos / "0.txt").read_text() == "changed\n"


def test_every_answer_has_the_headers_that_keep_it_here(reviewing: Reviewing) -> None:
    for path in ("/", "/api/state", "/nowhere", "/api/picture/0/small"):
        headers = reviewing.send(path).headers
        assert headers["content-security-policy"].startswith("default-src 'none'; script-src 'self'; ")
        assert headers["x-content-type-options"] == "nosniff"
        assert headers["referrer-policy"] == "no-referrer"
        assert headers["cache-control"] == ("private, no-cache" if "picture" in path else "no-store")
        assert "access-control-allow-origin" not in headers
        assert "server" not in headers
    assert reviewing.send("/api/state", Host="evil.example").headers["x-frame-options"] == "DENY"


def test_the_token_is_printed_once_and_logged_nowhere(reviewing: Reviewing) -> None:
    reviewing.get("/api/state")
    token = reviewing.address.partition("token=")[2]
    assert reviewing.running.stdout.count(token) == 1
    assert reviewing.running.stderr == ""


def test_other_machines_come_in_only_where_that_was_said(start: Start, photos: Path) -> None:
    reviewing = Reviewing(start, photos, "--host", "0.0.0.0")
    assert (
        "warning: whoever knows the address below and reaches 0.0.0.0 can change the captions"
        in reviewing.running.stderr
    )
    reviewing.base = reviewing.base.replace("0.0.0.0", "127.0.0.1")
    port = reviewing.host.partition(":")[2]
    reviewing.host = f"127.0.0.1:{port}"
    reviewing.address = reviewing.address.replace("0.0.0.0", "127.0.0.1")
    reviewing.enter()
    for host in (f"192.0.2.7:{port}", f"[2001:db8::1]:{port}", f"{socket.gethostname()}:{port}"):
        assert reviewing.send("/", Host=host).status == 200
    assert reviewing.send("/", Host=f"rebound.example:{port}").status == 400
