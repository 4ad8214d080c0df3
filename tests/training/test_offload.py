"""Activation offloading in runs: the same weights to the bit, resumes, full disks, kills, and what is refused."""

import re
import tempfile
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from florence2ner import Callback, Update, UserError, train
from tests.conftest import ColdStart, MakeConfig, Start
from tests.engine.test_offload import room_for
from tests.engine.test_sharding import sharded
from tests.support import finish, unnamed_files, weights, write
from tests.training.test_run_folder import assert_same_bits

SHORT = {"max_steps": 2, "save_steps": 1, "keep_states": True, "eval_steps": None, "feature_cache": "off"}
DISK = {"activation_offload": "disk"}
TRAINED_TOWER = {"freeze_vision": False, "gradient_checkpointing": False}


class Look(Callback):
    """Looks for the unnamed files that are there during a run."""

    def __init__(self) -> None:
        self.sizes: list[list[int]] = []

    def on_update(self, step: int, update: Update) -> None:
        self.sizes.append(unnamed_files(Path(tempfile.gettempdir())))


@pytest.mark.parametrize(
    "settings",
    [
        {},
        TRAINED_TOWER,
        TRAINED_TOWER | {"mixed_precision": "bf16", "export_layout": "original"},
        {"lora_rank": 4, "lora_targets": "all"},
        {"feature_cache": "auto", "gradient_checkpointing": False, "ema_decay": 0.9},
    ],
    ids=lambda settings: "-".join(map(str, settings.values())),
)
def test_a_run_has_the_same_weights_to_the_bit(
    make_config: MakeConfig, dropout_model: Path, monkeypatch: pytest.MonkeyPatch, settings: dict[str, Any]
) -> None:
    settings = SHORT | {"model_name": str(dropout_model), "save_steps": None} | settings
    plain = train(make_config(run_name="plain", **settings)).checkpoint
    folder = plain.parent.parent / "temporary"
    folder.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(folder))
    look = Look()
    moved = train(make_config(run_name="moved", **settings | DISK), callbacks=[look]).checkpoint
    one, other = (load_file(next(checkpoint.glob("*model.safetensors"))) for checkpoint in (plain, moved))
    assert all(torch.equal(one[name], other[name]) for name in one)
    (first,), (second,) = look.sizes
    assert 0 < first == second  # the second update has used the same parts of the file
    assert unnamed_files(folder) == []
    assert list(folder.iterdir()) == []


def test_a_full_disk_is_one_line_after_which_the_run_goes_on_as_if_nothing_had_been(
    make_config: MakeConfig, dropout_model: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    settings = SHORT | TRAINED_TOWER | {"model_name": str(dropout_model), "save_total_limit": None}
    whole = train(make_config(run_name="whole", **settings)).checkpoint
    fork = {"run_name": "fork", "resume": str(whole.parent / "step-1")}
    with room_for(200_000), pytest.raises(UserError) as error:
        train(make_config(**settings | DISK | fork))
    assert str(error.value) == (
        f"can't keep activations in {tempfile.gettempdir()} (File too large): free some space, set TMPDIR to a folder "
        "with more, or leave out activation_offload; then add --resume latest"
    )
    assert_same_bits(whole, train(make_config(**settings | DISK | fork)).checkpoint)
    assert "settings that changed: activation_offload none -> disk" in re.sub(r"\s+", " ", capfd.readouterr().err)


@pytest.mark.slow
def test_nothing_is_left_after_a_kill(make_config: MakeConfig, cold_start: ColdStart, tmp_path: Path) -> None:
    folder = tmp_path / "temporary"
    folder.mkdir()
    config = make_config(**SHORT | TRAINED_TOWER | DISK | {"max_steps": None, "epochs": 10_000, "save_steps": None})
    running = cold_start("-m", "florence2ner", "train", "--config", write(config, tmp_path), TMPDIR=str(folder))
    while not any(unnamed_files(folder, running.pid)):
        assert running.poll() is None, running.communicate()
    assert [path for path in folder.rglob("*") if path.stat().st_size > 100_000] == []
    running.kill()
    running.wait()
    assert [path for path in folder.rglob("*") if path.stat().st_size > 100_000] == []


@pytest.mark.skipif(not Path("/dev/shm").is_dir(), reason="needs Linux")
def test_a_folder_in_memory_is_warned_of(
    make_config: MakeConfig, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(tempfile, "tempdir", "/dev/shm")
    train(make_config(**SHORT | DISK | {"max_steps": 1}))
    said = re.sub(r"\s+", " ", capfd.readouterr().err)
    assert "activations wait for the backward pass in an unnamed file in /dev/shm" in said
    assert "/dev/shm is itself in memory: set TMPDIR to a folder on a disk" in said


def test_the_memory_of_a_cpu_is_refused(make_config: MakeConfig) -> None:
    config = make_config(activation_offload="cpu")
    with pytest.raises(UserError, match="cpu does nothing on a CPU, whose memory it fills: choose disk"):
        train(config)
    assert not config.run_dir.exists()


@pytest.mark.slow
def test_sharded_weights_are_refused(make_config: MakeConfig, start: Start, tmp_path: Path) -> None:
    run = sharded(start, make_config(**DISK), tmp_path).wait()
    assert run.returncode == 2
    assert (
        "error: activation_offload can't be used under FSDP: leave it out, or start with "
        "accelerate_configs/multi_gpu.yaml"
    ) in run.stderr


@pytest.mark.slow
def test_two_processes_have_the_same_weights_to_the_bit(
    make_config: MakeConfig, start: Start, dropout_model: Path, tmp_path: Path
) -> None:
    settings = SHORT | {"model_name": str(dropout_model), "freeze_vision": False, "save_steps": None}
    plain, moved = make_config(run_name="plain", **settings), make_config(run_name="moved", **settings | DISK)
    for config in (plain, moved):
        finish(start("florence2ner", "train", "--config", write(config, tmp_path), processes=2))
    one, other = (weights(config.run_dir / "step-2") for config in (plain, moved))
    assert all(torch.equal(one[name], other[name]) for name in one)
