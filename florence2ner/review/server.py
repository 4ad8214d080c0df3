"""The review command: serves a page to look through images and captions, and to change them, until Ctrl-C."""

import os
import secrets
import signal
import socket
import sys
import threading
import webbrowser
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType

import uvicorn

from florence2ner.config.commands import ReviewConfig
from florence2ner.config.options import ReadingOptions
from florence2ner.data.layouts.choice import KINDS, choose_layout
from florence2ner.display import Display
from florence2ner.errors import Interrupted, UserError
from florence2ner.files import check_writable, hold, sweep_unfinished
from florence2ner.review.app import build_app
from florence2ner.review.ask import Answering, Asking
from florence2ner.review.changes import Changes
from florence2ner.review.findings import load_findings
from florence2ner.review.guard import Guard
from florence2ner.review.journal import Journal
from florence2ner.review.library import Library
from florence2ner.review.pictures import Pictures
from florence2ner.review.views import Views

_LOOPBACK = ("127.0.0.1", "localhost", "::1")


def review(config: ReviewConfig) -> None:
    """Serve the review page of a folder until SIGINT or SIGTERM.

    Raises UserError for a folder that can't be written to, is reviewed already or keeps its captions otherwise than in
    files beside images, for a damaged journal, findings that can't be read and a port that is taken; Interrupted after
    SIGTERM.
    """
    display = Display(is_main=True)
    folder = config.directory
    _check_layout(config)
    check_writable(folder, "review writes captions and its journal there: give yourself the right to, or copy it")
    with hold(Path(os.path.realpath(folder), "review"), f"the folder {folder}", "go on in that review, or end it"):
        findings = load_findings(config.findings, folder) if config.findings else ()
        library = Library(config)
        for line in library.left_out.report():
            display.warn(line)
        if not library.items:
            raise UserError(f"there is no image in {folder}: name a folder with images")
        for place in {(folder / file.name).parent for file in library.files}:
            sweep_unfinished(place)
        changes = Changes(library, Journal(folder))
        if (written := changes.recover()) is not None:
            display.say(f"the last change was interrupted and is completed now: {written} files written")
        asking = Asking(config, _load_model)
        views, pictures = Views(library, changes, findings), Pictures(config.max_pixels)
        app = build_app(library, changes, views, pictures, asking)
        with _listen(config) as listener, _reading(library):
            port, token = listener.getsockname()[1], secrets.token_urlsafe(32)
            host = f"[{config.host}]" if ":" in config.host else config.host
            address = f"http://{host}:{port}/?token={token}"
            if config.host not in _LOOPBACK:
                display.warn(
                    f"whoever knows the address below and reaches {config.host} can change the captions, and the "
                    "connection is not encrypted; ssh -L is safer"
                )
            print(f"reviewing {len(library.items)} images: open {address} (Ctrl-C ends it)", flush=True)
            if config.open:
                webbrowser.open(address)
            received = _serve(Guard(app, host=config.host, port=port, token=token), listener)
            with library.lock:  # until a change that is being made is made
                pass
    if received == signal.SIGTERM:
        raise Interrupted("the review was ended by SIGTERM: every change is on the disk", signal=received)
    display.say("the review has ended; every change is on the disk")


def _load_model(config: ReviewConfig) -> Answering:
    from florence2ner.review.model import Model  # imports torch, which takes seconds: not before a model is asked

    return Model(config)


def _check_layout(config: ReviewConfig) -> None:
    """Raise UserError where training reads the folder's captions from something else than files beside images."""
    layout = choose_layout(config.directory, ReadingOptions(caption_extension=config.caption_extension))
    if layout != "files":
        raise UserError(
            f"{config.directory} is read as {KINDS[layout]}, and review is for images with caption files beside them: "
            "name a folder of those"
        )


@contextmanager
def _listen(config: ReviewConfig) -> Iterator[socket.socket]:
    """A context manager with a socket that listens. Raises UserError where the address can't be had."""
    try:
        ((family, kind, _, _, address), *_) = socket.getaddrinfo(
            config.host, config.port or 0, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )
        listener = socket.socket(family, kind)
    except OSError as error:
        raise UserError(f"can't serve at {config.host}: {error.strerror}; choose another --host") from None
    with listener:
        try:
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            listener.bind(address)
            listener.listen(128)
        except OSError as error:
            place, fix = (f" port {config.port}", "--port") if config.port else ("", "--host")
            raise UserError(f"can't serve at {config.host}{place}: {error.strerror}; choose another {fix}") from None
        yield listener


@contextmanager
def _reading(library: Library) -> Iterator[None]:
    """A context manager in which a thread reads all captions, so that they can be searched."""
    stop = threading.Event()
    thread = threading.Thread(target=library.read_all, args=(stop,), daemon=True)
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join()


class _Server(uvicorn.Server):
    """A server that ends by SIGINT and SIGTERM, and says which it was."""

    received: int | None = None

    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Uvicorn's own would raise the signal once more when it has ended."""
        before = {number: signal.signal(number, self._note) for number in (signal.SIGINT, signal.SIGTERM)}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    def _note(self, number: int, frame: FrameType | None) -> None:
        self.received = number
        self.handle_exit(number, frame)


def _serve(app: Guard, listener: socket.socket) -> int | None:
    """Serve until a signal. Returns that."""
    config = uvicorn.Config(
        app,
        access_log=False,  # with it, the token would be in what is printed
        log_level="warning",
        lifespan="off",
        ws="none",
        loop="asyncio",
        http="h11",
        server_header=False,
        proxy_headers=False,
        timeout_graceful_shutdown=1,
    )
    server = _Server(config)
    server.run(sockets=[listener])
    if server.received is None:
        sys.exit(1)  # it has said why
    return server.received
