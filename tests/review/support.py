"""A review that runs, and a client that talks to it as the page does."""

import json
import re
import time
import urllib.error
import urllib.request
from http.cookies import SimpleCookie
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from florence2ner.config.commands import ReviewConfig
from florence2ner.review.changes import Changes
from florence2ner.review.journal import Journal
from florence2ner.review.library import Library
from tests.conftest import Start
from tests.programs.starting import Running


class _NoRedirects(urllib.request.HTTPRedirectHandler):
    def redirect_request(self, *args: object) -> None:
        return None


class Answer:
    """What the server answered."""

    def __init__(self, response: Any) -> None:
        self.status: int = response.status
        self.headers = response.headers
        self.content: bytes = response.read()

    def json(self) -> Any:
        return json.loads(self.content)


class Reviewing:
    """A `florence2ner review` of a folder in a process of its own, and a client of it."""

    def __init__(self, start: Start, folder: Path, *args: object) -> None:
        self.running: Running = start("florence2ner", "review", folder, *args)
        end = time.monotonic() + 120
        while not (found := re.search(r"http://\S+", self.running.stdout)):
            assert self.running.poll(0.02) is None, self.running.stderr
            assert time.monotonic() < end
        self.address = found[0]
        self.base = self.address.partition("/?")[0]
        self.host = urlsplit(self.base).netloc
        self.cookie = ""

    def enter(self) -> "Reviewing":
        """Trade the token for the cookie."""
        answer = self.send(self.address.removeprefix(self.base))
        assert answer.status == 303, answer.content
        cookie = SimpleCookie(answer.headers["set-cookie"])
        self.cookie = "; ".join(f"{name}={morsel.value}" for name, morsel in cookie.items())
        return self

    def send(self, path: str, body: Any = None, **headers: str | None) -> Answer:
        """Send a request with the cookie, and those headers that a browser sends; None leaves one out."""
        usual: dict[str, str | None] = {"Host": self.host, "Cookie": self.cookie or None}
        if body is not None:
            usual |= {"Origin": self.base, "Content-Type": "application/json"}
        usual |= {name.replace("_", "-"): value for name, value in headers.items()}
        data = None if body is None else json.dumps(body).encode()
        request = urllib.request.Request(self.base + path, data)
        for name, value in usual.items():
            if value is not None:
                request.add_header(name, value)
        try:
            with urllib.request.build_opener(_NoRedirects).open(request, timeout=60) as response:
                return Answer(response)
        except urllib.error.HTTPError as error:
            return Answer(error)

    def get(self, path: str) -> Any:
        answer = self.send(path)
        assert answer.status == 200, answer.content
        return answer.json()

    def post(self, path: str, **body: Any) -> Any:
        answer = self.send(path, body)
        assert answer.status == 200, answer.content
        return answer.json()

    def item(self, name: str) -> Any:
        """The item with that image."""
        view = self.get("/api/view?filter=all")
        rows = self.get(f"/api/view/{view['view']}/rows?start=0&count=500")
        return self.get(f"/api/item/{next(row['id'] for row in rows if row['name'] == name)}")

    def edit(self, name: str, text: str, **more: Any) -> Any:
        item = self.item(name)
        return self.post("/api/edit", item=item["id"], text=text, version=item["version"], **more)

    def replace(self, find: str, replace: str, **more: Any) -> Any:
        """Replace in all captions, as the preview shows it."""
        items = self.get(f"/api/view/{self.get('/api/view')['view']}/items")
        wish = {"do": "replace", "find": find, "replace": replace, **more}
        digest = self.post("/api/preview", items=items, wish=wish)["digest"]
        return self.post("/api/change", items=items, wish=wish, digest=digest)


class Opened:
    """A review in this process, without a server."""

    def __init__(self, folder: Path, **settings: object) -> None:
        self.library = Library(ReviewConfig.model_validate({"directory": folder, **settings}))
        self.journal = Journal(folder)
        self.changes = Changes(self.library, self.journal)

    def at(self, name: str) -> int:
        """The item with that image."""
        return next(number for number, item in enumerate(self.library.items) if item.image == name)

    def edit(self, name: str, text: str, **more: Any) -> Any:
        at = self.at(name)
        version = self.library.look(self.library.items[at].file).version
        return self.changes.edit(at, text, version, **more)

    def is_accepted(self, name: str) -> bool:
        """Whether the caption of that image is accepted as it is on the disk."""
        number = self.library.items[self.at(name)].file
        self.library.look(number)
        return self.changes.is_accepted(self.library.files[number])
