"""Files: nobody ever sees half of one, and nobody waits for what is none."""

import errno
import fcntl
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

from florence2ner.errors import UserError
from florence2ner.files import (
    append_text,
    check_free,
    hold,
    holder,
    new_folder,
    open_regular,
    read_regular,
    temporary,
    write_text,
)
from florence2ner.process import name_of_this
from tests.support import files_in


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


def test_a_new_folder_has_its_name_when_it_is_whole(tmp_path: Path) -> None:
    (tmp_path / ".made.unfinished").mkdir()  # of a process that was killed
    (tmp_path / ".made.unfinished" / "old").touch()
    (tmp_path / "empty").mkdir()
    (tmp_path / "link").symlink_to("elsewhere/target")
    for name in ("made", "empty", "link", "deep/below"):
        with new_folder(tmp_path / name) as unfinished:
            assert not any(unfinished.iterdir())
            (unfinished / "file").write_text(name)
            assert not (tmp_path / name / "file").exists()
        assert (tmp_path / name / "file").read_text() == name
    assert (tmp_path / "elsewhere" / "target" / "file").exists()
    assert {path.name for path in tmp_path.iterdir()} == {"made", "empty", "link", "deep", "elsewhere"}


def test_a_new_folder_that_fails_leaves_nothing(tmp_path: Path, small_disk: Path) -> None:
    (tmp_path / "file").touch()
    before = files_in(tmp_path)
    for path in (tmp_path, tmp_path / "file"):
        with pytest.raises(UserError, match=rf"{path} exists already: name a new folder"), new_folder(path):
            pytest.fail("it was refused")
    with pytest.raises(ZeroDivisionError), new_folder(tmp_path / "new") as unfinished:
        (unfinished / "part").write_text(str(1 // 0))
    with (
        pytest.raises(UserError, match=r"the disk is full, .*/new can't be"),
        new_folder(small_disk / "new") as n,
    ):
        (n / "part").write_bytes(bytes(25 * 2**20))
    assert files_in(tmp_path) == before
    assert not any(small_disk.iterdir())


def test_what_is_held_is_refused_by_name_and_freed_without_a_trace(tmp_path: Path) -> None:
    folder = tmp_path / "runs" / "deep" / "mine"
    with hold(folder, "mine", "wait"):
        with (
            pytest.raises(
                UserError, match=rf"mine is in use by process {os.getpid()} on {socket.gethostname()}: wait$"
            ),
            hold(folder, "mine", "wait"),
        ):
            pytest.fail("held twice")
        with hold(folder.with_name("other"), "other"):
            pass
    assert list(tmp_path.iterdir()) == []
    with hold(folder, "mine"):
        folder.mkdir()
    assert list(folder.parent.iterdir()) == [folder]


def test_a_file_system_without_locks_is_no_obstacle(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def flock(*_: object) -> None:
        raise OSError(errno.ENOSYS, os.strerror(errno.ENOSYS))

    monkeypatch.setattr(fcntl, "flock", flock)
    with hold(tmp_path / "mine", "wait"):
        pass
    assert files_in(tmp_path) == set()


def test_only_regular_files_are_opened(tmp_path: Path) -> None:
    file, pipe = tmp_path / "a.txt", tmp_path / "pipe"
    file.write_bytes(b"\xef\xbb\xbfone\r\ntwo")
    (tmp_path / "link").symlink_to(file)
    assert read_regular(tmp_path / "link") == "one\ntwo"
    os.mkfifo(pipe)
    for path in (pipe, Path("/dev/zero"), tmp_path):
        with pytest.raises(OSError, match="not a regular file"):
            open_regular(path)


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
    fork = multiprocessing.get_context("fork")
    works = fork.Event()
    child = fork.Process(target=lambda: (works.set(), time.sleep(600)), daemon=True)
    child.start()  # as a DataLoader starts its workers
    works.wait()  # until then it has what it was born with, the lock too
    print(child.pid, flush=True)
    sys.stdin.read()
"""


def test_who_holds_something_is_read_without_touching_it(tmp_path: Path) -> None:
    assert holder(tmp_path / "mine") is None
    with hold(tmp_path / "mine", "mine"):
        before = os.listdir(tmp_path)
        found = holder(tmp_path / "mine")
        assert found
        assert found[0] == name_of_this()
        assert abs(found[1] - time.time()) < 60
        assert os.listdir(tmp_path) == before
    assert holder(tmp_path / "mine") is None


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
    assert files_in(tmp_path) == set()
