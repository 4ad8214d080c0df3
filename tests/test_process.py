"""A process is known again by its name, and no other is taken for it."""

import gc
import importlib
import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from florence2ner import process
from florence2ner.process import importing, is_alive, name_of_this

needs_proc = pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="needs Linux's /proc")


def test_it_says_who_it_is_and_lives() -> None:
    name = name_of_this()
    assert name.startswith(f"process {os.getpid()} on {socket.gethostname()}\n")
    assert is_alive(name)


@needs_proc
@pytest.mark.parametrize("waited_for", [False, True])
def test_one_that_has_ended_is_dead_before_its_parent_looks_and_after(waited_for: bool) -> None:
    code = "from florence2ner.process import name_of_this; print(name_of_this(), flush=True); input()"
    with subprocess.Popen(
        [sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as run:
        assert run.stdin
        assert run.stdout
        name = run.stdout.readline() + run.stdout.readline().strip()
        assert is_alive(name)
        run.kill()
        if waited_for:
            run.wait()
        else:
            os.waitid(os.P_PID, run.pid, os.WEXITED | os.WNOWAIT)
        assert is_alive(name) is False


@needs_proc
def test_another_with_the_same_number_is_not_taken_for_it() -> None:
    first, _, facts = name_of_this().partition("\n")
    boot, namespace, start = facts.split()
    assert is_alive(f"{first}\n{boot} {namespace} {int(start) + 1}") is False
    assert is_alive(f"{first}\nanother-start-of-the-machine {namespace} {start}") is False
    assert is_alive(f"{first}\n{boot} pid:[1] {start}") is None, "another container"
    assert is_alive(f"process 1 on elsewhere\nanother-machine {namespace} {start}") is None


@pytest.mark.parametrize("name", ["", "process", "process x on y", "something else\nentirely"])
def test_of_what_is_no_name_nothing_is_known(name: str) -> None:
    assert is_alive(name) is None


def test_without_proc_the_number_has_to_do(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(process, "_place", lambda: ("", ""))
    assert is_alive(name_of_this())
    assert is_alive(f"process {os.getpid()} on elsewhere\n") is None
    ended = subprocess.Popen([sys.executable, "-c", ""])
    ended.wait()
    assert is_alive(f"process {ended.pid} on {socket.gethostname()}\n") is False


def test_cores_are_those_that_the_process_may_use() -> None:
    code = "import os; os.sched_setaffinity(0, {min(os.sched_getaffinity(0))}); from florence2ner.process import *"
    done = subprocess.run([sys.executable, "-c", f"{code}; print(usable_cores())"], capture_output=True, text=True)
    assert done.stdout == "1\n", done.stderr


def test_garbage_is_looked_for_again_after_imports_even_after_one_that_fails() -> None:
    with pytest.raises(ImportError), importing():
        importlib.import_module("no_such_module")
    assert gc.isenabled()
    with importing():
        assert not gc.isenabled()
    assert gc.isenabled()
    gc.disable()
    try:
        with importing():
            pass
        assert not gc.isenabled(), "as it was"
    finally:
        gc.enable()
