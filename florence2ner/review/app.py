"""The review page's application: what it asks for and what it changes, as JSON; see `guard.py` for who may."""

from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError
from starlette.applications import Starlette
from starlette.concurrency import run_in_threadpool
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from florence2ner.data.pictures import ImageError
from florence2ner.errors import UserError
from florence2ner.files import as_utf8
from florence2ner.review.ask import Asking, Question
from florence2ner.review.changes import Changes, Conflict, Outcome
from florence2ner.review.library import Library
from florence2ner.review.pictures import SIDES, Pictures
from florence2ner.review.rules import Wish
from florence2ner.review.views import Views

_HERE = Path(__file__).parent
_ASSETS = {
    "/": ("page.html", "text/html"),
    "/page.css": ("page.css", "text/css"),
    "/page.js": ("page.js", "text/javascript"),
    "/icon.svg": ("icon.svg", "image/svg+xml"),
}
# Stands for one that can't be shown; the page knows it by its size.
_NO_PICTURE = '<svg xmlns="http://www.w3.org/2000/svg" width="1" height="1"/>'
_LARGEST = 32_000_000  # bytes of what the page may send
_MOST_ROWS = 500  # rows of a list at once


class _Body(BaseModel):
    model_config = ConfigDict(extra="forbid")


class _Edit(_Body):
    item: int
    text: str = Field(max_length=500_000)
    version: str
    accept: bool = False
    is_answer: bool = False  # the text is one of the model's answers


class _Accept(_Body):
    items: list[int]
    accepted: bool = True
    version: str | None = None  # of the reading that the user saw, of a single item


class _Preview(_Body):
    items: list[int]
    wish: Wish


class _Change(_Preview):
    digest: str


class _Ask(_Body):
    item: int
    questions: list[Question] | None = Field(None, min_length=1, max_length=16)  # None: the usual ones


AnyBody = TypeVar("AnyBody", bound=_Body)


class _Problem(Exception):
    """What the page is told in place of an answer."""

    def __init__(self, message: str, status: int) -> None:
        super().__init__(message)
        self.status = status


def build_app(library: Library, changes: Changes, views: Views, pictures: Pictures, asking: Asking) -> Starlette:
    """The application. It trusts every request: put it behind a `Guard`."""
    endpoints = _Endpoints(library, changes, views, pictures, asking)
    get: dict[str, Callable[[Request], Response]] = {
        "/api/state": endpoints.state,
        "/api/view": endpoints.view,
        "/api/view/{view:int}/rows": endpoints.rows,
        "/api/view/{view:int}/items": endpoints.items,
        "/api/item/{item:int}": endpoints.item,
        "/api/picture/{item:int}/{size}": endpoints.picture,
        "/api/why/{item:int}": endpoints.why,
        "/api/ask/{job:int}": endpoints.answers,
        **dict.fromkeys(_ASSETS, _asset),
    }
    post = [
        _posted("/api/edit", _Edit, endpoints.edit),
        _posted("/api/accept", _Accept, endpoints.accept),
        _posted("/api/preview", _Preview, endpoints.preview),
        _posted("/api/change", _Change, endpoints.change),
        _posted("/api/undo", _Body, endpoints.undo),
        _posted("/api/redo", _Body, endpoints.redo),
        _posted("/api/ask", _Ask, endpoints.ask),
    ]
    return Starlette(
        routes=[*(Route(path, endpoint, methods=["GET"]) for path, endpoint in get.items()), *post],
        exception_handlers={_Problem: _problem, Conflict: _conflict, UserError: _user_error},
    )


