"""Files: nobody ever sees half of one, and nobody waits for what is none."""

import errno
import fcntl
import os
import socket
from pathlib import Path

import pytest

from florence2ner.errors import UserError
from florence2ner.files import hold, open_regular, read_regular, temporary, write_text
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


def test_what_is_held_is_refused_by_name_and_freed_without_a_trace(tmp_path: Path) -> None:
    folder = tmp_path / "runs" / "deep" / "mine"
    with hold(folder, "wait"):
        with (
            pytest.raises(
                UserError, match=rf"mine is in use by process {os.getpid()} on {socket.gethostname()}: wait$"
            ),
            hold(folder, "wait"),
        ):
            pytest.fail("held twice")
        with hold(folder.with_name("other"), "wait"):
            pass
    assert list(tmp_path.iterdir()) == []
    with hold(folder, "wait"):
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
