"""Training on a GPU: the same bits after a resume, no waiting inside a step, float16, one compilation, NCCL."""

import math
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from florence2ner import train
from florence2ner.training.step import UpdateStep
from tests.conftest import MakeConfig, Start
from tests.programs.starting import ROOT, free_port, launched
from tests.support import figures as logged
from tests.support import finish, weights, write
from tests.training.support import prepare, samples_of_different_lengths

QUICK = ("training", "evaluation", "captioning", "engine", "model")


def test_the_quick_suite_passes_on_cuda(figures: dict[str, Any]) -> None:
    """What a process computes on, unless told otherwise, is the GPU: the same tests, without those marked slow."""
    folders = [f"tests/{name}" for name in QUICK]
    command = [sys.executable, "-m", "pytest", "-q", "-m", "not slow and not gpu", "-p", "no:cacheprovider", *folders]
    run = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    figures["quick suite"] = run.stdout.strip().splitlines()[-1]
    assert run.returncode == 0, run.stdout[-4000:]


@pytest.mark.parametrize("precision", ["no", "bf16", "fp16"])
@pytest.mark.parametrize("vision", ["frozen", "trained"])
def test_a_resumed_run_ends_with_the_same_bits(make_config: MakeConfig, precision: str, vision: str) -> None:
    settings = {"max_steps": 6, "epochs": 9, "save_steps": 3, "eval_steps": 3, "keep_states": True}
    settings |= {"mixed_precision": precision, "freeze_vision": vision == "frozen", "log_every": 1}
    whole = make_config(run_name="whole", **settings)
    train(whole)
    fork = make_config(run_name="fork", resume=str(whole.run_dir / "step-3"), **settings)
    ours, theirs = weights(train(fork).checkpoint), weights(whole.run_dir / "step-6")
    assert [name for name in theirs if not torch.equal(ours[name], theirs[name])] == []
    losses = logged(whole.run_dir, "train/loss")
    assert logged(fork.run_dir, "train/loss") == {step: loss for step, loss in losses.items() if step > 3}


@pytest.mark.parametrize("where", ["cpu", "disk"])
def test_activations_that_wait_elsewhere_come_back_with_the_same_bits(make_config: MakeConfig, where: str) -> None:
    settings = {"max_steps": 2, "eval_steps": None, "save_steps": None, "mixed_precision": "bf16"}
    settings |= {"freeze_vision": False, "gradient_checkpointing": False}
    plain = weights(train(make_config(run_name="plain", **settings)).checkpoint)
    moved = weights(train(make_config(run_name="moved", activation_offload=where, **settings)).checkpoint)
    assert [name for name in plain if not torch.equal(moved[name], plain[name])] == []


class _Watched(UpdateStep):
    """A step in which CUDA raises an error where the host waits for the device, but for its one read."""

    def __call__(self, *args: Any) -> Any:
        torch.cuda.set_sync_debug_mode("error")
        try:
            return super().__call__(*args)
        finally:
            torch.cuda.set_sync_debug_mode("default")

    def _read(self, *args: Any) -> Any:
        torch.cuda.set_sync_debug_mode("default")
        try:
            return super()._read(*args)
        finally:
            torch.cuda.set_sync_debug_mode("error")


def test_the_host_waits_for_the_device_once_per_update(shapes: Path, tiny_model: Path) -> None:
    captioner, step, window = prepare(samples_of_different_lengths(shapes)[:8], tiny_model, 2, 4)
    captioner.train()
    step(window)  # the first step sets up libraries, which may wait
    parts = step.accelerator, step.model, step.optimizer, step.schedule, step.token_losses
    watched = _Watched(*parts, clip_grad_norm=1.0)
    assert math.isfinite(watched(window).loss_sum)


def test_float16_learns_in_its_first_twenty_updates(make_config: MakeConfig, figures: dict[str, Any]) -> None:
    settings = {"max_steps": 20, "epochs": 99, "gradient_accumulation_steps": 1, "log_every": 1, "eval_steps": None}
    config = make_config(mixed_precision="fp16", max_bad_updates=3, **settings)
    train(config)
    losses = logged(config.run_dir, "train/loss")
    skipped = logged(config.run_dir, "train/skipped_updates")[20]
    figures["fp16, first twenty updates"] = {"losses": list(losses.values()), "skipped": skipped}
    assert all(math.isfinite(loss) for loss in losses.values())
    assert losses[20] < losses[1]
    assert skipped < 10


@pytest.fixture
def fresh_compiler() -> Iterator[Any]:
    """The compiler's counters, of a process that has compiled nothing yet."""
    torch._dynamo.reset()
    torch._dynamo.utils.counters.clear()
    yield torch._dynamo.utils.counters
    torch._dynamo.reset()


def test_saving_and_going_on_compiles_nothing_again(
    make_config: MakeConfig, fresh_compiler: Any, figures: dict[str, Any]
) -> None:
    graphs = []
    for steps in (1, 9):
        torch._dynamo.reset()
        fresh_compiler.clear()
        settings = {"max_steps": steps, "epochs": 9, "save_steps": 1, "eval_steps": None, "feature_cache": "off"}
        train(make_config(run_name=f"{steps}", compile=True, mixed_precision="bf16", **settings))
        graphs.append(fresh_compiler["stats"]["unique_graphs"])
    figures["compiled graphs, one update and nine with nine saves"] = graphs
    assert graphs[0] == graphs[1]


def test_nccl_in_a_world_of_one_gives_the_same_losses(make_config: MakeConfig, start: Start, tmp_path: Path) -> None:
    settings = {"max_steps": 4, "epochs": 9, "log_every": 1, "eval_steps": 2, "mixed_precision": "no"}
    alone, nccl = (make_config(run_name=name, **settings) for name in ("alone", "nccl"))
    train(alone)
    world = launched(0, 1, free_port()) | {"ACCELERATE_USE_CPU": "false"}
    run = start("florence2ner", "train", "--config", write(nccl, tmp_path), **world).wait()
    finish(run)
    assert "1 x cuda" in run.stderr
    for name in ("train/loss", "eval/loss"):
        assert logged(nccl.run_dir, name) == pytest.approx(logged(alone.run_dir, name), rel=1e-5)
