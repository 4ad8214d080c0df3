"""W&B without a network, and TensorBoard."""

import json

import pytest

from florence2ner import train
from tests.conftest import MakeConfig
from tests.support import figures


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