class _Endpoints:
    """The answers. Starlette runs each in a thread of its own."""

    def __init__(self, library: Library, changes: Changes, views: Views, pictures: Pictures, asking: Asking) -> None:
        self._library = library
        self._changes = changes
        self._views = views
        self._pictures = pictures
        self._asking = asking

    # --- reading ------------------------------------------------------------------------------------------------------

    def state(self, request: Request) -> Response:
        changes, asking = self._changes, self._asking
        return JSONResponse(
            {
                "folder": as_utf8(self._library.root.resolve().name),
                "files": len(self._library.files),
                "read": self._library.read,
                "filters": self._views.filters(),
                "undo": changes.undoable,
                "redo": changes.redoable,
                "progress": changes.progress,
                "model": asking.model_name,
                "tasks": asking.tasks,
                "beams": asking.beams,
            }
        )

    def view(self, request: Request) -> Response:
        query = request.query_params
        view, total = self._views.open(query.get("words", ""), query.get("filter", "all"))
        return JSONResponse({"view": view, "total": total})

    def rows(self, request: Request) -> Response:
        start, count = _number(request, "start"), min(_number(request, "count"), _MOST_ROWS)
        return JSONResponse(self._views.rows(self._items(request)[start : start + count]))

    def items(self, request: Request) -> Response:
        return JSONResponse(list(self._items(request)))

    def item(self, request: Request) -> Response:
        return JSONResponse(self._views.item(self._checked(request.path_params["item"])))

    def picture(self, request: Request) -> Response:
        item, size = self._checked(request.path_params["item"]), request.path_params["size"]
        if size not in SIDES:
            raise _Problem("there is no such size", 404)
        try:
            image = self._library.image_of(self._library.items[item])
            tag = f'"{self._pictures.tag(image, size)}"'
            headers = {"etag": tag, "cache-control": "private, no-cache"}
            if request.headers.get("if-none-match") == tag:
                return Response(status_code=304, headers=headers)
            return Response(self._pictures.get(image, size), media_type="image/jpeg", headers=headers)
        except (ImageError, UserError):  # an <img> tells no reason, and browsers print errors: the page asks for it
            return Response(_NO_PICTURE, media_type="image/svg+xml")

    def why(self, request: Request) -> Response:
        """Why the picture of an item can't be shown; nothing where it can."""
        try:
            image = self._library.image_of(self._library.items[self._checked(request.path_params["item"])])
            self._pictures.get(image, "small")
        except (ImageError, UserError) as error:
            return JSONResponse({"reason": str(error)})
        return JSONResponse({"reason": ""})

    def answers(self, request: Request) -> Response:
        job = self._asking.job(request.path_params["job"])
        if job is None:
            raise _Problem("these answers are gone: ask again", 404)
        return JSONResponse(job.as_json())

    # --- changing -----------------------------------------------------------------------------------------------------

    def edit(self, body: _Edit) -> dict[str, Any]:
        what = "take the model's answer for" if body.is_answer else "edit"
        item = self._checked(body.item)
        return self._done(self._changes.edit(item, body.text, body.version, accept=body.accept, what=what))

    def accept(self, body: _Accept) -> dict[str, Any]:
        items = self._all_checked(body.items)
        return self._done(self._changes.accept(items, accepted=body.accepted, version=body.version))

    def preview(self, body: _Preview) -> dict[str, Any]:
        found = self._changes.preview(self._all_checked(body.items), body.wish)
        items = self._library.items
        shown = [
            {"item": item, "name": as_utf8(items[item].image), "before": before, "after": after}
            for item, before, after in found.shown
        ]
        return {"count": found.count, "left_out": found.left_out, "digest": found.digest, "shown": shown}

    def change(self, body: _Change) -> dict[str, Any]:
        return self._done(self._changes.change(self._all_checked(body.items), body.wish, body.digest))

    def undo(self, body: _Body) -> dict[str, Any]:
        return self._done(self._changes.undo())

    def redo(self, body: _Body) -> dict[str, Any]:
        return self._done(self._changes.redo())

    def ask(self, body: _Ask) -> dict[str, Any]:
        image = self._library.image_of(self._library.items[self._checked(body.item)])
        return self._asking.ask(image, body.questions or self._asking.usual()).as_json()

    # --- what is asked for --------------------------------------------------------------------------------------------

    def _items(self, request: Request) -> Any:
        found = self._views.items(request.path_params["view"])
        if found is None:
            raise _Problem("this list is gone: search again", 410)
        return found

    def _checked(self, item: int) -> int:
        if not 0 <= item < len(self._library.items):
            raise _Problem("there is no such image", 404)
        return item

    def _all_checked(self, items: list[int]) -> list[int]:
        return [self._checked(item) for item in items]

    @staticmethod
    def _done(outcome: Outcome) -> dict[str, Any]:
        return {"message": outcome.message, "items": outcome.items}


def _asset(request: Request) -> Response:
    name, media_type = _ASSETS[request.url.path]
    return Response((_HERE / name).read_bytes(), media_type=media_type)


def _number(request: Request, name: str) -> int:
    text = request.query_params.get(name, "0")
    if not (text.isascii() and text.isdigit() and len(text) < 10):
        raise _Problem(f"{name} is no number", 400)
    return int(text)


def _posted(path: str, kind: type[AnyBody], answer: Callable[[AnyBody], dict[str, Any]]) -> Route:
    """A route that reads a JSON body and answers it in a thread."""

    async def endpoint(request: Request) -> Response:
        if request.headers.get("content-type", "").partition(";")[0].strip() != "application/json":
            raise _Problem("the page sends JSON", 415)
        content = bytearray()
        async for part in request.stream():
            content += part
            if len(content) > _LARGEST:
                raise _Problem("too much at once: choose fewer images", 413)
        try:
            body = kind.model_validate_json(bytes(content))
        except ValidationError as error:
            first = error.errors()[0]
            where = ".".join(str(part) for part in first["loc"])
            raise _Problem(f"{where}: {first['msg']}", 422) from None
        return JSONResponse(await run_in_threadpool(answer, body))

    return Route(path, endpoint, methods=["POST"])


async def _problem(request: Request, error: Exception) -> Response:
    assert isinstance(error, _Problem)
    return JSONResponse({"error": str(error)}, error.status)


async def _user_error(request: Request, error: Exception) -> Response:
    return JSONResponse({"error": str(error)}, 422)


async def _conflict(request: Request, error: Exception) -> Response:
    assert isinstance(error, Conflict)
    return JSONResponse({"error": str(error), "text": error.found.text, "version": error.found.version}, 409)
