"""W&B without a network, and TensorBoard."""

import json
import os
from pathlib import Path
from typing import Any

import pytest
from accelerate.tracking import TensorBoardTracker

from florence2ner import train
from florence2ner.display import Display
from florence2ner.engine.runtime import make_accelerator
from florence2ner.engine.tracking import tracking
from tests.conftest import ColdStart, MakeConfig
from tests.support import figures, weights, write


def test_wandb_runs_offline_with_a_table_and_says_how_to_sync(
    make_config: MakeConfig, capsys: pytest.CaptureFixture[str]
) -> None:
    config = make_config(max_steps=1, log_with=("wandb", "tensorboard"), log_every=1)
    train(config)
    assert f"wandb sync {config.run_dir}/wandb/offline-run-*" in capsys.readouterr().err
    (run,) = (config.run_dir / "wandb").glob("offline-run-*")
    assert list(run.glob("*.wandb"))
    (table,) = (run / "files" / "media" / "table" / "eval").glob("*.json")
    assert json.loads(table.read_text())["columns"] == ["truth", "prediction", "image"]
    assert list(config.run_dir.rglob("events.out.tfevents.*"))
    # The resumed run goes on in the W&B run that it left.
    train(make_config(max_steps=2, log_with=("wandb",), resume="latest"))
    runs = list((config.run_dir / "wandb").glob("offline-run-*"))
    assert len(runs) == 2
    assert len({run.name.rsplit("-", 1)[1] for run in runs}) == 1
    assert figures(config.run_dir, "train/loss")
    assert "WANDB_DATA_DIR" not in os.environ


def test_wandb_stages_its_tables_in_the_run_folder(
    make_config: MakeConfig, cold_start: ColdStart, tmp_path: Path
) -> None:
    """Its own place is in the home folder, which in containers may be read-only, or missing."""
    config = make_config(max_steps=1, log_with=("wandb",))
    (tmp_path / "home").write_text("no folder, so that nobody can write into it, not even root")
    home = {"HOME": str(tmp_path / "home"), "XDG_DATA_HOME": "", "XDG_CONFIG_HOME": "", "XDG_CACHE_HOME": ""}
    run = cold_start("-m", "florence2ner", "train", "--config", write(config, tmp_path), **home)
    _, said = run.communicate()
    assert run.returncode == 0, said
    assert "wandb failed" not in said
    assert " INFO " not in said, "wandb's own log"
    assert list(config.run_dir.glob("wandb/offline-run-*/files/media/table/eval/*.json"))
    assert (config.run_dir / "wandb" / "artifacts" / "staging").is_dir()


@pytest.mark.parametrize("method", ["start", "store_init_configuration", "log", "finish"])
def test_a_tracker_that_fails_is_told_once_and_changes_nothing(
    make_config: MakeConfig, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], method: str
) -> None:
    plain = train(make_config(max_steps=3, run_name="plain")).checkpoint

    def fail(*_: Any, **__: Any) -> None:
        raise RuntimeError("the service\nis down")

    monkeypatch.setattr(TensorBoardTracker, method, fail)
    config = make_config(max_steps=3, run_name="watched", log_with=("tensorboard",))
    watched = train(config).checkpoint
    said = capsys.readouterr().err
    assert said.count("the service is down") == said.count("tensorboard failed") == 1
    assert "warning: tensorboard failed, training goes on without what it missed: the service is down" in said
    assert list(figures(config.run_dir, "train/loss")) == [1, 2, 3]
    ours, theirs = weights(plain), weights(watched)
    assert all(ours[name].equal(theirs[name]) for name in ours)


def test_metrics_that_cannot_be_written_are_told_once_and_go_on_where_there_is_room(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    accelerator = make_accelerator("no", seed=0)
    file = tmp_path / "metrics.jsonl"
    file.symlink_to("/dev/full")
    names: Any = {"log_with": ("jsonl",), "project": "p", "tracker_id": "t"}
    with tracking(accelerator, Display(is_main=True), tmp_path, {}, **names):
        accelerator.log({"a": 1}, step=1)
        accelerator.log({"a": 2}, step=2)
        file.unlink()
        accelerator.log({"a": 3}, step=3)
    assert list(figures(tmp_path, "a")) == [3]
    said = capsys.readouterr().err
    assert said.count("warning: jsonl failed, training goes on without what it missed: can't write") == 1
