"""What a launcher tells a process, by the variables that `accelerate launch` and torchrun set."""

import pytest

from florence2ner.engine import launcher

VARIABLES = {
    "RANK": launcher.rank,
    "LOCAL_RANK": launcher.local_rank,
    "WORLD_SIZE": launcher.processes,
    "LOCAL_WORLD_SIZE": launcher.local_processes,
}


@pytest.fixture(autouse=True)
def _without_a_launcher(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in VARIABLES:
        monkeypatch.delenv(name, raising=False)


def test_without_a_launcher_there_is_one_process_and_it_is_the_main_one() -> None:
    assert [read() for read in VARIABLES.values()] == [0, 0, 1, 1]
    assert launcher.is_main()


@pytest.mark.parametrize("name", VARIABLES)
def test_each_number_has_a_variable_of_its_own(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    before = {other: read() for other, read in VARIABLES.items()}
    monkeypatch.setenv(name, "13")
    assert {other: read() for other, read in VARIABLES.items()} == before | {name: 13}


def test_the_first_process_of_the_second_machine_is_not_the_main_one(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in (("RANK", "2"), ("LOCAL_RANK", "0"), ("WORLD_SIZE", "4"), ("LOCAL_WORLD_SIZE", "2")):
        monkeypatch.setenv(name, value)
    assert not launcher.is_main()
    monkeypatch.setenv("RANK", "0")
    assert launcher.is_main()
