"""Writing files: nobody ever sees half of one."""

import os
import signal
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from florence2ner import UserError
from florence2ner.files import append_text, check_free, hold, temporary, write_text


def test_write_text_leaves_nothing_behind_when_it_fails(tmp_path: Path) -> None:
    target = tmp_path / "a.txt"
    target.write_text("old")
    with pytest.raises(UnicodeEncodeError):
        write_text(target, "\udc80")
    assert [path.name for path in tmp_path.iterdir()] == ["a.txt"]
    assert target.read_text() == "old"


def test_temporary_names_differ_between_machines_and_fit_any_file_system(tmp_path: Path) -> None:
    """On a shared disk, two machines may have processes of the same number."""
    name = temporary(tmp_path / ("x" * 250 + ".txt")).name
    assert socket.gethostname() in name
    assert len(name) < 255


@pytest.mark.parametrize(
    ("before", "kept"),
    [
        ('["a", 1]', '["a", 1]\n'),
        ('{"a": 1}\n{"b": 2}', '{"a": 1}\n{"b": 2}\n'),
        ('{"a": 1}\n{"b": ', '{"a": 1}\n'),
        ('["a", ', ""),
        ("# a note by hand", "# a note by hand\n"),
    ],
)
def test_of_what_is_there_only_a_torn_line_of_json_is_cut(tmp_path: Path, before: str, kept: str) -> None:
    path = tmp_path / "digests.jsonl"
    path.write_text(before)
    append_text(path, '["new", 2]\n')
    assert path.read_text() == f'{kept}["new", 2]\n'


HOLDER = """
import multiprocessing, sys, time
from pathlib import Path
from florence2ner.files import hold
with hold(Path(sys.argv[1]), "it"):
    child = multiprocessing.get_context("fork").Process(target=time.sleep, args=(600,), daemon=True)
    child.start()  # as a DataLoader starts its workers
    print(child.pid, flush=True)
    sys.stdin.read()
"""


@pytest.mark.parametrize("end", ["kill", "leave"])
def test_what_another_process_holds_is_refused_until_it_ends_however_it_does(tmp_path: Path, end: str) -> None:
    path = tmp_path / "new" / "captions.csv"
    pipe = subprocess.PIPE
    with subprocess.Popen([sys.executable, "-c", HOLDER, str(path)], stdin=pipe, stdout=pipe, text=True) as holder:
        assert holder.stdin
        assert holder.stdout
        child = int(holder.stdout.readline())
        said = f"the output is in use by process {holder.pid} on {socket.gethostname()}: start again when that has"
        with pytest.raises(UserError, match=said), hold(path, "the output"):
            pass
        with pytest.raises(UserError, match=said):
            check_free(path, "the output")
        if end == "kill":
            holder.kill()
        else:
            holder.stdin.close()
        holder.wait()
        check_free(path, "the output")
        with hold(path, "the output"):
            pass
        if end == "kill":
            os.kill(child, signal.SIGKILL)
    assert not list(path.parent.iterdir())
