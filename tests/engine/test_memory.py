"""Batches that are halved where memory runs out."""

from tests.conftest import Start


def test_out_of_memory_halves_the_batch_and_goes_on(start: Start) -> None:
    result = start("tests.programs.short_of_memory").wait()
    assert result.returncode == 0, result.stderr
