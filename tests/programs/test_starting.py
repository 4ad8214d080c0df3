"""Warm starts are processes like any other: other tests rely on it."""

import os
import time
from pathlib import Path

import pytest

from tests.conftest import Start

pytestmark = pytest.mark.slow


def test_a_warm_start_has_everything_of_its_own(start: Start, tmp_path: Path) -> None:
    code = (
        "import multiprocessing, os, sys, threading; "
        "print(os.getpid(), os.getpgrp(), os.getcwd(), os.environ['COLOUR'], 'torch' in sys.modules, "
        "threading.active_count(), multiprocessing.parent_process(), multiprocessing.get_start_method(), flush=True)"
    )
    running = start("timeit", "-n1", "-r1", code, COLOUR="red", processes=2).wait()
    lines = [line for line in running.stdout.splitlines() if "red" in line]
    # torch is there already, and nothing tells that a server was: DataLoader's processes start as they always do
    assert lines == [f"{pid} {pid} {tmp_path} red True 1 None fork" for pid in running.pids]
    assert running.returncode == 0


def test_a_warm_start_ends_as_an_interpreter_does(start: Start) -> None:
    broken = start("tests.programs.gradients").wait()
    assert broken.returncode == 1
    assert broken.stderr.startswith("Traceback")
    assert broken.stderr.splitlines()[-1] == "IndexError: list index out of range"


def test_a_warm_start_that_nobody_waits_for_is_killed(start: Start) -> None:
    running = start("http.server", "0")
    running.close()
    until = time.monotonic() + 60
    while os.path.exists(f"/proc/{running.pids[0]}"):
        assert time.monotonic() < until
        time.sleep(0.01)
