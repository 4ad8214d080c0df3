"""Logs metrics to metrics.jsonl, Weights & Biases, TensorBoard and any other tracker that Accelerate knows by name."""

import errno
import json
import os
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from functools import partial
from http.client import HTTPException
from pathlib import Path
from typing import Any
from urllib.error import HTTPError, URLError
from urllib.request import Request, urlopen

from accelerate import Accelerator
from accelerate.tracking import (
    LOGGER_TYPE_TO_CLASS,
    GeneralTracker,
    WandBTracker,
    get_available_trackers,
    on_main_process,
)
from accelerate.utils import LoggerType

from florence2ner.display import Display
from florence2ner.engine.guarded import FINISH_LIMIT, START_LIMIT, Background, Guarded, Rows
from florence2ner.errors import UserError, did_you_mean
from florence2ner.files import METRICS_FILE, write_text

OUR_OWN = ("jsonl", "none")  # names of log_with that are not Accelerate's
_DISTRIBUTIONS = {"aim": '"aim<4"', "comet_ml": "comet-ml"}  # of trackers whose package has another name


class JsonlTracker(GeneralTracker):  # type: ignore[misc]
    """An Accelerate tracker that writes one JSON object per line: step, Unix time in seconds, and the metrics."""

    name = "jsonl"
    requires_logging_directory = False

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.path = path

    @property
    def tracker(self) -> Path:
        """The file that is written to; Accelerate wants this property."""
        return self.path

    @on_main_process  # type: ignore[untyped-decorator]
    def log(self, values: dict[str, Any], step: int | None = None, **_: Any) -> None:
        """Append a line; it is handed to the operating system when this returns. Raises UserError where that fails."""
        line = json.dumps({"step": step, "time": round(time.time(), 3)} | values) + "\n"
        try:
            with self.path.open("ab", buffering=0) as file:
                end = file.tell()
                if file.write(line.encode()) < len(line):  # the disk is filling up: no part of the line may stay
                    with suppress(OSError):
                        file.truncate(end)
                    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        except OSError as error:
            raise UserError(f"can't write {self.path}: {error.strerror}") from error


def check_trackers(log_with: Sequence[str]) -> None:
    """Raise UserError for a tracker that nobody knows, and for one that is not installed."""
    known = (*LOGGER_TYPE_TO_CLASS, *OUR_OWN)
    for name in log_with:
        if name not in known:
            raise UserError(
                f"log_with: there is no tracker {name!r}.{did_you_mean(name, known)} There are: {', '.join(known)}"
            )
        is_foreign = name in LoggerType.list()  # else it was registered by a program, which has it
        if is_foreign and name not in map(str, get_available_trackers()):
            raise UserError(f"log_with {name} needs its package: pip install {_DISTRIBUTIONS.get(name, name)}")


def rewind_metrics(run_dir: Path, step: int) -> None:
    """Remove lines of later steps than `step` from metrics.jsonl, since a resumed run writes them again."""
    path = run_dir / METRICS_FILE
    if path.exists():
        lines = path.read_text(encoding="utf-8").splitlines(keepends=True)
        kept = [line for line in lines if line.endswith("\n") and json.loads(line)["step"] <= step]
        write_text(path, "".join(kept))


def read_metrics(run_dir: Path) -> tuple[dict[str, float], ...]:
    """The lines of metrics.jsonl; nothing where there is no such file."""
    path = run_dir / METRICS_FILE
    return tuple(map(json.loads, path.read_text(encoding="utf-8").splitlines())) if path.exists() else ()


@contextmanager
def tracking(
    accelerator: Accelerator,
    display: Display,
    run_dir: Path,
    settings: Mapping[str, Any],
    *,
    log_with: Sequence[str],
    project: str,
    tracker_id: str,
    step: int,
) -> Iterator[None]:
    """A context manager in which `accelerator.log` writes to the trackers of `log_with`, and to metrics.jsonl.

    Each of them has a thread of its own, but the file, which is written at once. W&B runs offline where there is no
    login or no network; it never prompts. `tracker_id` is the id of the W&B run; with the same id, a resumed run goes
    on in the same W&B run. `step` is what the run starts from. A tracker that fails or hangs is named once, and nothing
    ends. Every process must call this.
    """
    accelerator.log_with, accelerator.trackers = [], []
    if not accelerator.is_main_process:
        yield
        return
    trackers: list[Guarded] = []
    if "none" not in log_with:
        trackers = [Guarded("jsonl", lambda: JsonlTracker(run_dir / METRICS_FILE), display)]
    place = _Place(display, run_dir, project, tracker_id, step)
    trackers += [Background(name, partial(_make, name, place), display) for name in log_with if name not in OUR_OWN]
    accelerator.log_with = trackers
    values = {
        key: value if isinstance(value, (int, float, str, bool)) else str(value) for key, value in settings.items()
    }
    with ExitStack() as stack:
        if "wandb" in log_with:
            # For tables before they are kept or sent, and for its log: else in the home folder. Where that is
            # read-only, tables fail, and the log goes to the terminal.
            for name, folder in (("WANDB_DATA_DIR", "wandb"), ("WANDB_CACHE_DIR", "wandb/cache")):
                stack.enter_context(_default_in_environment(name, str(run_dir / folder)))
        try:
            accelerator.init_trackers(project, values)
            for tracker in trackers:
                if tracker.name == "wandb" and tracker.tracker and tracker.tracker.url:
                    display.say(f"Weights & Biases: {tracker.tracker.url}")
            yield
        finally:
            for tracker in trackers:
                tracker.finish()


