"""Fixtures: a tiny model, a small drawn dataset, and the command line as a user starts it."""

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

# Read when torch, transformers and wandb are imported, so set before anything imports them.
os.environ.update(
    {"HF_HUB_OFFLINE": "1", "WANDB_MODE": "offline", "WANDB_SILENT": "true", "TOKENIZERS_PARALLELISM": "false"}
)

if "PYTEST_XDIST_WORKER" in os.environ:  # one test per core: threads would only get in each other's way
    os.environ.setdefault("OMP_NUM_THREADS", "1")

from florence2ner.config import TrainConfig
from florence2ner.data.samples import read_captions
from florence2ner.demo import draw_dataset
from florence2ner.model.scratch import init_model

ROOT = Path(__file__).resolve().parents[1]
Run = Callable[..., "subprocess.CompletedProcess[str]"]


@pytest.fixture(scope="session")
def shapes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of 24 captioned pictures of 64x64 pixels."""
    folder = tmp_path_factory.mktemp("data") / "shapes"
    draw_dataset(folder, 24, seed=5)
    return folder


@pytest.fixture(scope="session")
def tiny_model(tmp_path_factory: pytest.TempPathFactory, shapes: Path) -> Path:
    """A tiny Florence-2 with random weights. Read only."""
    folder = tmp_path_factory.mktemp("model") / "tiny"
    init_model(folder, preset="tiny", captions=read_captions(shapes), seed=7)
    return folder


@pytest.fixture
def make_config(tmp_path: Path, shapes: Path, tiny_model: Path) -> Callable[..., TrainConfig]:
    """Settings of a quick run on `shapes`, in a folder of the test's own."""

    def make(**changes: object) -> TrainConfig:
        quick: dict[str, object] = {
            "model_name": str(tiny_model),
            "dataset_path": shapes,
            "output_dir": tmp_path / "checkpoints",
            "run_name": "run",
            "epochs": 1,
            "train_batch_size": 4,
            "eval_batch_size": 4,
            "gradient_accumulation_steps": 2,
            "learning_rate": 1e-3,
            "warmup_steps": 0,
            "max_new_tokens": 8,
            "num_beams": 1,
            "eval_before_training": False,
            "log_with": ("jsonl",),
        }
        return TrainConfig.model_validate(quick | changes)

    return make


@pytest.fixture
def command(tmp_path: Path) -> Run:
    """Run `florence2ner ARGS` as a process of its own, from an empty folder."""
    return lambda *args, **env: _run([sys.executable, "-m", "florence2ner", *map(str, args)], tmp_path, env)


@pytest.fixture
def launch(tmp_path: Path) -> Run:
    """Run `accelerate launch -m MODULE ARGS` with two processes on the CPU."""
    launcher = ["accelerate.commands.launch", "--multi_gpu", "--num_processes", "2"]
    launcher += ["--main_process_port", "0", "-m"]

    def run(*args: object, **env: str) -> "subprocess.CompletedProcess[str]":
        two_processes = {"ACCELERATE_USE_CPU": "true", "OMP_NUM_THREADS": "1"}
        return _run([sys.executable, "-m", *launcher, *map(str, args)], tmp_path, two_processes | env)

    return run


def _run(args: list[str], cwd: Path, env: dict[str, str]) -> "subprocess.CompletedProcess[str]":
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "COLUMNS": "200", **env}
    return subprocess.run(args, cwd=cwd, env=environment, capture_output=True, text=True, timeout=300)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """The slow ones first, the slowest at the very front: with a test per core, none is left over at the end."""
    items.sort(key=lambda item: (item.path.name != "test_real_size.py", item.get_closest_marker("slow") is None))
