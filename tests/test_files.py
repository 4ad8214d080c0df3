"""Writing files: nobody ever sees half of one."""

import socket
from pathlib import Path

import pytest

from florence2ner.files import temporary, write_text


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
