"""What the user sees during a run, on stderr: lines and a progress bar of the main process, warnings of all."""

import logging
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

from rich.console import Console, RenderableType
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    ProgressColumn,
    Task,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from rich.table import Column
from rich.text import Text


def printable(text: str) -> str:
    """The text with lone surrogates escaped: Python has them for bytes of a file name that are not UTF-8."""
    return text.encode("utf-8", "backslashreplace").decode("utf-8")


def hide_lines_of_libraries() -> None:
    """Hide what libraries log below an error when they are imported or compile, about themselves and the hardware.

    Where DeepSpeed is installed, transformers imports it, and it logs in any command on a machine without GPUs; where
    bitsandbytes is, peft imports it, and it misses kernels for some CPUs that nothing here uses; torch's
    compiler misses a GPU where CUDA is installed without one.
    """
    # Their level is set when they are imported, but a filter that is there stays.
    for name in ("DeepSpeed", "bitsandbytes.backends.cpu.ops", "torch.utils.cpp_extension"):
        logging.getLogger(name).addFilter(_is_error)


def _is_error(record: logging.LogRecord) -> bool:
    return record.levelno >= logging.ERROR


_BETWEEN = "  "  # two figures
_BAR = 62  # columns of a terminal that a bar needs for itself, with its numbers
_HOUR = 3600.0  # seconds whose speed the remaining time is reckoned with: one update may take minutes


class _Bars(Progress):
    """Bars whose figures stand beside them, or below where the terminal is too narrow for that. Nothing wraps."""

    def get_renderables(self) -> Iterable[RenderableType]:
        """The lines to draw."""
        yield from super().get_renderables()
        for task in self.tasks:
            figures = task.fields["figures"]
            if not _fits_beside(figures, self.console.width):
                yield Text(f"  {_shortened(figures, self.console.width - 2)}", no_wrap=True, overflow="crop")


class _Figures(ProgressColumn):
    """The figures beside a bar, where there is room."""

    def __init__(self, console: Console) -> None:
        super().__init__(table_column=Column(no_wrap=True))
        self._console = console

    def render(self, task: Task) -> Text:
        """What stands beside the bar of `task`."""
        figures = task.fields["figures"]
        return Text(figures if _fits_beside(figures, self._console.width) else "")


def _fits_beside(figures: str, width: int) -> bool:
    return len(figures) + _BAR <= width or not figures


def _shortened(figures: str, width: int) -> str:
    """As many whole figures as there is room for."""
    while len(figures) > width and _BETWEEN in figures:
        figures = figures.rpartition(_BETWEEN)[0]
    return figures


class Bar:
    """A progress bar with figures. Nothing is drawn when stderr is not a terminal."""

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
    return {"figures": _BETWEEN.join(f"{name} {value}" for name, value in figures.items())} if figures else {}


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
            _Figures(self._console),
        )
        bars = _Bars(
            *columns,
            console=self._console,
            disable=not self._console.is_terminal,
            speed_estimate_period=_HOUR,
        )
        with bars as progress:
            yield Bar(progress, total, completed)


def name_some(names: Sequence[object], limit: int = 3) -> str:
    """The first `limit` names, and how many more there are: "a, b, c and 5 more"."""
    more = f" and {len(names) - limit} more" if len(names) > limit else ""
    return ", ".join(map(str, names[:limit])) + more