@dataclass(frozen=True)
class _Place:
    """What trackers are made for: the run, and where it goes on."""

    display: Display
    run_dir: Path
    project: str
    tracker_id: str
    step: int


def _make(name: str, place: _Place) -> GeneralTracker:
    """The tracker of this name as Accelerate makes it, with the options that it needs here."""
    options: dict[str, Any] = {}
    if name == "wandb":
        return _WandB(place)
    if name == "tensorboard":  # what an earlier start logged of steps that are made again is hidden
        options = {"purge_step": place.step + 1 if place.step else 0}
    elif name == "trackio":
        options = {"name": f"{place.run_dir.name}-{place.tracker_id}", "resume": "allow"}
    elif name == "mlflow":
        options = {"run_name": place.run_dir.name}
    kind = LOGGER_TYPE_TO_CLASS[name]
    folder = (place.run_dir,) if kind.requires_logging_directory else ()
    return kind(place.project, *folder, **options)


def has_tables(accelerator: Accelerator) -> bool:
    """Whether one of the trackers can show tables."""
    return any(tracker.has_tables for tracker in accelerator.trackers)


def log_captions(accelerator: Accelerator, rows: Rows, *, step: int) -> None:
    """Log rows of truth, prediction and thumbnail as a table, in the trackers that can show tables."""
    for tracker in accelerator.trackers:
        tracker.log_captions(rows, step)


class _WandB(WandBTracker):  # type: ignore[misc]
    """Accelerate's tracker for Weights & Biases, which runs offline where its server can't be used."""

    def __init__(self, place: _Place) -> None:
        # Before wandb is imported; what matters of it, we say ourselves.
        os.environ.setdefault("WANDB_SILENT", "true")
        import wandb

        limits = {"init_timeout": START_LIMIT / 2, "finish_timeout": FINISH_LIMIT * 0.8, "finish_timeout_raises": True}
        self._always: dict[str, Any] = {"dir": str(place.run_dir), "name": place.run_dir.name, "id": place.tracker_id}
        self._always["settings"] = wandb.Settings(**limits)
        super().__init__(place.project)
        self._display = place.display

    def start(self) -> None:
        """Start the run, online where that can be. Says so where it runs offline."""
        import wandb

        if not (reason := _why_wandb_is_offline()):
            try:
                self._start(resume="allow")
                return
            except Exception as error:  # such as a key that the server refuses, or a server that says no more
                reason = " ".join(str(error).split())
                wandb.teardown()  # of what it began, which has the run's id
        self._start(mode="offline")
        self._display.say(
            f"Weights & Biases runs offline ({reason}); upload later with: "
            f"wandb sync {self._always['dir']}/wandb/offline-run-*"
        )

    def _start(self, **options: Any) -> None:
        self.init_kwargs = self._always | options
        super().start()


@contextmanager
def _default_in_environment(name: str, value: str) -> Iterator[None]:
    """A context manager in which an environment variable has this value, unless the user gave it another."""
    if name in os.environ:
        yield
        return
    os.environ[name] = value
    try:
        yield
    finally:
        del os.environ[name]


def _why_wandb_is_offline() -> str | None:
    """Why W&B must run offline, or None where it can be online or is disabled. Tries its server for up to 5 seconds."""
    mode = os.environ.get("WANDB_MODE")
    if mode in {"offline", "disabled"}:
        return "WANDB_MODE=offline" if mode == "offline" else None
    import wandb

    try:
        if not wandb.login(prompt=False, verify=False):
            return "no login; wandb login makes one"
        urlopen(Request(wandb.setup().settings.base_url, method="HEAD"), timeout=5).close()
    except HTTPError:
        return None  # the server did answer
    except (URLError, TimeoutError, HTTPException):
        return "its server can't be reached"
    except Exception as error:  # such as a key that it refuses, or a folder that it can't write to
        return " ".join(str(error).split())
    return None
