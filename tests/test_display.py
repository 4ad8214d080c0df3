"""What the user sees: lines on stderr from the main process, warnings from all, and a bar that counts."""

import fcntl
import os
import pty
import re
import struct
import sys
import termios

import pytest
from rich.progress import Progress

from florence2ner.display import Bar, Display, name_some, printable
from tests.conftest import ROOT


def test_the_main_process_speaks_on_stderr_and_the_others_do_not(capsys: pytest.CaptureFixture[str]) -> None:
    Display(is_main=False).say("from another")
    Display(is_main=True).say("from the main one")
    printed = capsys.readouterr()
    assert (printed.out, printed.err) == ("", "from the main one\n")


@pytest.mark.parametrize("is_main", [True, False])
def test_every_process_warns_and_is_as_quiet_as_before_behind_it(
    capsys: pytest.CaptureFixture[str], is_main: bool
) -> None:
    display = Display(is_main=is_main)
    display.warn("the disk is slow")
    display.warn_once("the task is odd")
    display.say("going on")
    own = "warning: the task is odd\ngoing on\n" if is_main else ""
    assert capsys.readouterr().err == "warning: the disk is slow\n" + own


def test_a_line_is_printed_as_it_is_however_long(capsys: pytest.CaptureFixture[str]) -> None:
    line = "[red]a folder[/red] " + "of a long name " * 40 + "end"
    Display(is_main=True).say(line)
    assert capsys.readouterr().err == line + "\n"


def test_a_name_with_colons_is_no_emoji(capsys: pytest.CaptureFixture[str]) -> None:
    display = Display(is_main=True)
    display.say("cat/:smile:.png")
    display.warn("cat/:smile:.png")
    assert capsys.readouterr().err == "cat/:smile:.png\nwarning: cat/:smile:.png\n"


def test_bytes_that_are_not_utf_8_are_shown_escaped(capsys: pytest.CaptureFixture[str]) -> None:
    name = os.fsdecode(b"caf\xe9.png")
    assert printable(name) == "caf\\udce9.png"
    assert printable("café 漢字.png") == "café 漢字.png"
    display = Display(is_main=True)
    display.say(name)
    display.warn(name)
    assert capsys.readouterr().err == "caf\\udce9.png\nwarning: caf\\udce9.png\n"


@pytest.mark.parametrize(
    ("names", "expected"),
    [((), ""), (("a",), "a"), (("a", "b", "c"), "a, b, c"), (range(7), "0, 1, 2 and 4 more")],
)
def test_some_names_stand_for_many(names: tuple[object, ...], expected: str) -> None:
    assert name_some(names) == expected


def test_the_limit_of_names_is_the_callers() -> None:
    assert name_some("abcd", limit=1) == "a and 3 more"


def test_a_bar_starts_where_the_run_does_moves_on_and_keeps_its_figures() -> None:
    progress = Progress(disable=True)
    bar = Bar(progress, total=10, completed=4)
    (task,) = progress.tasks
    seen = [(task.completed, task.total, task.fields["figures"])]
    bar.advance(loss="0.5", rate="3")
    seen.append((task.completed, task.total, task.fields["figures"]))
    bar.advance(2)
    seen.append((task.completed, task.total, task.fields["figures"]))
    bar.reach(9, loss="0.4")
    seen.append((task.completed, task.total, task.fields["figures"]))
    assert seen == [(4, 10, ""), (5, 10, "loss 0.5  rate 3"), (7, 10, "loss 0.5  rate 3"), (9, 10, "loss 0.4")]


def test_a_bar_is_silent_where_stderr_is_no_terminal(capsys: pytest.CaptureFixture[str]) -> None:
    display = Display(is_main=True)
    with display.bar("training", total=3) as bar:
        bar.advance()
        display.say("one done")
        bar.reach(3)
    printed = capsys.readouterr()
    assert (printed.out, printed.err) == ("", "one done\n")


PROGRAM = """
from florence2ner.display import Display
display = Display(is_main=True)
figures = {"epoch": "12.34/20", "loss": "0.0612", "eval": "0.0150", "images/s": "1234.5", "lr": "1.00e-05"}
with display.bar("training", total=12345, completed=1200) as bar:
    bar.advance(10, **figures)
    display.say("a line")
    with display.bar("evaluating", total=10) as inner:
        inner.advance()
    bar.advance(10, **figures)
"""


@pytest.mark.parametrize(
    ("width", "beside"), [(60, False), (80, False), (120, False), (140, True)], ids=lambda value: str(value)
)
def test_on_a_terminal_nothing_wraps_and_what_matters_is_seen(width: int, beside: bool) -> None:
    pid, terminal = pty.fork()
    if pid == 0:
        os.environ.pop("COLUMNS", None)
        os.environ["TERM"] = "xterm"
        os.chdir(ROOT)
        fcntl.ioctl(0, termios.TIOCSWINSZ, struct.pack("HHHH", 30, width, 0, 0))
        os.execv(sys.executable, [sys.executable, "-c", PROGRAM])
    seen = b""
    while True:
        try:
            seen += os.read(terminal, 65536)
        except OSError:  # Linux says so where the other end is closed
            break
    os.close(terminal)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0, seen
    lines = re.split(r"[\r\n]+", re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", seen.decode()))
    assert max(map(len, lines)) <= width
    assert "a line" in [line.strip() for line in lines]
    *_, last = (line for line in lines if line.startswith("training"))
    assert re.search(r"1220/12345 \d:\d\d:\d\d ETA \S", last)
    figures = "epoch 12.34/20  loss 0.0612  eval 0.0150  images/s 1234.5"
    assert any(figures in line for line in lines)
    assert (figures in last) == beside
    assert ("lr 1.00e-05" in seen.decode()) == (width > 60)
