"""A run that survives anything: exact resume, whole checkpoints, signals, full disks, numbers that are none."""

import json
import os
import random
import shutil
import signal
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from florence2ner import TrainConfig, UserError, load_model, train
from florence2ner.demo import draw_dataset
from florence2ner.engine.checkpoint import list_checkpoints
from florence2ner.errors import Interrupted
from florence2ner.model.checkpoints.files import read_json
from tests.conftest import Start

MakeConfig = Callable[..., TrainConfig]
TIMING = {"time", "train/images_per_second"}


@pytest.fixture(scope="module")
def dropout_model(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny model with dropout, so that the random generators matter."""
    model = tmp_path_factory.mktemp("dropout") / "model"
    shutil.copytree(tiny_model, model)
    config = read_json(model / "config.json")
    config["text_config"] |= {"dropout": 0.1, "attention_dropout": 0.1, "activation_dropout": 0.1}
    (model / "config.json").write_text(json.dumps(config))
    return model


@pytest.fixture
def settings(dropout_model: Path) -> dict[str, object]:
    """A run of nine updates in three epochs, three micro-batches each, logged over spans that saves cut through."""
    return {
        "model_name": str(dropout_model),
        "epochs": 3,
        "train_batch_size": 3,
        "gradient_accumulation_steps": 3,
        "save_steps": 2,
        "save_total_limit": 2,
        "eval_steps": 4,
        "log_every": 3,
        "warmup_steps": 2,
        "freeze_vision": False,
    }


def weights(checkpoint: Path) -> dict[str, torch.Tensor]:
    return load_file(checkpoint / "model.safetensors")


def assert_same_bits(first: Path, second: Path) -> None:
    one, other = weights(first), weights(second)
    assert one.keys() == other.keys()
    assert not [name for name in one if not torch.equal(one[name], other[name])]


def history(run_dir: Path) -> list[dict[str, object]]:
    lines = [json.loads(line) for line in (run_dir / "metrics.jsonl").read_text().splitlines()]
    return [{name: value for name, value in line.items() if name not in TIMING} for line in lines]


def signal_at(run_dir: Path, checkpoint: str, number: signal.Signals) -> threading.Thread:
    """Send this process a signal as soon as the run has written `checkpoint`."""

    def watch() -> None:
        while not (run_dir / checkpoint).exists():
            time.sleep(0.001)
        os.kill(os.getpid(), number)

    thread = threading.Thread(target=watch, daemon=True)
    thread.start()
    return thread


def test_a_run_stopped_twice_equals_one_that_was_never_stopped(
    make_config: MakeConfig, settings: dict[str, object]
) -> None:
    whole = train(make_config(run_name="whole", **settings))
    config = make_config(run_name="stopped", **settings)
    stops = []
    for checkpoint, number in (("step-2", signal.SIGTERM), ("step-6", signal.SIGINT)):
        watcher = signal_at(config.run_dir, checkpoint, number)
        with pytest.raises(Interrupted, match=r"resume with: florence2ner train --config .* --resume latest") as stop:
            train(config)
        watcher.join()
        assert stop.value.signal == number
        stops.append(list_checkpoints(config.run_dir)[-1].name)
        config = make_config(run_name="stopped", resume="latest", **settings)
    assert stops[0] != stops[1]
    resumed = train(config)
    assert (whole.name, resumed.name) == ("step-9", "step-9")
    assert_same_bits(whole, resumed)
    assert history(whole.parent) == history(resumed.parent)
    assert signal.getsignal(signal.SIGTERM) == signal.SIG_DFL


def test_resuming_from_a_path_forks_a_run_that_keeps_its_origin(
    make_config: MakeConfig, settings: dict[str, object]
) -> None:
    whole = train(make_config(run_name="whole", **settings, keep_states=True))
    fork = train(make_config(run_name="fork", resume=str(whole.parent / "step-8"), **settings))
    assert_same_bits(whole, fork)
    with pytest.raises(UserError, match=r"already has checkpoints: add --resume latest"):
        train(make_config(run_name="whole", resume=str(whole.parent / "step-8"), **settings))
    again = train(make_config(run_name="whole", resume="latest", **settings))
    assert again == whole.resolve(), "a run that has all its updates is left as it is"


def test_the_original_layout_resumes_exactly_too(make_config: MakeConfig, settings: dict[str, object]) -> None:
    settings |= {"export_layout": "original", "keep_states": True, "eval_steps": None}
    whole = train(make_config(run_name="whole", **settings))
    fork = train(make_config(run_name="fork", resume=str(whole.parent / "step-8"), **settings))
    assert_same_bits(whole, fork)


def test_resume_latest_without_a_checkpoint_is_a_start(make_config: MakeConfig) -> None:
    assert train(make_config(max_steps=1, eval_steps=None, resume="latest")).name == "step-1"


def test_a_resume_that_would_change_the_data_order_is_refused(
    make_config: MakeConfig, settings: dict[str, object]
) -> None:
    watched = make_config(**settings)
    watcher = signal_at(watched.run_dir, "step-2", signal.SIGTERM)
    with pytest.raises(Interrupted):
        train(watched)
    watcher.join()
    with pytest.raises(UserError, match=r"takes 9 images per update, this command 6: choose train_batch_size x"):
        train(make_config(**settings | {"train_batch_size": 2, "resume": "latest"}))
    with pytest.raises(UserError, match=r"the run has seed 42, this command 1: it can't change"):
        train(make_config(**settings | {"seed": 1, "resume": "latest"}))
    with pytest.raises(UserError, match=r"can't resume from .*nowhere: it does not exist"):
        train(make_config(**settings | {"run_name": "other", "resume": "nowhere"}))


def test_best_is_linked_and_never_pruned_and_patience_ends_the_run(make_config: MakeConfig) -> None:
    # The learning rate is so high that every evaluation after the first is worse.
    config = make_config(
        epochs=4, learning_rate=0.3, save_steps=1, eval_steps=1, save_total_limit=1, early_stopping_patience=3
    )
    last = train(config)
    losses = {line["step"]: line["eval/loss"] for line in history(config.run_dir) if "eval/loss" in line}
    best = min(losses, key=lambda step: losses[step])  # type: ignore[arg-type]
    assert last.name == f"step-{best + 3}", losses
    assert {path.name for path in list_checkpoints(config.run_dir)} == {f"step-{best}", last.name}
    assert (config.run_dir / "best").resolve().name == f"step-{best}"
    assert (config.run_dir / "latest").resolve().name == last.name
    load_model(config.run_dir / "best")


def test_numbers_that_are_none_are_skipped_and_named(
    make_config: MakeConfig, tiny_model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data = tmp_path / "data"
    draw_dataset(data, 8, seed=1)
    (data / "0003.txt").write_text("a small red star " * 12)
    model = tmp_path / "poisoned"
    shutil.copytree(tiny_model, model)
    tensors = load_file(model / "model.safetensors")
    tensors["model.language_model.decoder.embed_positions.weight"][32:] = float("nan")  # only long captions reach it
    save_file(tensors, model / "model.safetensors", metadata={"format": "pt"})
    common = {"model_name": str(model), "dataset_path": data, "eval_steps": None, "gradient_accumulation_steps": 1}

    config = make_config(**common, run_name="skipped", train_batch_size=2, epochs=2)
    last = train(config)
    skipped = [line for line in capsys.readouterr().err.splitlines() if line.endswith("it is skipped")]
    assert len(skipped) == 2
    assert all("0003.png" in line for line in skipped)
    assert [line["train/skipped_updates"] for line in history(config.run_dir)][-1] == 2
    after = weights(last)
    changed = [name for name, value in after.items() if not torch.equal(value, tensors[name])]
    assert changed
    assert all(after[name].isfinite().all() for name in changed if "embed_positions" not in name)

    with pytest.raises(UserError, match=r"not finite .*0003.png.*the 2th in a row.*last good checkpoint: none yet"):
        train(make_config(**common, run_name="stopped", train_batch_size=8, epochs=3, max_bad_updates=2))


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A real file system of 24 MB."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=24m", "tmpfs", str(folder)]
    if os.geteuid() != 0 or subprocess.run(mount, capture_output=True).returncode:
        pytest.skip("mounting a small disk needs root")
    yield folder
    subprocess.run(["umount", "-l", str(folder)], check=True)


def test_a_full_disk_leaves_the_last_checkpoint_and_one_clear_line(make_config: MakeConfig, small_disk: Path) -> None:
    # 7 MB of weights and 14 MB of optimizer state: the first checkpoint fits, the second does not.
    config = make_config(output_dir=small_disk, save_steps=1, eval_steps=None, freeze_vision=False)
    with pytest.raises(UserError, match=r"the disk is full, .*/step-2 can't be written: free .* resume from"):
        train(config)
    (only,) = list_checkpoints(config.run_dir)
    assert only.name == "step-1"
    assert not list(config.run_dir.glob(".unfinished-*"))
    load_model(only)
    assert (only / "state" / "train_state.json").exists()


@pytest.mark.slow
def test_kill_minus_nine_at_any_moment_of_a_save_leaves_a_whole_checkpoint(
    start: Start, tiny_model: Path, tmp_path: Path
) -> None:
    """One process forks a child per try; each child saves over and over until it is killed. See tests/saver.py."""
    done = start("tests.saver", tiny_model, tmp_path / "run", 25).wait()
    assert done.returncode == 0, done.stdout + done.stderr
    lines = done.stdout.splitlines()
    assert len(lines) == 25
    assert sum("interrupted" in line for line in lines) >= 10, "the kills must hit saves that were under way"


@pytest.mark.slow
def test_kill_minus_nine_of_a_run_then_resume(
    make_config: MakeConfig, settings: dict[str, object], start: Start, tmp_path: Path
) -> None:
    settings["output_dir"] = tmp_path / "runs"
    saves = {"whole": None, "killed": 1}  # when a run saves makes no difference to what it learns
    configs = {name: make_config(run_name=name, **settings | {"save_steps": n}) for name, n in saves.items()}
    for name, config in configs.items():
        (tmp_path / f"{name}.yaml").write_text(config.to_yaml())

    killed = start("florence2ner", "train", "--config", "killed.yaml", "--resume", "latest")
    while not list_checkpoints(configs["killed"].run_dir):
        assert killed.poll() is None, killed.stderr
        time.sleep(0.01)
    time.sleep(random.Random(0).uniform(0, 0.3))
    killed.signal(signal.SIGKILL)
    assert killed.wait().returncode == -signal.SIGKILL
    for name, flags in (("whole", []), ("killed", ["--resume", "latest"])):
        done = start("florence2ner", "train", "--config", f"{name}.yaml", *flags).wait()
        assert done.returncode == 0, done.stderr
    assert_same_bits(configs["whole"].run_dir / "step-9", configs["killed"].run_dir / "step-9")
    assert history(configs["whole"].run_dir) == history(configs["killed"].run_dir)
    assert not list(configs["killed"].run_dir.glob(".unfinished-*"))


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_saves_and_exits_with_its_code(
    make_config: MakeConfig, tmp_path: Path, number: signal.Signals, start: Start
) -> None:
    config = make_config(
        epochs=10_000, eval_steps=None, save_steps=None, output_dir=tmp_path / "runs", dataloader_workers=1
    )
    file = tmp_path / "run.yaml"
    file.write_text(config.to_yaml())
    run = start("florence2ner", "train", "--config", file)
    while not (config.run_dir / "metrics.jsonl").exists():
        assert run.poll() is None, run.stderr
        time.sleep(0.01)
    run.signal(number)  # to the decoding process too, as a terminal does
    assert run.wait().returncode == 128 + number
    last = run.stderr.strip().splitlines()[-1]
    (checkpoint,) = list_checkpoints(config.run_dir)
    assert last.startswith(f"error: stopped by signal {int(number)} after update ")
    resume = f"resume with: florence2ner train --config {config.run_dir}/config.yaml --resume latest"
    assert last.endswith(f"saved in {checkpoint}; {resume}")
    assert "Traceback" not in run.stderr
