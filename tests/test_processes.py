"""Real processes: the same numbers however many there are, and the traps of the launcher."""

import json
import signal
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from florence2ner import TrainConfig, train
from florence2ner.data.layouts.pairs import discover_samples
from florence2ner.demo import draw_dataset
from florence2ner.engine.checkpoint import list_checkpoints
from tests import gradients
from tests.conftest import ColdStart, Start
from tests.starting import Running, free_port, launched

MakeConfig = Callable[..., TrainConfig]
pytestmark = pytest.mark.slow

# batch size, accumulation, processes: eight images an update each time
WHOLE, CUT, SHARED = (8, 1, 1), (2, 4, 1), (2, 2, 2)


@pytest.fixture
def uneven(tmp_path: Path) -> Path:
    """Eleven images with captions of very different lengths: one full window of eight and a short one of three."""
    folder = tmp_path / "uneven"
    draw_dataset(folder, 11, seed=8)
    for number, sample in enumerate(discover_samples(folder, "<CAPTION>").samples):
        text = "red" if number % 5 == 0 else " and ".join([sample.caption or ""] * (1 + number % 4))
        sample.image.with_suffix(".txt").write_text(text)
    return folder


def write(config: TrainConfig, folder: Path) -> Path:
    file = folder / f"{config.run_name}.yaml"
    file.write_text(config.to_yaml(), encoding="utf-8")
    return file


def finish(running: Running) -> None:
    assert running.wait().returncode == 0, running.stderr


