"""Evaluations in a run's folder."""

from pathlib import Path

from florence2ner.evaluation.record import read_rows, recorded_steps, rewind_records, write_record
from florence2ner.evaluation.result import summarise
from tests.evaluation.test_compare import rows_of
from tests.metrics.pairs import made_pairs
from tests.support import files_in


def test_they_are_kept_by_step_and_go_with_what_is_done_again(tmp_path: Path) -> None:
    assert recorded_steps(tmp_path) == []
    result = summarise(rows_of(*made_pairs(5)), (), samples=5)
    for step in (0, 50, 100):
        write_record(tmp_path, step, result)
    assert files_in(tmp_path) == {f"evaluations/step-{step:08d}.json" for step in (0, 50, 100)}
    assert recorded_steps(tmp_path) == [0, 50, 100]
    assert read_rows(tmp_path, 50) == result.rows
    rewind_records(tmp_path, 50)
    assert recorded_steps(tmp_path) == [0, 50]
    rewind_records(tmp_path, -1)
    assert recorded_steps(tmp_path) == []
