"""Fixtures: tiny models, a small drawn dataset, and the commands as a user starts them."""

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest
from hypothesis import settings

from florence2ner.config.commands import CaptionConfig, TrainConfig
from tests.programs import starting
from tests.programs.starting import ROOT, Running

pytest.register_assert_rewrite("tests.support", "tests.model.checkpoints.support")

# Read when torch, transformers and wandb are imported, so set before anything imports them. This file itself does not:
# under xdist the first process only hands out the tests, and the others wait for it.
os.environ.update(
    {"HF_HUB_OFFLINE": "1", "WANDB_MODE": "offline", "WANDB_SILENT": "true", "TOKENIZERS_PARALLELISM": "false"}
)
os.environ["ACCELERATE_MIXED_PRECISION"] = "no"  # what `auto` is to mean, whatever processor the tests run on
os.environ.update({"PYTHONPATH": str(ROOT), "COLUMNS": "200"})  # of all processes that tests start

# What is announced to go away ends a command that a test starts, whichever package announces it.
_ERRORS = ("FutureWarning", "DeprecationWarning", "PendingDeprecationWarning")
os.environ["PYTHONWARNINGS"] = ",".join(f"error::{category}" for category in _ERRORS)

if "PYTEST_XDIST_WORKER" in os.environ:  # one test per core: threads would only get in each other's way
    os.environ.setdefault("OMP_NUM_THREADS", "1")

Caption = Callable[..., Any]
MakeConfig = Callable[..., TrainConfig]
Start = Callable[..., Running]
ColdStart = Callable[..., "subprocess.Popen[str]"]


# The same examples each time, however slow the machine is: a test that fails does so for everybody.
settings.register_profile("tests", deadline=None, derandomize=True, database=None)
settings.load_profile("tests")


def pytest_configure(config: pytest.Config) -> None:
    if "PYTEST_XDIST_WORKER" not in os.environ:
        stack = ExitStack()
        stack.enter_context(starting.warm_starts())
        config.add_cleanup(stack.close)


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


@pytest.fixture
def without_plugins(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Python as it is where pillow-heif is not installed."""
    from florence2ner.data.formats import load_plugin

    with monkeypatch.context() as patch:
        patch.setitem(sys.modules, "pillow_heif", None)
        load_plugin.cache_clear()
        yield
    load_plugin.cache_clear()


@pytest.fixture(scope="session")
def shapes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of 24 captioned pictures of 64x64 pixels."""
    from florence2ner.demo import draw_dataset

    folder = tmp_path_factory.mktemp("data") / "shapes"
    draw_dataset(folder, 24, seed=5)
    return folder


@pytest.fixture(scope="session")
def tiny_model(tmp_path_factory: pytest.TempPathFactory, shapes: Path) -> Path:
    """A tiny Florence-2 with random weights. Read only."""
    from florence2ner.data.layouts.pairs import read_captions
    from florence2ner.model.checkpoints.scratch import init_model

    folder = tmp_path_factory.mktemp("model") / "tiny"
    init_model(folder, preset="tiny", captions=read_captions(shapes), seed=7)
    return folder


@pytest.fixture(scope="session")
def trained_model(tmp_path_factory: pytest.TempPathFactory, shapes: Path, tiny_model: Path) -> Path:
    """A tiny model that has learnt to write something. Read only."""
    from florence2ner import train

    folder = tmp_path_factory.mktemp("trained")
    settings = {"max_steps": 30, "train_batch_size": 8, "gradient_accumulation_steps": 1, "warmup_steps": 0}
    settings |= {"learning_rate": 3e-3, "gradient_checkpointing": False, "eval_steps": None, "save_steps": None}
    config = TrainConfig(
        dataset_path=shapes,
        model_name=str(tiny_model),
        output_dir=folder,
        log_with=("none",),
        feature_cache="off",
        epochs=99,
        **settings,
    )
    return train(config).checkpoint


@pytest.fixture(scope="session")
def dropout_model(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny model with dropout, so that the random generators matter."""
    model = tmp_path_factory.mktemp("dropout") / "model"
    shutil.copytree(tiny_model, model)
    config = json.loads((model / "config.json").read_text())
    config["text_config"] |= {"dropout": 0.1, "attention_dropout": 0.1, "activation_dropout": 0.1}
    (model / "config.json").write_text(json.dumps(config))
    return model


@pytest.fixture
def make_config(tmp_path: Path, shapes: Path, tiny_model: Path) -> MakeConfig:
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
            "eval_captions": 4,
            "gradient_accumulation_steps": 2,
            "learning_rate": 1e-3,
            "warmup_steps": 0,
            "max_new_tokens": 8,
            "num_beams": 1,
            "eval_before_training": False,
            "log_with": ("jsonl",),
            "feature_cache_dir": tmp_path / "features",
        }
        return TrainConfig.model_validate(quick | changes)

    return make


@pytest.fixture
def images(tmp_path: Path, shapes: Path) -> Path:
    """Five images in a folder and a subfolder, without captions."""
    folder = tmp_path / "images"
    (folder / "sub").mkdir(parents=True)
    for number in range(5):
        shutil.copy(shapes / f"000{number}.png", folder / ("sub" if number > 2 else "") / f"{number}.png")
    return folder


@pytest.fixture
def run(trained_model: Path, images: Path) -> Caption:
    """Caption `images` quickly, with other settings where given."""
    from florence2ner import caption

    def run(**changes: object) -> Any:
        quick: dict[str, object] = {"paths": (images,), "model_name": str(trained_model), "batch_size": 2}
        quick |= {"num_beams": 1, "max_new_tokens": 16, "retry": False}
        return caption(CaptionConfig.model_validate(quick | changes))

    return run


@pytest.fixture
def start(tmp_path: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Start]:
    """Start `python -m ARGS`, by default from the test's folder; `processes=2` as a launcher does.

    See programs/starting.py.
    """
    with ExitStack() as stack:

        def start(*args: object, cwd: Path = tmp_path, processes: int = 1, network: str = "", **env: str) -> Running:
            streams = tmp_path_factory.mktemp("streams")
            words = [str(arg) for arg in args]
            running = starting.start(words, cwd=cwd, env=env, processes=processes, network=network, folder=streams)
            stack.callback(running.close)
            return running

        yield start


@pytest.fixture
def command(start: Start) -> Start:
    """Run `florence2ner ARGS` as a process of its own, from an empty folder."""
    return lambda *args, **env: start("florence2ner", *args, **env).wait()


@pytest.fixture
def cold_start(tmp_path: Path) -> Iterator[ColdStart]:
    """Start `python ARGS` in a new interpreter: for tests of the start, or of what libraries read while imported."""
    with ExitStack() as stack:

        def start(*args: object, before: tuple[str, ...] = (), **env: str) -> "subprocess.Popen[str]":
            command = [*before, sys.executable, *map(str, args)]
            pipe = subprocess.PIPE
            run = subprocess.Popen(command, cwd=tmp_path, env=os.environ | env, stdout=pipe, stderr=pipe, text=True)
            stack.callback(run.wait)
            stack.callback(run.kill)
            return run

        yield start


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """The slow ones first, the slowest at the very front: with a test per core, none is left over at the end."""
    items.sort(key=lambda item: (item.path.name != "test_real_size.py", item.get_closest_marker("slow") is None))
