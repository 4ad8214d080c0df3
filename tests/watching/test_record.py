"""status.json: how long a run is to be, and how it ended."""

import json
from pathlib import Path

import pytest

from florence2ner.errors import UserError
from florence2ner.watching.record import RECORD_FILE, how_to_resume, read_record, recording

STEPS = {"first_step": 3, "total_steps": 9, "processes": 2}


def test_it_is_written_at_the_start_and_at_the_end(tmp_path: Path) -> None:
    assert read_record(tmp_path) is None
    with recording(tmp_path, **STEPS):
        record = read_record(tmp_path)
        assert record
        assert (record.first_step, record.total_steps, record.processes) == (3, 9, 2)
        assert (record.ended, record.ending) == (None, None)
    record = read_record(tmp_path)
    assert record
    assert record.ending == "done"
    assert record.ended
    assert record.ended >= record.started


@pytest.mark.parametrize(
    ("error", "ending"),
    [(UserError("no\nroom"), "no room"), (KeyboardInterrupt(), "KeyboardInterrupt"), (RuntimeError("x"), "x")],
)
def test_what_ends_a_run_is_kept(tmp_path: Path, error: BaseException, ending: str) -> None:
    with pytest.raises(type(error)), recording(tmp_path, **STEPS):
        raise error
    record = read_record(tmp_path)
    assert record
    assert record.ending == ending


def test_where_it_cannot_be_written_the_start_says_so_and_the_end_does_not(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    with recording(folder, **STEPS):
        (folder / RECORD_FILE).unlink()
        folder.rmdir()
        folder.write_text("no folder")
    with pytest.raises(UserError, match=r"can't write .*status\.json"), recording(folder, **STEPS):
        pass


@pytest.mark.parametrize("text", ["", "{", "[]", json.dumps({"started": 1}), json.dumps(STEPS | {"more": 1})])
def test_one_that_is_torn_or_of_another_version_is_none(tmp_path: Path, text: str) -> None:
    (tmp_path / RECORD_FILE).write_text(text)
    assert read_record(tmp_path) is None


def test_how_to_resume_is_a_command() -> None:
    run = Path("my runs/a")
    assert how_to_resume(run, None, processes=1) == "there is no checkpoint yet: start the same command again"
    said = how_to_resume(run, run / "step-3", processes=1)
    assert said == "resume with: florence2ner train --config 'my runs/a/config.yaml' --resume latest"
    said = how_to_resume(run, run / "step-3", processes=2)
    assert said.startswith("resume with: accelerate launch (your options) -m florence2ner train ")
