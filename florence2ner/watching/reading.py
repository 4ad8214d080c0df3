"""Reads from the files of a run where it stands, without disturbing it: also while it writes, and on other machines."""

import json
import math
import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from florence2ner.config.base import SETTINGS_FILE
from florence2ner.display import name_some
from florence2ner.engine.run_files import BEST, list_checkpoints
from florence2ner.errors import UserError, did_you_mean
from florence2ner.files import EVALUATIONS, METRICS_FILE, holder
from florence2ner.metrics.table import METRICS, is_better
from florence2ner.process import is_alive
from florence2ner.watching.record import RECORD_FILE, Record, read_record

_OF_A_RUN = (RECORD_FILE, METRICS_FILE, "split.json")  # by one of which its folder is known


@dataclass(frozen=True, kw_only=True)
class Holder:
    """The process that has the run folder, or had it when it was killed."""

    name: str  # "process 12 on machine"
    since: float  # Unix time in seconds
    alive: bool | None  # None: that can't be told from here


@dataclass(kw_only=True)
class Metrics:
    """What metrics.jsonl holds, as far as it is shown."""

    last: dict[str, float] = field(default_factory=dict)  # of each figure the newest value
    losses: list[float] = field(default_factory=list)  # all that were logged of training
    evaluated: dict[str, int] = field(default_factory=dict)  # of each figure of evaluations the newest step
    best: dict[str, tuple[float, int]] = field(default_factory=dict)  # and the best value, with its step
    steps: list[tuple[int, float]] = field(default_factory=list)  # step and Unix time of each line of training

    def seconds_per_step(self, since: float) -> float | None:
        """Of a start at `since`, saves and evaluations included; None where too little is known yet."""
        mine = [(step, time) for step, time in self.steps if time >= since]
        if len(mine) < 2 or mine[-1][0] <= mine[0][0]:
            return None
        return (mine[-1][1] - mine[0][1]) / (mine[-1][0] - mine[0][0])


@dataclass(frozen=True, kw_only=True)
class Standing:
    """Where a run stands."""

    run_dir: Path
    holder: Holder | None
    record: Record | None
    metrics: Metrics
    settings: dict[str, Any]
    checkpoints: list[Path]
    best: str | None  # name of the best checkpoint
    captions: tuple[int, list[tuple[str, str]]] | None  # of the newest evaluation: its step, truths and predictions

    @property
    def step(self) -> int:
        """The newest step that is known of."""
        logged = self.metrics.steps[-1][0] if self.metrics.steps else 0
        return max(logged, self.record.first_step if self.record else 0)

    @property
    def is_held(self) -> bool:
        """Whether a process works on it, as far as can be told."""
        return self.holder is not None and self.holder.alive is not False

    @property
    def is_starting(self) -> bool:
        """Whether the process that has it is still loading, before its first update."""
        if not self.is_held or self.holder is None:
            return False
        return self.record is None or self.record.started < self.holder.since


def find_run(path: Path) -> Path:
    """The run folder that a user means: it, a file or checkpoint in it, or the folder that holds it alone.

    Raises UserError where there is none, or there are several.
    """
    path = Path(os.path.abspath(path.expanduser()))
    if _is_run(path):
        return path
    if path.exists() and _is_run(path.parent):
        return path.parent
    if not path.exists():
        beside = [other.name for other in path.parent.iterdir() if other.is_dir()] if path.parent.is_dir() else []
        raise UserError(f"{path} does not exist.{did_you_mean(path.name, beside)}")
    if not path.is_dir():
        raise UserError(f"{path} is no run: name the folder of one, such as checkpoints/mine")
    inside = sorted(child for child in path.iterdir() if not child.name.startswith("."))
    runs = [child for child in inside if _is_run(child)]
    if len(runs) > 1:
        runs.sort(key=lambda run: run.stat().st_mtime, reverse=True)
        raise UserError(f"{path} holds {len(runs)} runs, name one of them: {name_some([run.name for run in runs], 8)}")
    if not runs:
        there = name_some([child.name for child in inside]) or "nothing"
        raise UserError(f"{path} holds no run, but {there}: name the folder of one, such as checkpoints/mine")
    return runs[0]


def read_run(run_dir: Path) -> Standing:
    """Where the run in a folder stands."""
    held = holder(run_dir)
    best = run_dir / BEST
    return Standing(
        run_dir=run_dir,
        holder=Holder(name=held[0].partition("\n")[0], since=held[1], alive=is_alive(held[0])) if held else None,
        record=read_record(run_dir),
        metrics=_read_metrics(run_dir / METRICS_FILE),
        settings=_read_settings(run_dir / SETTINGS_FILE),
        checkpoints=list_checkpoints(run_dir),
        best=best.resolve().name if best.is_dir() else None,
        captions=_read_captions(run_dir / EVALUATIONS),
    )


def _is_run(path: Path) -> bool:
    if path.is_dir():
        return any((path / name).is_file() for name in _OF_A_RUN)
    return not path.exists() and holder(path) is not None  # it has just been started, and makes its folder later


def _read_metrics(path: Path) -> Metrics:
    """Read the whole lines of metrics.jsonl; of a line that is being written, only the end is missing."""
    found = Metrics()
    try:
        lines = path.read_bytes().splitlines(keepends=True)
    except OSError:
        return found
    for line in lines:
        values = _whole(line)
        if not values:
            continue
        step = int(values.pop("step"))
        time = float(values.pop("time"))
        figures = {name: value for name, value in values.items() if isinstance(value, int | float)}
        found.last |= figures
        if any(name.startswith("train/") for name in figures):
            found.steps.append((step, time))
        if "train/loss" in figures:
            found.losses.append(figures["train/loss"])
        for name, value in figures.items():
            if name.startswith("eval/"):
                found.evaluated[name] = step
                _note_best(found, name, value, step)
    return found


def _whole(line: bytes) -> dict[str, Any] | None:
    if not line.endswith(b"\n"):
        return None
    try:
        values = json.loads(line)
    except ValueError:  # a disk that was full
        return None
    return values if isinstance(values, dict) and {"step", "time"} <= values.keys() else None


def _note_best(found: Metrics, name: str, value: float, step: int) -> None:
    known = next((metric for metric in METRICS if metric == name), None)
    if known is None or not math.isfinite(value):
        return
    best = found.best.get(name)
    if is_better(known, value, best[0] if best else None):
        found.best[name] = (value, step)


def _read_settings(path: Path) -> dict[str, Any]:
    try:
        settings = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, yaml.YAMLError, UnicodeDecodeError):
        return {}
    return settings if isinstance(settings, dict) else {}


def _read_captions(folder: Path) -> tuple[int, list[tuple[str, str]]] | None:
    for path in sorted(folder.glob("step-*.json"), reverse=True):
        try:
            told = json.loads(path.read_text(encoding="utf-8"))
            rows = [(str((row["references"] or [""])[0]), str(row["prediction"])) for row in told["captions"]]
            return int(told["step"]), rows
        except (OSError, ValueError, KeyError, TypeError):  # such as one that is not whole
            continue
    return None
