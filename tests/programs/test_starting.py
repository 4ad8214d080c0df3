"""Warm starts are processes like any other: other tests rely on it."""

import os
import time
import warnings
from pathlib import Path

import pytest

from tests.conftest import ColdStart, Start

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


@pytest.mark.parametrize("category", [FutureWarning, DeprecationWarning, PendingDeprecationWarning])
def test_a_warning_of_what_is_to_be_removed_ends_a_command(
    start: Start, cold_start: ColdStart, category: type[Warning]
) -> None:
    name = category.__name__
    code = f"import warnings; warnings.warn('going away', {name})"
    assert f"{name}: going away" in start("timeit", "-n1", "-r1", code).wait().stderr
    cold = cold_start("-m", "timeit", "-n1", "-r1", code)
    assert f"{name}: going away" in cold.communicate(timeout=60)[1]
    assert cold.returncode == 1
    with pytest.raises(category):  # and a test
        warnings.warn("going away", category, stacklevel=1)
