"""The status command, on runs that work, have ended and were killed, and on a terminal."""

import os
import pty
import re
import select
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from florence2ner import train
from florence2ner.errors import UserError
from florence2ner.process import name_of_this
from florence2ner.watching.reading import read_run
from florence2ner.watching.status import describe, status
from tests.conftest import ROOT, MakeConfig, Start
from tests.support import write
from tests.watching.support import STARTED, evaluate, make_run


def said(run: Path, now: float = STARTED + 10) -> list[str]:
    return describe(read_run(run), now)


def held_by(run: Path, name: str, since: float = STARTED - 5) -> None:
    """As `hold` leaves it in a process that still works, or was killed."""
    file = run.with_name(f".{run.name}.in-use")
    file.write_text(name)
    os.utime(file, (since, since))


def test_a_run_that_works_shows_all_there_is(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run")
    held_by(run, name_of_this())
    for name in ("step-2", "step-4"):
        (run / name).mkdir()
    (run / "best").symlink_to("step-2")
    evaluate(run, 4, "a blue star")
    lines = said(run)
    assert re.fullmatch(rf"run: running: process {os.getpid()} on \S+, since 2023-.* \(0:00:15\)", lines[0])
    assert lines[1:5] == [
        "step             4 of 10 (40%), epoch 0.80 of 2",
        "loss             0.2500 █▃▂▁ the last 4",
        "speed            8.0 images/s, learning rate 1.00e-05",
        lines[4],
    ]
    assert lines[4].startswith("ETA              0:00:12, 2023-")  # six steps of two seconds
    assert lines[5:] == [
        "eval loss        2.5000 at step 4; best 0.5000 at step 2",
        "eval exact match 40.0% at step 4; best 40.0% at step 4",
        "checkpoint       step-4; best step-2",
        "captions         at step 4",
        *("  truth      a red star", "  prediction a blue star") * 2,
    ]


@pytest.mark.parametrize(
    ("record", "expected"),
    [
        ({"ending": "done", "ended": STARTED + 60}, r"run: finished 2023-.*, after 0:01:00"),
        (
            {"ending": "stopped by signal 15 after update 4; resume with: x", "ended": STARTED + 60},
            r"run: stopped 2023-.*, by signal 15 after update 4; resume with: florence2ner train --config .*",
        ),
        (
            {"ending": "can't write x: No space left", "ended": STARTED},
            r"run: stopped .*, can't write x: No .*; .*",
        ),
        ({}, r"run: killed: its process is gone, last sign of life 2023-.*; resume with: florence2ner train .*"),
        (
            {"processes": 2},
            r"run: killed: .*; resume with: accelerate launch \(your options\) -m florence2ner .*",
        ),
        ({"unknown": 1}, r"run: not running; resume with: .*"),
    ],
)
def test_a_run_that_has_ended_says_how_and_how_to_go_on(
    tmp_path: Path, record: dict[str, object], expected: str
) -> None:
    run = make_run(tmp_path / "run", **record)
    (run / "step-4").mkdir()
    lines = said(run)
    assert re.fullmatch(expected, lines[0])
    assert not any(line.startswith("ETA") for line in lines)


def test_a_process_elsewhere_is_not_declared_dead(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run")
    held_by(run, "process 7 on elsewhere\nboot pid:[1] 12")
    first = said(run, now=STARTED + 30)[0]
    assert first.startswith("run: running, as far as its files tell: process 7 on elsewhere, which can't be asked from")
    assert first.endswith("last sign of life 0:00:22 ago")
    held_by(run, "")  # a file system without locks on which nothing was written
    assert "a process that left no name" in said(run)[0]


def test_a_resumed_run_counts_from_where_it_went_on(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run", started=STARTED + 5, first_step=2)
    held_by(run, name_of_this(), since=STARTED + 4)
    lines = said(run)
    assert lines[1].endswith("; went on from step 2")
    assert any(line.startswith("ETA              0:00:12") for line in lines), "of this start's lines alone"
    fresh = make_run(tmp_path / "fresh", started=STARTED + 100, first_step=4)
    held_by(fresh, name_of_this(), since=STARTED + 99)
    assert "ETA              not known yet" in said(fresh)


def test_a_run_that_still_loads_is_starting(tmp_path: Path) -> None:
    (tmp_path / ".run.in-use").write_text(name_of_this())
    lines = describe(read_run(tmp_path / "run"), time.time())
    assert lines[0].startswith("run: starting: process ")
    assert lines[1:] == ["step             0"]


def test_it_needs_no_torch_and_takes_what_the_files_hold(tmp_path: Path) -> None:
    make_run(tmp_path / "run", steps=2000)
    code = (
        "import sys; from pathlib import Path; from florence2ner.watching.status import status; "
        f"status(Path({str(tmp_path)!r})); assert not {{'torch', 'accelerate', 'transformers'}} & sys.modules.keys()"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert len(re.search(r"loss +\S+ (\S+) the last 36", done.stdout)[1]) == 36


def test_to_watch_needs_a_terminal(tmp_path: Path) -> None:
    make_run(tmp_path / "run")
    with pytest.raises(UserError, match="--watch renews what a terminal shows, and this is none"):
        status(tmp_path / "run", watch=True)


@pytest.mark.parametrize("width", [60, 120])
def test_watching_renews_itself_until_ctrl_c(tmp_path: Path, width: int) -> None:
    run = make_run(tmp_path / "run")
    pid, terminal = pty.fork()
    if pid == 0:
        os.environ |= {"COLUMNS": str(width), "LINES": "30", "TERM": "xterm"}
        os.chdir(ROOT)
        os.execv(sys.executable, [sys.executable, "-m", "florence2ner", "status", str(run), "--watch"])
    try:
        seen = _read_until(terminal, "", "4 of 10 (40%)")
        with (run / "metrics.jsonl").open("a") as file:
            file.write('{"step": 5, "time": 1, "train/loss": 0.1}\n')
        seen = _read_until(terminal, seen, "5 of 10 (50%)")
        os.write(terminal, b"\x03")
        assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
    finally:
        os.close(terminal)
    assert max(map(len, re.split(r"[\r\n]+", re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", seen)))) <= width


def _read_until(terminal: int, seen: str, text: str) -> str:
    end = time.monotonic() + 60
    while text not in seen:
        assert select.select([terminal], [], [], max(0.0, end - time.monotonic()))[0], seen
        seen += os.read(terminal, 65536).decode(errors="replace")
    return seen


@pytest.mark.slow
def test_a_real_run_while_it_works_after_a_kill_and_at_its_end(
    make_config: MakeConfig, start: Start, command: Start, tmp_path: Path
) -> None:
    config = make_config(max_steps=40, save_steps=2, eval_steps=2)
    settings = write(config, tmp_path)
    run = start("florence2ner", "train", "--config", settings)
    while not (config.run_dir / "step-2").exists():
        assert run.poll(0.05) is None, run.stderr
    run.signal(signal.SIGSTOP)
    shown = command("status", config.run_dir)
    assert shown.returncode == 0, shown.stderr
    assert f"run: running: process {run.pids[0]} on " in shown.stdout
    assert re.search(r"^step +\d+ of 40 \(\d+%\), epoch ", shown.stdout, re.M)
    assert re.search(r"^ETA +\d:\d\d:\d\d, ", shown.stdout, re.M)
    run.signal(signal.SIGKILL)
    run.wait()
    shown = command("status", config.run_dir.parent).stdout
    assert "run: killed: its process is gone" in shown
    assert "resume with: florence2ner train --config" in shown
    train(make_config(max_steps=40, save_steps=None, eval_steps=None, resume="latest"))
    shown = command("status", config.run_dir / "latest").stdout
    assert "run: finished " in shown
    assert re.search(r"^step +40 of 40 \(100%\), epoch .*; went on from step \d+$", shown, re.M)
    assert not list(config.run_dir.parent.glob(".*.in-use"))