def relative_differences(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> dict[str, float]:
    """Norm of the difference by the norm, for each tensor.

    The biases of attention keys are left out: softmax does not see a shift of the keys, so their true gradient is zero
    and AdamW makes steps of the rounding. The vision tower holds them in the middle third of its qkv biases.
    """
    differences = {}
    for name, value in one.items():
        pair = value, other[name]
        if name.endswith("k_proj.bias"):
            continue
        if name.endswith("window_attn.qkv.bias"):
            pair = tuple(torch.cat([query, v]) for query, _, v in (tensor.chunk(3) for tensor in pair))
        differences[name] = ((pair[1] - pair[0]).norm() / pair[0].norm().clamp_min(1e-30)).item()
    return differences


def test_one_gradient_on_any_number_of_processes(
    make_config: MakeConfig, start: Start, uneven: Path, tmp_path: Path
) -> None:
    outputs = []
    for batch_size, accumulation, processes in (WHOLE, CUT, SHARED):
        name = f"{batch_size}-{accumulation}-{processes}"
        config = make_config(
            dataset_path=uneven, run_name=name, train_batch_size=batch_size, gradient_accumulation_steps=accumulation
        )
        outputs.append(tmp_path / name)
        if processes == 1:
            gradients.main(config, outputs[-1])
        else:
            finish(start("tests.gradients", write(config, tmp_path), outputs[-1], processes=processes))
    for update, samples in ((0, 8), (1, 3)):  # a full window, and the short last one
        whole, *others = (load_file(output / f"{update}.safetensors") for output in outputs)
        numbers = whole.pop("")
        assert numbers[2] == samples
        for other in others:
            torch.testing.assert_close(other.pop(""), numbers, rtol=1e-5, atol=0)
            assert max(relative_differences(whole, other).values()) < 1e-5


def test_ten_updates_give_the_same_weights(
    make_config: MakeConfig, start: Start, uneven: Path, tiny_model: Path, tmp_path: Path
) -> None:
    checkpoints = []
    for batch_size, accumulation, processes in (WHOLE, CUT, SHARED):
        config = make_config(
            dataset_path=uneven,
            run_name=f"{batch_size}-{accumulation}-{processes}",
            train_batch_size=batch_size,
            gradient_accumulation_steps=accumulation,
            epochs=5,
            freeze_vision=False,
            eval_steps=None,
            save_steps=None,
            learning_rate=1e-4,
        )
        checkpoints.append(config.run_dir / "step-10")
        if processes == 1:
            train(config)
        else:
            finish(start("florence2ner", "train", "--config", write(config, tmp_path), processes=processes))
    initial = load_file(tiny_model / "model.safetensors")
    whole, *others = (load_file(checkpoint / "model.safetensors") for checkpoint in checkpoints)
    losses = [
        [json.loads(line)["train/loss"] for line in (checkpoint.parent / "metrics.jsonl").read_text().splitlines()]
        for checkpoint in checkpoints
    ]
    for other, loss in zip(others, losses[1:], strict=True):
        assert loss == pytest.approx(losses[0], rel=1e-5)
        differences = relative_differences(whole, other)
        # A tensor that started at zero is nothing but the ten steps, in which AdamW divides small gradients by
        # themselves: rounding shows there, to a few parts in 100,000.
        grown = {name for name in differences if not initial[name].count_nonzero()}
        assert max(value for name, value in differences.items() if name not in grown) < 1e-5
        assert max(differences[name] for name in grown) < 1e-4


def test_two_processes_stop_together_resume_exactly_and_go_on_as_one(
    make_config: MakeConfig, start: Start, cold_start: ColdStart, tmp_path: Path
) -> None:
    settings = {
        "train_batch_size": 2,
        "gradient_accumulation_steps": 2,
        "epochs": 3,
        "save_steps": 2,
        "eval_steps": None,
    }
    whole, stopped = (make_config(run_name=name, keep_states=True, **settings) for name in ("whole", "stopped"))
    launch = ("-m", "accelerate.commands.launch", "--multi_gpu", "--num_processes", "2", "--main_process_port", "0")
    train_it = ("-m", "florence2ner", "train", "--config", write(stopped, tmp_path))
    launcher = cold_start(*launch, *train_it, ACCELERATE_USE_CPU="true", OMP_NUM_THREADS="1")
    while not (stopped.run_dir / "step-2").exists():
        assert launcher.poll() is None
        time.sleep(0.001)
    launcher.send_signal(signal.SIGTERM)  # the launcher passes it on: as a scheduler does
    _, errors = launcher.communicate(timeout=120)
    assert launcher.returncode != 0
    assert "2 x cpu" in errors
    assert "error: stopped by signal 15 after update" in errors
    assert "-m florence2ner train --config" in errors
    newest = list_checkpoints(stopped.run_dir)[-1]
    assert newest.name in {f"step-{n}" for n in range(2, 9)}
    finish(start(*train_it[1:], "--resume", "latest", processes=2))
    finish(start("florence2ner", "train", "--config", write(whole, tmp_path), processes=2))
    one, other = (load_file(config.run_dir / "step-9" / "model.safetensors") for config in (whole, stopped))
    assert all(torch.equal(one[name], other[name]) for name in one)

    changes = ("--run-name", "alone", "--train-batch-size", 4)
    alone = start("florence2ner", "train", "--resume", whole.run_dir / "step-8", *changes).wait()
    assert alone.returncode == 0, alone.stderr
    assert (
        "1 processes instead of 2: the data order is the same, but dropout and the rounding of sums are not"
        in alone.stderr
    )
    single = load_file(whole.run_dir.parent / "alone" / "step-9" / "model.safetensors")
    assert max(relative_differences(one, single).values()) < 1e-4


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


def test_the_launcher_that_makes_strangers_is_refused(make_config: MakeConfig, start: Start, tmp_path: Path) -> None:
    config = make_config(max_steps=1)
    command = ("florence2ner", "train", "--config", write(config, tmp_path))
    run = start(*command, processes=2, ACCELERATE_USE_CPU="false").wait()
    assert run.returncode == 2
    assert "do not see each other" in run.stderr
    assert "ACCELERATE_USE_CPU=true accelerate launch --multi_gpu --num_processes 2" in run.stderr
    assert not list_checkpoints(config.run_dir)


@pytest.mark.slow
@pytest.mark.parametrize(("before", "after"), [(2, 1), (1, 2)])
def test_the_original_layout_resumes_with_another_number_of_processes(
    make_config: MakeConfig, start: Start, tmp_path: Path, before: int, after: int
) -> None:
    settings = {"export_layout": "original", "eval_steps": None, "save_steps": 2, "max_steps": 3, "keep_states": True}
    config = make_config(train_batch_size=4 // before, gradient_accumulation_steps=2, **settings)
    command = ("florence2ner", "train", "--config", write(config, tmp_path))
    finish(start(*command, processes=before))
    changes = ("--run-name", "other", "--train-batch-size", 4 // after, "--resume", config.run_dir / "step-2")
    finish(start(*command, *changes, processes=after))
    runs = (config.run_dir, config.output_dir / "other")
    one, other = (load_file(next((run / "step-3").glob("*.safetensors"))) for run in runs)
    assert max(relative_differences(one, other).values()) < 1e-4
