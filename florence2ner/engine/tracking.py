"""Logs metrics to metrics.jsonl, Weights & Biases and TensorBoard, all through Accelerate's trackers."""

import errno
import json
import os
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from http.client import HTTPException
from importlib.util import find_spec
from pathlib import Path
from typing import Any
from urllib.error import HTTPError, URLError
from urllib.request import Request, urlopen

from accelerate import Accelerator
from accelerate.tracking import GeneralTracker, TensorBoardTracker, WandBTracker, on_main_process
from PIL import Image

from florence2ner.display import Display
from florence2ner.errors import UserError
from florence2ner.files import METRICS_FILE, write_text

TABLE_COLUMNS = ("truth", "prediction", "image")


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


class _Guarded(GeneralTracker):  # type: ignore[misc]
    """A tracker whose failures are told once and end nothing: an update that was computed is worth more than its log.

    It is tried again the next time: a disk may have room then, and what can't take tables may take numbers.
    """

    requires_logging_directory = False
    main_process_only = False  # the tracker itself decides

    def __init__(self, inner: GeneralTracker, display: Display) -> None:
        self.name = inner.name
        super().__init__()
        self._inner = inner
        self._display = display
        self._has_failed = False

    @property
    def tracker(self) -> Any:
        """What the tracker works with, such as the run of Weights & Biases; None where it could not start."""
        return getattr(self._inner, "tracker", None)

    def start(self) -> None:
        """Start the tracker."""
        self._try(self._inner.start)

    def store_init_configuration(self, values: dict[str, Any]) -> None:
        """Log the settings of the run."""
        self._try(self._inner.store_init_configuration, values)

    def log(self, values: dict[str, Any], step: int | None = None, **options: Any) -> None:
        """Log metrics."""
        self._try(self._inner.log, values, step=step, **options)

    def log_captions(self, rows: Sequence[tuple[str, str, Image.Image]], step: int) -> None:
        """Log rows as `log_captions` does, where the tracker can show tables."""
        if isinstance(self._inner, WandBTracker):
            self._try(_log_wandb_table, self._inner, rows, step)

    def finish(self) -> None:
        """End the tracker."""
        self._try(self._inner.finish)

    def _try(self, action: Callable[..., object], *values: object, **options: object) -> None:
        try:
            action(*values, **options)
        except Exception as error:  # of somebody else's code and service: it can be anything
            if not self._has_failed:
                reason = " ".join(str(error).split()) or type(error).__name__
                self._display.warn(f"{self.name} failed, training goes on without what it missed: {reason}")
            self._has_failed = True


def _log_wandb_table(tracker: WandBTracker, rows: Sequence[tuple[str, str, Image.Image]], step: int) -> None:
    import wandb

    data = [[truth, prediction, wandb.Image(image)] for truth, prediction, image in rows]
    tracker.log_table("eval/captions", columns=list(TABLE_COLUMNS), data=data, step=step)


def check_trackers(log_with: Sequence[str]) -> None:
    """Raise UserError for a tracker that is not installed."""
    if "tensorboard" in log_with and not find_spec("tensorboard"):
        raise UserError("log_with tensorboard needs its package: pip install tensorboard")


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
) -> Iterator[None]:
    """A context manager in which `accelerator.log` writes to the trackers of `log_with`, and to metrics.jsonl.

    W&B runs offline where there is no login or no network; it never prompts. `tracker_id` is the id of the W&B run;
    with the same id, a resumed run goes on in the same W&B run. A tracker that fails is named once, and nothing ends.
    Every process must call this.
    """
    accelerator.log_with, accelerator.trackers = [], []
    trackers: list[GeneralTracker] = [] if "none" in log_with else [JsonlTracker(run_dir / METRICS_FILE)]
    places: dict[str, str] = {}
    if "tensorboard" in log_with:
        trackers.append(TensorBoardTracker(project, run_dir))
    if "wandb" in log_with:
        trackers.append(WandBTracker(project, **_wandb_options(display, run_dir, tracker_id)))
        # For tables before they are kept or sent, and for its log: else in the home folder. Where that is read-only,
        # tables fail, and the log goes to the terminal.
        places = {"WANDB_DATA_DIR": str(run_dir / "wandb"), "WANDB_CACHE_DIR": str(run_dir / "wandb" / "cache")}
    accelerator.log_with = [_Guarded(tracker, display) for tracker in trackers]
    values = {
        key: value if isinstance(value, (int, float, str, bool)) else str(value) for key, value in settings.items()
    }
    with ExitStack() as stack:
        for name, place in places.items():
            stack.enter_context(_default_in_environment(name, place))
        accelerator.init_trackers(project, values)
        try:
            for tracker in accelerator.trackers:
                if tracker.name == "wandb" and accelerator.is_main_process and tracker.tracker and tracker.tracker.url:
                    display.say(f"Weights & Biases: {tracker.tracker.url}")
            yield
        finally:
            for tracker in accelerator.trackers:
                tracker.finish()


def has_tables(accelerator: Accelerator) -> bool:
    """Whether one of the trackers can show tables. Only Weights & Biases can."""
    return any(tracker.name == "wandb" for tracker in accelerator.trackers)


def log_captions(accelerator: Accelerator, rows: Sequence[tuple[str, str, Image.Image]], *, step: int) -> None:
    """Log rows of truth, prediction and thumbnail as a table, in the trackers that can show tables."""
    for tracker in accelerator.trackers:
        tracker.log_captions(rows, step)


def _wandb_options(display: Display, run_dir: Path, tracker_id: str) -> dict[str, Any]:
    """The options of `wandb.init`. Says so where W&B runs offline."""
    os.environ.setdefault("WANDB_SILENT", "true")  # before wandb is imported; what matters of it, we say ourselves
    options = {"dir": str(run_dir), "name": run_dir.name, "id": tracker_id}
    if reason := _why_wandb_is_offline():
        display.say(
            f"Weights & Biases runs offline ({reason}); upload later with: wandb sync {run_dir}/wandb/offline-run-*"
        )
        return options | {"mode": "offline"}
    return options | {"resume": "allow"}


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
