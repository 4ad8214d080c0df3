"""The commands that have no settings of their own: listed after those that do, each with the files that it is for."""

import re
from pathlib import Path

from tests.conftest import Start


def test_they_are_listed_after_the_commands_that_a_dataset_needs(command: Start) -> None:
    listed = re.findall(r"^│ ([a-z][\w-]*) ", command("--help", COLUMNS="120").stdout, re.M)
    assert listed[:5] == ["train", "schedule", "eval", "caption", "inspect"]
    assert {"init-model", "convert", "push", "demo", "guide"} <= {*listed[5:]}


def test_a_new_model_is_converted_and_back(command: Start, shapes: Path, tmp_path: Path) -> None:
    made = command("init-model", "new", "--dataset-path", shapes)
    assert (made.returncode, made.stderr) == (0, "done: new\n")
    converted = command("convert", "new", "original", "--layout", "original")
    assert (converted.returncode, converted.stderr) == (0, "done: original\n")
    again = command("init-model", "new", "--dataset-path", shapes)
    assert again.returncode == 2
    assert re.fullmatch(r"error: .*new.*\n", again.stderr)
    assert (tmp_path / "original" / "model.safetensors").is_file()


def test_a_full_disk_and_a_place_that_cannot_be_are_one_line(
    command: Start, tiny_model: Path, shapes: Path, small_disk: Path
) -> None:
    (small_disk / "full").write_bytes(bytes(21 * 2**20))
    init, convert = ("init-model", "--dataset-path", shapes), ("convert", "--layout", "original", tiny_model)
    for line in (init, convert):
        full = command(*line, small_disk / "new")
        assert full.returncode == 2
        assert full.stderr == f"error: the disk is full, {small_disk}/new can't be written: free some space\n"
        nowhere = command(*line, small_disk / "full" / "new")
        assert nowhere.returncode == 2
        assert nowhere.stderr == (
            f"error: can't make the folder {small_disk}/full ({small_disk}/full is no folder): name another folder\n"
        )
    assert [path.name for path in small_disk.iterdir()] == ["full"]
