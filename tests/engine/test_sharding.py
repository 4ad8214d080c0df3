"""FSDP2 in two processes on CPUs, with the shipped configuration: the same run as under DDP."""

import signal
from pathlib import Path

import pytest
import torch

from florence2ner import TrainConfig
from tests.conftest import MakeConfig, Start
from tests.programs.starting import ROOT, Running
from tests.support import figures, finish, relative_differences, weights, write

SHIPPED = ROOT / "accelerate_configs" / "fsdp.yaml"
UPDATES = {"train_batch_size": 2, "max_steps": 6, "epochs": 9, "eval_steps": 3, "save_steps": 3, "log_every": 1}
UPDATES |= {"mixed_precision": "no"}  # as `auto` takes bf16 from the shipped file


def sharded(start: Start, config: TrainConfig, folder: Path, *flags: str, launch: Path = SHIPPED) -> Running:
    return start("tests.programs.fsdp", launch, "train", "--config", write(config, folder), *flags, processes=2)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("settings", "tolerance"),
    [
        ({"eval_before_training": True}, 1e-5),
        ({"freeze_vision": False, "gradient_checkpointing": True}, 1e-5),
        ({"feature_cache_max_gb": 3e-4}, 1e-5),  # few have a place: one process has features where the other has pixels
        ({"mixed_precision": "bf16", "eval_before_training": True}, 1e-3),
    ],
    ids=["float32", "tower trained", "cache too small", "bfloat16"],
)
def test_losses_evaluation_and_weights_are_those_of_ddp(
    make_config: MakeConfig, start: Start, tmp_path: Path, settings: dict[str, object], tolerance: float
) -> None:
    ddp, fsdp = (make_config(run_name=name, **UPDATES | settings) for name in ("ddp", "fsdp"))
    finish(start("florence2ner", "train", "--config", write(ddp, tmp_path), processes=2).wait())
    run = sharded(start, fsdp, tmp_path).wait()
    finish(run)
    assert "Warning" not in run.stderr
    for name in ("train/loss", "train/gradient_norm", "eval/loss"):
        expected = figures(ddp.run_dir, name)
        assert len(expected) >= 2
        assert figures(fsdp.run_dir, name) == pytest.approx(expected, rel=2 * tolerance)
    ours, theirs = weights(fsdp.run_dir / "latest"), weights(ddp.run_dir / "latest")
    assert ours.keys() == theirs.keys()  # the shared embedding once
    assert {name: w.dtype for name, w in ours.items()} == {name: w.dtype for name, w in theirs.items()}
    differences = relative_differences(theirs, ours)
    # Biases start at zero: they are nothing but six steps, of which AdamW makes some as large as the others where the
    # gradient is hardly more than rounding, which no two kinds of processors share.
    too_large = {name: d for name, d in differences.items() if d > (100 if name.endswith("bias") else 20) * tolerance}
    assert not too_large


@pytest.mark.slow
def test_a_killed_run_goes_on_as_if_nothing_had_happened(make_config: MakeConfig, start: Start, tmp_path: Path) -> None:
    """In Microsoft's layout; DeepSpeed's has the native one."""
    common = UPDATES | {"export_layout": "original"}
    whole, killed = (make_config(run_name=name, **common) for name in ("whole", "killed"))
    finish(sharded(start, whole, tmp_path))
    run = sharded(start, killed, tmp_path)
    while run.poll(0.05) is None and not (killed.run_dir / "step-3").exists():
        pass
    run.signal(signal.SIGKILL)
    run.wait()
    assert not (killed.run_dir / "step-6").exists()
    finish(sharded(start, killed, tmp_path, "--resume", "latest"))
    ours, theirs = weights(killed.run_dir / "latest"), weights(whole.run_dir / "latest")
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)


def test_version_1_is_refused(make_config: MakeConfig, start: Start, tmp_path: Path) -> None:
    old = tmp_path / "fsdp1.yaml"
    text = SHIPPED.read_text().replace("fsdp_version: 2", "fsdp_version: 1")
    old.write_text(text.replace("fsdp_reshard_after_forward: true", "fsdp_sharding_strategy: FULL_SHARD"))
    run = sharded(start, make_config(max_steps=1), tmp_path, launch=old).wait()
    assert run.returncode == 2
    assert "set fsdp_version: 2" in run.stderr
