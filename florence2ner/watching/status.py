"""The status command: where a training run stands, as its files tell. Imports no torch."""

import time
from collections.abc import Iterator
from datetime import datetime, timedelta
from pathlib import Path

from rich.console import Console
from rich.live import Live
from rich.text import Text

from florence2ner.chart import in_a_line
from florence2ner.display import printable
from florence2ner.errors import UserError
from florence2ner.metrics.table import format_figure, label_of
from florence2ner.watching.reading import Standing, find_run, read_run
from florence2ner.watching.record import DONE, Record, how_to_resume

WATCH_SECONDS = 2.0  # between two looks at the files
_SPARKS = 36  # values of the loss that are drawn, in a line of at most 80 columns
_SHOWN = 2  # captions
_NARROWEST = 17  # of the first column, which lets the lines of most runs stay where they are


def status(path: Path, *, watch: bool = False) -> None:
    """Print where the run in `path` stands; with `watch` again and again, until Ctrl-C.

    Raises UserError as `find_run` does, and for `watch` where standard output is no terminal.
    """
    run_dir = find_run(path)
    console = Console(highlight=False, markup=False, soft_wrap=True, emoji=False)
    if not watch:
        for line in describe(read_run(run_dir), time.time()):
            console.print(printable(line))
        return
    if not console.is_terminal:
        raise UserError("--watch renews what a terminal shows, and this is none: leave it out")
    try:
        with Live(console=console, auto_refresh=False, vertical_overflow="crop") as live:
            while True:
                lines = [printable(line) for line in describe(read_run(run_dir), time.time())]
                live.update(Text("\n".join(lines), no_wrap=True, overflow="ellipsis"), refresh=True)
                time.sleep(WATCH_SECONDS)
    except KeyboardInterrupt:
        return


def describe(run: Standing, now: float) -> list[str]:
    """Where a run stands at `now` (Unix time in seconds), in lines for the user."""
    lines = [f"{run.run_dir.name}: {_state(run, now)}"]
    rows = [*_figures(run, now), *_files(run)]
    width = max(_NARROWEST, *(len(label) + 1 for label, _ in rows)) if rows else _NARROWEST
    lines += [f"{label:{width}}{text}" for label, text in rows]
    if run.captions:
        step, captions = run.captions
        lines.append(f"{'captions':{width}}at step {step}")
        for truth, prediction in captions[:_SHOWN]:
            lines += [f"  truth      {' '.join(truth.split())}", f"  prediction {' '.join(prediction.split())}"]
    return lines


def _state(run: Standing, now: float) -> str:
    """Whether its process is alive, and how it ended where it isn't."""
    holder, record = run.holder, run.record
    if holder and run.is_held:
        doing = "starting" if run.is_starting else "running"
        since = f"since {_when(holder.since)} ({_span(now - holder.since)})"
        if holder.alive:
            return f"{doing}: {holder.name}, {since}"
        who = holder.name or "a process that left no name"
        return (
            f"{doing}, as far as its files tell: {who}, which can't be asked from here, {since}; last sign of life "
            f"{_span(now - _last_sign(run, holder.since))} ago"
        )
    resume = how_to_resume(
        run.run_dir,
        run.checkpoints[-1] if run.checkpoints else None,
        processes=record.processes if record else 1,
    )
    if record is None:
        return f"not running; {resume}"
    if record.ending == DONE:
        return f"finished {_when(record.ended or 0)}, after {_span((record.ended or 0) - record.started)}"
    if record.ending:
        how = record.ending.partition("; resume with:")[0].removeprefix("stopped ")
        return f"stopped {_when(record.ended or 0)}, {how}; {resume}"
    return f"killed: its process is gone, last sign of life {_when(_last_sign(run, record.started))}; {resume}"


def _figures(run: Standing, now: float) -> Iterator[tuple[str, str]]:
    last, record = run.metrics.last, run.record
    yield "step", _step(run, record)
    if run.metrics.losses:
        shown = run.metrics.losses[-_SPARKS:]
        yield "loss", f"{shown[-1]:.4f} {in_a_line(shown, width=_SPARKS)} the last {len(shown)}"
    if "train/learning_rate" in last:
        rate = f"{last['train/images_per_second']:.1f} images/s, " if "train/images_per_second" in last else ""
        yield "speed", f"{rate}learning rate {last['train/learning_rate']:.2e}"
    if run.is_held and not run.is_starting and record:
        yield "ETA", _eta(run, record, now)
    for name, step in run.metrics.evaluated.items():
        best = run.metrics.best.get(name)
        behind = f"; best {format_figure(name, best[0])} at step {best[1]}" if best else ""
        yield f"eval {label_of(name)}", f"{format_figure(name, last[name])} at step {step}{behind}"


def _step(run: Standing, record: Record | None) -> str:
    total = record.total_steps if record else 0
    said = f"{run.step} of {total} ({run.step / total:.0%})" if total else str(run.step)
    if "train/epoch" in run.metrics.last:
        epochs = run.settings.get("epochs") if run.settings.get("max_steps") is None else None
        said += f", epoch {run.metrics.last['train/epoch']:.2f}" + (f" of {epochs}" if epochs else "")
    if record and record.first_step:
        said += f"; went on from step {record.first_step}"
    return said


def _eta(run: Standing, record: Record, now: float) -> str:
    pace = run.metrics.seconds_per_step(record.started)
    if pace is None:
        return "not known yet"
    left = (record.total_steps - run.step) * pace
    return f"{_span(left)}, {_when(now + left)}"


def _files(run: Standing) -> Iterator[tuple[str, str]]:
    if run.checkpoints:
        best = f"; best {run.best}" if run.best else ""
        yield "checkpoint", f"{run.checkpoints[-1].name}{best}"


def _last_sign(run: Standing, otherwise: float) -> float:
    """When it wrote a line for the last time, in Unix time."""
    return max(run.metrics.steps[-1][1] if run.metrics.steps else 0.0, otherwise)


def _when(seconds: float) -> str:
    return datetime.fromtimestamp(seconds).strftime("%Y-%m-%d %H:%M:%S")


def _span(seconds: float) -> str:
    return str(timedelta(seconds=max(0, round(seconds))))
