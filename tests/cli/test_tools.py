"""The commands that have no settings of their own: listed after those that do, each with the files that it is for."""

import re
from pathlib import Path

from tests.conftest import Start


def test_they_are_listed_after_the_commands_that_a_dataset_needs(command: Start) -> None:
    listed = re.findall(r"^│ ([a-z][\w-]*) ", command("--help", COLUMNS="120").stdout, re.M)
    assert listed[:5] == ["train", "schedule", "eval", "caption", "inspect"]
    assert {"init-model", "convert", "push", "demo", "guide"} <= {*listed[5:]}


def test_a_new_model_is_converted_and_back(command: Start, shapes: Path, tmp_path: Path) -> None:
    assert command("init-model", "new", "--dataset-path", shapes).returncode == 0
    assert command("convert", "new", "original", "--layout", "original").returncode == 0
    again = command("init-model", "new", "--dataset-path", shapes)
    assert again.returncode == 2
    assert re.fullmatch(r"error: .*new.*\n", again.stderr)
    assert (tmp_path / "original" / "model.safetensors").is_file()
