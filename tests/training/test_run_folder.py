"""A run that goes on where it was: exact resume after signals and kills, forks, other processes, and refusals."""

import os
import random
import shutil
import signal
import socket
import threading
import time
from functools import partial
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from florence2ner import TrainConfig, UserError, train
from florence2ner.config.base import load_config
from florence2ner.engine.run_files import checkpoint_step, list_checkpoints, load_train_state
from florence2ner.errors import Interrupted
from tests.conftest import ColdStart, MakeConfig, Start
from tests.support import files_in, finish, history, relative_differences, weights, write


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


def assert_same_bits(first: Path, second: Path) -> None:
    one, other = weights(first), weights(second)
    assert one.keys() == other.keys()
    assert not [name for name in one if not torch.equal(one[name], other[name])]


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
    whole = train(make_config(run_name="whole", **settings)).checkpoint
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
    resumed = train(config).checkpoint
    assert (whole.name, resumed.name) == ("step-9", "step-9")
    assert_same_bits(whole, resumed)
    assert history(whole.parent) == history(resumed.parent)
    assert signal.getsignal(signal.SIGTERM) == signal.SIG_DFL


def test_resuming_from_a_path_forks_a_run_that_keeps_its_origin(
    make_config: MakeConfig, settings: dict[str, object]
) -> None:
    whole = train(make_config(run_name="whole", **settings, keep_states=True)).checkpoint
    fork = train(make_config(run_name="fork", resume=str(whole.parent / "step-8"), **settings)).checkpoint
    assert_same_bits(whole, fork)
    with pytest.raises(UserError, match=r"already has checkpoints: add --resume latest"):
        train(make_config(run_name="whole", resume=str(whole.parent / "step-8"), **settings))
    again = train(make_config(run_name="whole", resume="latest", **settings)).checkpoint
    assert again == whole.resolve(), "a run that has all its updates is left as it is"


@pytest.mark.parametrize("lines", ["each", "random"])
def test_a_run_with_several_captions_per_image_resumes_exactly(
    make_config: MakeConfig, shapes: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], lines: str
) -> None:
    photos = tmp_path / "photos"
    photos.mkdir()
    for number in range(8):
        shutil.copy(shapes / f"{number:04d}.png", photos)
        caption = (shapes / f"{number:04d}.txt").read_text()
        (photos / f"{number:04d}.txt").write_text(f"{caption}a shape\n" + "something red\n" * (number % 2))
    settings = {"dataset_path": photos, "caption_lines": lines, "epochs": 4, "eval_steps": None, "save_steps": 2}
    settings["save_total_limit"] = None
    whole = train(make_config(run_name="whole", keep_states=True, **settings)).checkpoint
    said = "20 captions of 8 images" if lines == "each" else "8 images"
    assert f"%) on {said}, 0 held out" in capsys.readouterr().err
    fork = train(make_config(run_name="fork", resume=str(whole.parent / "step-2"), **settings)).checkpoint
    assert fork.name == whole.name
    assert_same_bits(whole, fork)
    first = train(make_config(run_name="first", **settings | {"caption_lines": "first"})).checkpoint
    ours, theirs = weights(first), weights(whole)
    assert any(not ours[name].equal(theirs[name]) for name in ours)


def test_the_original_layout_resumes_exactly_too(make_config: MakeConfig, settings: dict[str, object]) -> None:
    settings |= {"export_layout": "original", "keep_states": True, "eval_steps": None}
    whole = train(make_config(run_name="whole", **settings)).checkpoint
    fork = train(make_config(run_name="fork", resume=str(whole.parent / "step-8"), **settings)).checkpoint
    assert_same_bits(whole, fork)


def test_resume_latest_without_a_checkpoint_is_a_start(make_config: MakeConfig) -> None:
    assert train(make_config(max_steps=1, eval_steps=None, resume="latest")).checkpoint.name == "step-1"


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


def test_a_run_directory_with_checkpoints_is_refused(make_config: MakeConfig) -> None:
    config = make_config(max_steps=1, eval_steps=None)
    train(config)
    with pytest.raises(
        UserError, match=r"already has checkpoints: add --resume latest to go on from step-1, choose another --run-name"
    ):
        train(config)


@pytest.mark.slow
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


@pytest.fixture
def no_work(monkeypatch: pytest.MonkeyPatch) -> None:
    """Loading a model or decoding an image fails the test."""

    def refuse(*_: object, **__: object) -> None:
        raise AssertionError("work was begun")

    monkeypatch.setattr("florence2ner.model.build.load_model", refuse)
    monkeypatch.setattr("florence2ner.data.loader.load_pixels", refuse)


@pytest.fixture
def stopped(make_config: MakeConfig, monkeypatch: pytest.MonkeyPatch) -> TrainConfig:
    """The settings of a run with a checkpoint after its first update, of two."""
    config = make_config(max_steps=1, eval_steps=None, run_name="stopped")
    train(config)
    return config


