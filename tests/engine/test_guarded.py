"""Trackers that fail, are slow or hang: a run goes on, the user is told once, and what they can take they get."""

import threading
import time
from collections.abc import Callable
from typing import Any

import pytest
from accelerate.tracking import GeneralTracker

from florence2ner.display import Display
from florence2ner.engine import guarded
from florence2ner.engine.guarded import Background, Guarded
from tests.conftest import ColdStart


class Diary(GeneralTracker):
    """Notes its calls; `waits` holds up those of one method until the event is set."""

    name = "diary"
    requires_logging_directory = False
    main_process_only = False

    def __init__(self, waits: str = "", event: threading.Event | None = None) -> None:
        super().__init__()
        self.notes: list[Any] = []
        self._waits, self._event = waits, event
        self.threads: set[str] = set()

    @property
    def tracker(self) -> str:
        return "the diary"

    def _note(self, method: str, what: object) -> None:
        if method == self._waits:
            assert self._event is not None
            self._event.wait()
        self.threads.add(threading.current_thread().name)
        self.notes.append((method, what))

    def start(self) -> None:
        self._note("start", None)

    def store_init_configuration(self, values: dict[str, Any]) -> None:
        self._note("settings", values)

    def log(self, values: dict[str, Any], step: int | None = None, **_: Any) -> None:
        self._note("log", (step, values))

    def finish(self) -> None:
        self._note("finish", None)


def use(tracker: Guarded, lines: int = 3) -> None:
    """All that a run does with a tracker."""
    tracker.start()
    tracker.store_init_configuration({"seed": 1})
    for step in range(lines):
        tracker.log({"loss": step}, step=step)
    tracker.finish()


WHOLE = [("start", None), ("settings", {"seed": 1}), *(("log", (n, {"loss": n})) for n in range(3)), ("finish", None)]


@pytest.mark.parametrize(("kind", "thread"), [(Guarded, "MainThread"), (Background, "tracker diary")])
def test_all_calls_come_in_their_order_and_before_the_end(
    kind: type[Guarded], thread: str, capsys: pytest.CaptureFixture[str]
) -> None:
    diary = Diary()
    tracker = kind("diary", lambda: diary, Display(is_main=True))
    assert tracker.tracker is None
    use(tracker)
    assert diary.notes == WHOLE
    assert diary.threads == {thread}
    assert tracker.tracker == "the diary"
    assert not tracker.has_tables
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize("kind", [Guarded, Background])
@pytest.mark.parametrize("error", [RuntimeError("no\nroom"), SystemExit("no room")])
def test_one_that_cannot_even_be_made_is_told_once(
    kind: type[Guarded], error: BaseException, capsys: pytest.CaptureFixture[str]
) -> None:
    def make() -> GeneralTracker:
        raise error

    use(kind("diary", make, Display(is_main=True)))
    assert capsys.readouterr().err == "warning: diary failed, training goes on without what it missed: no room\n"


@pytest.mark.parametrize(
    ("waits", "said"),
    [
        ("start", "it has not started within 0.1 seconds"),
        ("settings", "it has not sent everything within 0.1 seconds after the end"),
        ("log", "it has not sent everything within 0.1 seconds after the end"),
        ("finish", "it has not sent everything within 0.1 seconds after the end"),
    ],
)
def test_one_that_hangs_is_not_waited_for_and_gets_everything_where_it_wakes(
    waits: str, said: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(guarded, "START_LIMIT", 0.1)
    monkeypatch.setattr(guarded, "FINISH_LIMIT", 0.1)
    wakes = threading.Event()
    diary = Diary(waits, wakes)
    tracker = Background("diary", lambda: diary, Display(is_main=True))
    use(tracker)
    assert capsys.readouterr().err == f"warning: diary failed, training goes on without what it missed: {said}\n"
    assert len(diary.notes) < len(WHOLE)
    wakes.set()
    tracker._thread.join()
    assert diary.notes == WHOLE


@pytest.mark.parametrize(
    ("limit", "value", "said"),
    [("SILENCE_LIMIT", 0.0, "it has not answered for 0 seconds"), ("QUEUE_LENGTH", 4, "4 lines wait for it")],
)
def test_a_run_goes_on_while_it_hangs_and_the_user_learns_of_it_then(
    limit: str, value: float, said: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(guarded, limit, value)
    wakes = threading.Event()
    diary = Diary("settings", wakes)
    tracker = Background("diary", lambda: diary, Display(is_main=True))
    tracker.start()
    tracker.store_init_configuration({})
    for step in range(8):
        tracker.log({}, step=step)
        _until(lambda: tracker._busy_since is not None)
    assert capsys.readouterr().err.count(f"training goes on without what it missed: {said}") == 1
    wakes.set()
    tracker.finish()
    steps = [what[0] for method, what in diary.notes if method == "log"]
    assert steps == (list(range(8)) if limit == "SILENCE_LIMIT" else steps[:4])
    assert steps == sorted(steps)
    assert capsys.readouterr().err == ""


def _until(condition: Callable[[], bool]) -> None:
    end = time.monotonic() + 30
    while not condition():
        assert time.monotonic() < end


PROGRAM = """
import threading
from florence2ner.display import Display
from florence2ner.engine import guarded
from tests.engine.test_guarded import Diary, use
guarded.FINISH_LIMIT = 0.1
use(guarded.Background("diary", lambda: Diary("log", threading.Event()), Display(is_main=True)))
print("over")
"""


def test_a_process_ends_though_a_tracker_never_does(cold_start: ColdStart) -> None:
    run = cold_start("-c", PROGRAM)
    out, said = run.communicate(timeout=120)
    assert (run.returncode, out) == (0, "over\n"), said
    assert said.count("warning:") == 1
