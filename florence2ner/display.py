"""What the user sees during a run, on stderr: lines and a progress bar of the main process, warnings of all."""

import logging
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn


def printable(text: str) -> str:
    """The text with lone surrogates escaped: Python has them for bytes of a file name that are not UTF-8."""
    return text.encode("utf-8", "backslashreplace").decode("utf-8")


def hide_lines_of_libraries() -> None:
    """Hide what libraries log below an error while they are imported: it is about their own settings and the hardware.

    Where DeepSpeed is installed, transformers imports it, and it logs in any command on a machine without GPUs; where
    bitsandbytes is, peft imports it, and it misses kernels for some CPUs that nothing here uses.
    """
    # Their level is set when they are imported, but a filter that is there stays.
    for name in ("DeepSpeed", "bitsandbytes.backends.cpu.ops"):
        logging.getLogger(name).addFilter(_is_error)


def _is_error(record: logging.LogRecord) -> bool:
    return record.levelno >= logging.ERROR


class Bar:
    """A progress bar with figures beside it. Nothing is drawn when stderr is not a terminal."""

    def __init__(self, progress: Progress, total: int, completed: int) -> None:
        self._progress = progress
        self._task = progress.add_task("", total=total, completed=completed, figures="")

    def advance(self, count: int = 1, **figures: str) -> None:
        """Move on by `count`; `figures` (name and value), if any, replace those shown."""
        self._progress.update(self._task, advance=count, **_shown(figures))

    def reach(self, completed: int, **figures: str) -> None:
        """Move to `completed` units; `figures` as in `advance`."""
        self._progress.update(self._task, completed=completed, **_shown(figures))


def _shown(figures: Mapping[str, str]) -> dict[str, Any]:
    return {"figures": "  ".join(f"{name} {value}" for name, value in figures.items())} if figures else {}


class Display:
    """Prints lines and bars from the main process, and warnings from every process."""

    def __init__(self, *, is_main: bool) -> None:
        self._console = Console(stderr=True, quiet=not is_main, highlight=False, soft_wrap=True, emoji=False)

    def say(self, message: str) -> None:
        """Print one line, above the bar if there is one. Does nothing in processes other than the main one."""
        self._console.print(printable(message), markup=False)

    def warn(self, message: str) -> None:
        """Print one line, in every process that calls this."""
        quiet, self._console.quiet = self._console.quiet, False
        self._console.print(printable(f"warning: {message}"), markup=False)
        self._console.quiet = quiet

    def warn_once(self, message: str) -> None:
        """Like `warn`, but of the main process only: for what all processes find out alike."""
        self.say(f"warning: {message}")

    @contextmanager
    def bar(self, what: str, *, total: int, completed: int = 0) -> Iterator[Bar]:
        """A context manager with a bar over `total` units, which shows elapsed and remaining time, and figures."""
        columns: tuple[Any, ...] = (
            TextColumn(what),
            BarColumn(),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            TextColumn("ETA"),
            TimeRemainingColumn(),
            TextColumn("{task.fields[figures]}"),
        )
        with Progress(*columns, console=self._console, disable=not self._console.is_terminal) as progress:
            yield Bar(progress, total, completed)


def name_some(names: Sequence[object], limit: int = 3) -> str:
    """The first `limit` names, and how many more there are: "a, b, c and 5 more"."""
    more = f" and {len(names) - limit} more" if len(names) > limit else ""
    return ", ".join(map(str, names[:limit])) + more