def test_a_second_start_is_told_who_holds_the_run_and_a_kill_frees_it(
    make_config: MakeConfig, start: Start, tmp_path: Path
) -> None:
    config = make_config(epochs=500, save_steps=1, eval_steps=None, dataloader_workers=2, output_dir=tmp_path / "runs")
    write(config, tmp_path)
    train_run = ("florence2ner", "train", "--config", "run.yaml")
    first = start(*train_run)
    while not list_checkpoints(config.run_dir):
        assert first.poll(0.01) is None, first.stderr
    settings = (config.run_dir / "config.yaml").read_bytes()
    for flags in ([], ["--resume", "latest"]):
        second = start(*train_run, "--seed", "9", *flags).wait()
        assert second.returncode == 2
        (line,) = second.stderr.splitlines()
        assert f"runs/run is in use by process {first.pids[0]} on {socket.gethostname()}: wait until that run" in line
    assert (config.run_dir / "config.yaml").read_bytes() == settings
    assert first.poll() is None, first.stderr

    os.kill(first.pids[0], signal.SIGKILL)  # not the workers that it started
    first.wait()
    step = checkpoint_step(list_checkpoints(config.run_dir)[-1])
    again = start(*train_run, "--resume", "latest", "--max-steps", step + 1).wait()
    assert again.returncode == 0, again.stderr
    assert {path.name for path in (tmp_path / "runs").iterdir()} == {"run"}


@pytest.mark.parametrize("settings", [{}, {"feature_cache": "off"}, {"freeze_vision": False}], ids=str)
def test_an_image_that_was_never_readable_may_be_gone_later(
    make_config: MakeConfig, shapes: Path, tmp_path: Path, settings: dict[str, object]
) -> None:
    photos = tmp_path / "photos"
    ends = {}
    for name in ("kept", "gone"):
        shutil.copytree(shapes, photos, dirs_exist_ok=True)
        (photos / "0003.png").write_bytes(b"broken")
        run = partial(make_config, dataset_path=photos, run_name=name, epochs=3, **settings)
        stopped = train(run(max_steps=3)).checkpoint
        assert load_train_state(stopped).unreadable == ["0003.png"]
        if name == "gone":
            (photos / "0003.png").unlink()
            (photos / "0003.txt").unlink()
        ends[name] = train(run(max_steps=5, resume="latest")).checkpoint
    assert_same_bits(ends["kept"], ends["gone"])


def test_what_a_resumed_run_misses_is_refused_and_what_changed_is_said(
    make_config: MakeConfig,
    shapes: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    photos = tmp_path / "photos"
    shutil.copytree(shapes, photos)
    monkeypatch.chdir(tmp_path)
    run = partial(make_config, dataset_path="photos", eval_steps=None, resume="latest")
    train(run(max_steps=3))  # every image once
    (photos / "0001.txt").write_text("another caption")
    picture = (photos / "0002.png").read_bytes()
    (photos / "0002.png").write_bytes(picture[:-1] + bytes([picture[-1] ^ 1]))  # as long as before
    (photos / "0003.png").rename(tmp_path / "0003.png")
    with pytest.raises(UserError, match=r"^1 images or their captions are gone, .*0003.png; bring them back"):
        train(run(max_steps=4))
    (tmp_path / "0003.png").rename(photos / "0003.png")
    capsys.readouterr()
    for steps in (4, 5):  # with each resume
        train(run(max_steps=steps))
        said = capsys.readouterr().err
        assert "1 captions have changed since the run began: 0001.png; it ends with other weights than it would" in said
        assert "warning: 1 images have changed since the run began: 0002.png; it ends with other" in said
        assert f"settings that changed: max_steps {steps - 1} -> {steps}\n" in said  # no relative path that is the same


def test_a_run_starts_from_the_best_of_another_and_remembers_it(
    make_config: MakeConfig, tiny_model: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    first = make_config(run_name="first", max_steps=3, save_steps=1, eval_steps=1, learning_rate=0.3)
    train(first)  # at such a rate every evaluation after the first is worse
    second = partial(make_config, run_name="second", model_name=str(first.run_dir), export_layout="original")
    train(second(max_steps=1))
    assert f"starting from {first.run_dir}/step-1" in capsys.readouterr().err
    (first.run_dir / "best").unlink()
    train(second(max_steps=2, resume="latest"))  # by the same name, though it means another checkpoint now
    settings = load_config(TrainConfig, {}, second().run_dir / "config.yaml")
    assert settings.model_name == str(first.run_dir / "step-1")
    with pytest.raises(
        UserError, match=rf"the run started from .*/first/step-1, this command names {tiny_model}: leave"
    ):
        train(second(max_steps=3, resume="latest", model_name=str(tiny_model)))
    unsaid = second(max_steps=3, resume="latest").model_dump(exclude={"model_name"})
    train(TrainConfig(**unsaid))
    assert "model_name" not in capsys.readouterr().err


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"resume": None}, r"already has checkpoints: add --resume latest to go on from step-1"),
        ({"train_batch_size": 2}, r"takes 8 images per update, this command 4: choose train_batch_size x"),
        ({"seed": 1}, r"the run has seed 42, this command 1: it can't change on the way"),
        ({"freeze_vision": False}, r"the run has freeze_vision True, this command False"),
        ({"mixed_precision": "bf16"}, r"the run has precision no, this command bf16: add --mixed-precision no"),
        ({"run_name": "fork", "resume": "nowhere"}, r"can't resume from .*nowhere: it does not exist"),
        ({"run_name": "new", "output_dir": "FILE"}, r"can't make the folder .*choose another --output-dir"),
        ({"run_name": "new", "feature_cache": "disk", "feature_cache_dir": "FILE"}, r"choose another --feature-cache-"),
        (
            {"run_name": "new", "warmup_steps": 2},
            r"never reaches 0.001: warmup_steps 2 is not below the run's 2 updates",
        ),
        ({"run_name": "new", "log_with": ("tensorboard",)}, r"needs its package: pip install tensorboard"),
        ({"run_name": "new", "eval_split_ratio": 0.99}, r"leaves nothing to train on"),
    ],
    ids=lambda value: "-".join(value) if isinstance(value, dict) else "",
)
def test_what_cannot_end_well_is_refused_before_any_work(
    make_config: MakeConfig,
    stopped: TrainConfig,
    monkeypatch: pytest.MonkeyPatch,
    no_work: None,
    tmp_path: Path,
    changes: dict[str, object],
    message: str,
) -> None:
    (tmp_path / "FILE").write_text("no folder")
    changes = {key: tmp_path / "FILE" / "x" if value == "FILE" else value for key, value in changes.items()}
    monkeypatch.setattr("florence2ner.engine.tracking.get_available_trackers", lambda: [])
    before = files_in(tmp_path)
    with pytest.raises(UserError, match=message):
        train(make_config(**{"max_steps": 2, "run_name": "stopped", "resume": "latest"} | changes))
    assert files_in(tmp_path) == before


