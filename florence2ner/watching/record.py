"""status.json in the run folder: how long a run is to be, since when it works and how it ended. For `status`."""

import json
import shlex
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from florence2ner.config.base import SETTINGS_FILE
from florence2ner.errors import UserError
from florence2ner.files import write_text

RECORD_FILE = "status.json"
DONE = "done"


@dataclass(frozen=True, kw_only=True)
class Record:
    """What metrics.jsonl and the settings don't tell about the newest start of a run."""

    started: float  # Unix time in seconds, when everything was ready for the first update
    first_step: int  # that it went on from
    total_steps: int
    processes: int
    ended: float | None = None  # Unix time; None while it works, and for ever where it was killed
    ending: str | None = None  # DONE, or the line that said why it ended


@contextmanager
def recording(run_dir: Path, *, first_step: int, total_steps: int, processes: int) -> Iterator[None]:
    """A context manager around the work of a run, that keeps status.json. To be entered by the main process only.

    Raises UserError where the file can't be written at first; at the end, a full disk changes nothing.
    """
    path = run_dir / RECORD_FILE
    record = Record(started=time.time(), first_step=first_step, total_steps=total_steps, processes=processes)
    _write(path, record)
    ending = DONE
    try:
        yield
    except BaseException as error:
        ending = " ".join(str(error).split()) or type(error).__name__
        raise
    finally:
        with suppress(UserError):
            _write(path, replace(record, ended=time.time(), ending=ending))


def read_record(run_dir: Path) -> Record | None:
    """What status.json says; None where there is none, or one of another version."""
    try:
        return Record(**json.loads((run_dir / RECORD_FILE).read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError):
        return None


def how_to_resume(run_dir: Path, checkpoint: Path | None, *, processes: int) -> str:
    """A clause for a message that says how to resume a run."""
    if checkpoint is None:
        return "there is no checkpoint yet: start the same command again"
    command = "accelerate launch (your options) -m " if processes > 1 else ""
    settings = shlex.quote(str(run_dir / SETTINGS_FILE))
    return f"resume with: {command}florence2ner train --config {settings} --resume latest"


def _write(path: Path, record: Record) -> None:
    write_text(path, json.dumps(asdict(record), indent=1) + "\n")
