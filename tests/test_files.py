"""Writing files: nobody ever sees half of one."""

import socket
from pathlib import Path

import pytest

from florence2ner.files import append_text, temporary, write_text


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
