"""What the processes of a run must agree on."""

import json
from pathlib import Path

import pytest

from florence2ner.demo import draw_dataset
from tests.conftest import MakeConfig, Start
from tests.programs.starting import free_port, launched


@pytest.mark.slow
def test_processes_with_other_settings_or_files_are_refused(
    make_config: MakeConfig, start: Start, tmp_path: Path
) -> None:
    """Two processes as two machines would start them, each with its own copy of the config and of the data."""
    running = []
    port = free_port()
    for rank in range(2):
        folder = tmp_path / str(rank)
        draw_dataset(folder / "data", 6, seed=1)
        changes: dict[str, object] = {}
        if rank == 1:
            changes = {"learning_rate": 1e-5}
            (folder / "data" / "0000.txt").write_text("another caption")
        text = make_config(**changes).model_dump(mode="json") | {"dataset_path": "data", "output_dir": "runs"}
        (folder / "run.yaml").write_text(json.dumps(text))
        world = launched(rank, 2, port, machines=2)
        running.append(start("florence2ner", "train", "--config", "run.yaml", cwd=folder, **world))
    for process in running:
        assert process.wait().returncode == 2, process.stderr
        expected = (
            "not the same as in process 0: the configuration of process 1; the dataset of process 1; start the same"
        )
        assert expected in process.stderr