def test_the_usual_folder_of_the_cache_is_looked_at_before_any_work_too(
    make_config: MakeConfig, monkeypatch: pytest.MonkeyPatch, no_work: None, tmp_path: Path
) -> None:
    (tmp_path / "home").write_text("no folder")
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    with pytest.raises(UserError, match=r"can't make the folder .*features .*choose another --feature-cache-dir"):
        train(make_config(feature_cache="disk", feature_cache_dir=None))


@pytest.mark.parametrize("damage", ["removed", "torn"])
def test_random_generators_that_cannot_be_restored_are_named(
    make_config: MakeConfig, stopped: TrainConfig, capsys: pytest.CaptureFixture[str], damage: str
) -> None:
    again = make_config(max_steps=2, eval_steps=None, run_name="stopped", resume="latest")
    saved = stopped.run_dir / "step-1" / "state" / "random_states_0.pkl"
    saved.unlink() if damage == "removed" else saved.write_bytes(b"torn")
    train(again)
    assert "has no random generators for all of these processes and devices" in capsys.readouterr().err
    train(make_config(max_steps=3, eval_steps=None, run_name="stopped", resume="latest"))
    assert "random generators" not in capsys.readouterr().err


def test_the_precision_that_auto_comes_to_is_what_a_resume_compares(
    make_config: MakeConfig, stopped: TrainConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    again = {"max_steps": 2, "eval_steps": None, "run_name": "stopped", "resume": "latest"}
    monkeypatch.setenv("ACCELERATE_MIXED_PRECISION", "bf16")  # `auto` comes to this now
    with pytest.raises(UserError, match=r"the run has precision no, this command bf16"):
        train(make_config(**again))
    assert train(make_config(**again, mixed_precision="no")).checkpoint.name == "step-2"


@pytest.mark.parametrize(
    ("file", "text", "message"),
    [
        (
            "split.json",
            "[]",
            r"split.json doesn't hold the split of a run, or that of another version: start a new run",
        ),
        ("split.json", '{"train": []}', r"split.json doesn't hold the split of a run"),
        ("step-1/state/train_state.json", '{"updates": 3}', r"train_state.json is damaged, or of another version"),
        ("step-1/state/train_state.json", "{", r"train_state.json is damaged, or of another version"),
        ("config.yaml", "learning_rate: 1\n", r"config.yaml doesn't say seed: it is damaged, or of another version"),
    ],
)
def test_files_of_another_version_are_one_line(
    make_config: MakeConfig, stopped: TrainConfig, no_work: None, file: str, text: str, message: str
) -> None:
    (stopped.run_dir / file).write_text(text)
    with pytest.raises(UserError, match=message) as error:
        train(make_config(max_steps=2, eval_steps=None, run_name="stopped", resume="latest"))
    assert "\n" not in str(error.value)
