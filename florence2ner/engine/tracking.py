"""Logs metrics to metrics.jsonl, Weights & Biases and TensorBoard, all through Accelerate's trackers."""

import json
import os
import time
from collections.abc import Mapping, Sequence
from http.client import HTTPException
from importlib.util import find_spec
from pathlib import Path
from typing import Any
from urllib.error import HTTPError
from urllib.request import Request, urlopen

from accelerate import Accelerator
from accelerate.tracking import GeneralTracker, on_main_process
from accelerate.utils import LoggerType
from PIL import Image

from florence2ner.display import Display
from florence2ner.errors import UserError
from florence2ner.files import write_text

METRICS_FILE = "metrics.jsonl"
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
            with self.path.open("a", encoding="utf-8") as file:
                file.write(line)
        except OSError as error:
            raise UserError(f"can't write {self.path}: {error.strerror}") from error


def build_trackers(log_with: Sequence[str], run_dir: Path) -> list[Any]:
    """The trackers for the Accelerator's `log_with`. Raises UserError for a tracker that is not installed."""
    if "none" in log_with:
        return []
    if "tensorboard" in log_with and not find_spec("tensorboard"):
        raise UserError("log_with tensorboard needs its package: pip install tensorboard")
    return [JsonlTracker(run_dir / METRICS_FILE), *(name for name in log_with if name != "jsonl")]


def rewind_metrics(run_dir: Path, step: int) -> None:
    """Remove lines of later steps than `step` from metrics.jsonl, since a resumed run writes them again."""
    path = run_dir / METRICS_FILE
    if path.exists():
        lines = path.read_text(encoding="utf-8").splitlines(keepends=True)
        kept = [line for line in lines if line.endswith("\n") and json.loads(line)["step"] <= step]
        write_text(path, "".join(kept))


def start_trackers(
    accelerator: Accelerator,
    display: Display,
    run_dir: Path,
    settings: Mapping[str, Any],
    *,
    project: str,
    tracker_id: str,
) -> None:
    """Start all trackers of the Accelerator. W&B runs offline where there is no login or no network; it never prompts.

    `tracker_id` is the id of the W&B run; with the same id, a resumed run goes on in the same W&B run. Every process
    must call this.
    """
    options: dict[str, Any] = {}
    if LoggerType.WANDB in accelerator.log_with:
        os.environ.setdefault("WANDB_SILENT", "true")  # before wandb is imported; what matters of it, we say ourselves
        options["wandb"] = {"dir": str(run_dir), "name": run_dir.name, "id": tracker_id}
        if reason := _why_wandb_is_offline():
            options["wandb"]["mode"] = "offline"
            display.say(
                f"Weights & Biases runs offline ({reason}); upload later with: wandb sync {run_dir}/wandb/offline-run-*"
            )
        else:
            options["wandb"]["resume"] = "allow"
    values = {
        key: value if isinstance(value, (int, float, str, bool)) else str(value) for key, value in settings.items()
    }
    accelerator.init_trackers(project, values, options)
    for tracker in accelerator.trackers:
        if tracker.name == "wandb" and accelerator.is_main_process and tracker.tracker.url:
            display.say(f"Weights & Biases: {tracker.tracker.url}")


def has_tables(accelerator: Accelerator) -> bool:
    """Whether one of the trackers can show tables. Only Weights & Biases can."""
    return any(tracker.name == "wandb" for tracker in accelerator.trackers)


def log_captions(accelerator: Accelerator, rows: Sequence[tuple[str, str, Image.Image]], *, step: int) -> None:
    """Log rows of truth, prediction and thumbnail as a table, in the trackers that can show tables."""
    for tracker in accelerator.trackers:
        if tracker.name == "wandb" and accelerator.is_main_process:
            import wandb

            data = [[truth, prediction, wandb.Image(image)] for truth, prediction, image in rows]
            tracker.log_table("eval/captions", columns=list(TABLE_COLUMNS), data=data, step=step)


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
    except wandb.Error as error:
        return " ".join(str(error).split())
    except HTTPError:
        return None  # the server did answer
    except (OSError, HTTPException):
        return "its server can't be reached"
    return None
