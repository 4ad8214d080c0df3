"""What the processes of a run must agree on, and what they say when one of them is lost."""

import json
import os
import signal
from collections.abc import Callable
from pathlib import Path

import pytest

from florence2ner import TrainConfig
from florence2ner.demo import draw_dataset
from tests.conftest import MakeConfig, Start
from tests.programs.starting import Running, free_port, launched
from tests.support import assert_one_clear_line, large, wait_until_open, write


def on_two_machines(
    start: Start, tmp_path: Path, config: TrainConfig, *, change: Callable[[Path, dict[str, object]], None]
) -> list[Running]:
    """Two processes as two machines would start them, each in a folder of its own with its own config and data.

    `change` is for the folder and the settings of the second.
    """
    running = []
    port = free_port()
    for rank in range(2):
        folder = tmp_path / str(rank)
        draw_dataset(folder / "data", 6, seed=1)
        settings = config.model_dump(mode="json") | {"dataset_path": "data", "output_dir": "runs"}
        if rank == 1:
            change(folder, settings)
        (folder / "run.yaml").write_text(json.dumps(settings))
        world = launched(rank, 2, port, machines=2)
        running.append(start("florence2ner", "train", "--config", "run.yaml", cwd=folder, **world))
    return running


@pytest.mark.slow
def test_processes_with_other_settings_or_files_are_refused(
    make_config: MakeConfig, start: Start, tmp_path: Path
) -> None:
    def change(folder: Path, settings: dict[str, object]) -> None:
        settings["learning_rate"] = 1e-5
        (folder / "data" / "0000.txt").write_text("another caption")

    for process in on_two_machines(start, tmp_path, make_config(), change=change):
        assert process.wait().returncode == 2, process.stderr
        expected = (
            "not the same as in process 0: the configuration of process 1; the dataset of process 1; start the same"
        )
        assert expected in process.stderr


@pytest.mark.slow
def test_a_run_folder_that_another_machine_cannot_see_is_refused(
    make_config: MakeConfig, start: Start, tmp_path: Path
) -> None:
    for process in on_two_machines(start, tmp_path, make_config(), change=lambda *_: None):
        assert process.wait().returncode == 2, process.stderr
        assert "can't see the folder runs/run of process 0: choose an --output-dir that all mac" in process.stderr
    for rank in range(2):
        assert {path.name for path in (tmp_path / str(rank)).iterdir()} == {"data", "run.yaml"}


@pytest.mark.slow
@pytest.mark.parametrize(("lost", "by"), [(0, signal.SIGKILL), (1, signal.SIGKILL), (1, signal.SIGSTOP)])
def test_a_process_that_is_killed_or_falls_silent_ends_an_evaluation_with_one_line(
    start: Start, trained_model: Path, shapes: Path, tmp_path: Path, lost: int, by: signal.Signals
) -> None:
    data = large(tmp_path / "data", shapes, 4)
    flags = ("--batch-size", 1, "--num-beams", 1, "--max-new-tokens", 8, "--no-retry")
    command = ("eval", "--model-name", trained_model, "--dataset-path", data, *flags)
    running = start("tests.programs.impatient", 5, *command, processes=2)
    wait_until_open(running, lost, *data.glob("*.png"))
    assert_one_clear_line(running, lost, "; start the same command again", by)


@pytest.mark.slow
@pytest.mark.parametrize("killed", [0, 1])
def test_a_killed_process_ends_a_training_that_is_still_encoding_with_one_line(
    make_config: MakeConfig, start: Start, shapes: Path, tmp_path: Path, killed: int
) -> None:
    data = large(tmp_path / "data", shapes, 6)
    config = make_config(dataset_path=data, train_batch_size=1, encode_batch_size=1, process_timeout=5)
    running = start("florence2ner", "train", "--config", write(config, tmp_path), processes=2)
    while not list((tmp_path / "features").glob("*/??/*")):  # the first feature
        assert running.poll() is None, running.stderr
    assert_one_clear_line(running, killed, " for 5 s; there is no checkpoint yet: start the same command again")


@pytest.mark.slow
@pytest.mark.parametrize("killed", [0, 1])
def test_a_killed_process_ends_a_captioning_with_one_line_when_all_else_is_captioned(
    start: Start, trained_model: Path, shapes: Path, tmp_path: Path, killed: int
) -> None:
    images = sorted(large(tmp_path / "data", shapes, 6).glob("*.png"))
    flags = ("--batch-size", 1, "--num-beams", 1, "--max-new-tokens", 8, "--no-retry", "--caption-extension", ".new")
    command = ("caption", *images, "--model-name", trained_model, *flags)
    running = start("tests.programs.impatient", 5, *command, processes=2)
    wait_until_open(running, killed, *images)
    assert_one_clear_line(running, killed, "; the same command goes on with the rest")
    if killed == 1:  # process 0 keeps the store, without which nothing goes on
        assert 0 < len(list((tmp_path / "data").glob("*.new"))) < 6


def workers_of(running: Running) -> list[int]:
    """The processes that decode images for the first of the processes. Needs Linux."""
    pid = running.pids[0]
    return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/task").exists(), reason="this system doesn't list a process's children")
@pytest.mark.parametrize("command", ["train", "caption"])
def test_a_worker_that_is_killed_ends_the_command_with_one_line(
    make_config: MakeConfig, start: Start, shapes: Path, tmp_path: Path, command: str
) -> None:
    data = large(tmp_path / "data", shapes, 24)  # the workers decode for many seconds
    config = make_config(dataset_path=data, dataloader_workers=2, feature_cache="off", eval_steps=None, epochs=9)
    write(config, tmp_path)
    flags = {
        "train": ("--config", "run.yaml"),
        "caption": (data, "--existing", "overwrite", "--model-name", config.model_name, "--dataloader-workers", 2),
    }
    running = start("florence2ner", command, *flags[command])
    while len(workers := workers_of(running)) < 2:
        assert running.poll(0.01) is None, running.stderr
    os.kill(workers[0], signal.SIGKILL)
    assert running.wait(60).returncode == 2, running.stderr  # though the other worker heeds no SIGTERM
    assert "Traceback" not in running.stderr
    (line,) = (line for line in running.stderr.splitlines() if "error" in line)
    assert line.startswith("error: a process that decodes images was killed, as when memory runs out or /dev/shm is")
    again = {"train": "start the same command again", "caption": "the same command goes on with the rest"}
    assert line.endswith(again[command])
