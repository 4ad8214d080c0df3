"""What is due when, against a plain loop that counts."""

import pytest

from florence2ner.training.timetable import Timetable


def counted(total: int, every: int | None) -> list[int]:
    """The updates after which something is done that is due every so many updates, and after the last."""
    due, since = [], 0
    for step in range(1, total + 1):
        since += 1
        if since == every or step == total:
            due.append(step)
        if since == every:
            since = 0
    return due


@pytest.mark.parametrize("total", [1, 7, 12])
@pytest.mark.parametrize("every", [1, 3, 4, 12, 50, None])
def test_things_are_due_when_a_plain_loop_does_them(total: int, every: int | None) -> None:
    steps = range(1, total + 1)
    for is_due, table in (
        (Timetable.is_log_due, Timetable(total, every or 50, None, None)),
        (Timetable.is_evaluation_due, Timetable(total, 1, every, None)),
        (Timetable.is_save_due, Timetable(total, 1, None, every)),
    ):
        assert [step for step in steps if is_due(table, step)] == counted(total, every)
        assert [step for step in steps if table.is_last(step)] == [total]
