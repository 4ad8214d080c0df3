"""The largest micro-batch that fits: found where memory runs out, and where it is counted; nothing else changes."""

import json
from pathlib import Path

import pytest
import torch
import yaml
from torch import Tensor, nn

from florence2ner import UserError, train
from florence2ner.data.batch import Batch
from florence2ner.engine.memory import resident_bytes
from florence2ner.training import batch_size
from florence2ner.training.step import token_losses
from tests.conftest import MakeConfig, Start
from tests.support import finish, history, weights, write
from tests.training.support import BACKWARD, Short

AUTO = {"train_batch_size": "auto", "gradient_accumulation_steps": 3, "max_steps": 2, "eval_steps": None}  # 48 images


def settings(run_dir: Path) -> tuple[int, int, float | None]:
    found = yaml.safe_load((run_dir / "config.yaml").read_text())
    return found["train_batch_size"], found["gradient_accumulation_steps"], found["memory_limit_gb"]


@pytest.mark.parametrize(("rows", "found"), [(48, 48), (47, 24), (7, 6), (4, 4), (3, 3), (2, 2), (1, 1)])
def test_it_is_the_largest_that_divides_the_update_and_fits(
    make_config: MakeConfig, monkeypatch: pytest.MonkeyPatch, rows: int, found: int
) -> None:
    monkeypatch.setattr(batch_size, "token_losses", Short(rows, BACKWARD))
    config = make_config(**AUTO | {"max_steps": 1})
    train(config)
    assert settings(config.run_dir) == (found, 48 // found, None)


def test_no_memory_for_a_single_image_is_one_clear_line(
    make_config: MakeConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(batch_size, "token_losses", Short(0, BACKWARD))
    with pytest.raises(UserError, match="memory doesn't suffice for a single image: set gradient_checkpointing"):
        train(make_config(**AUTO))


def test_the_run_is_that_with_the_number_given_and_a_resumed_one_does_not_look_again(
    make_config: MakeConfig, dropout_model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    how = AUTO | {"model_name": str(dropout_model), "lr_schedule": "constant", "freeze_vision": False}
    given = train(make_config(**how | {"train_batch_size": 6, "gradient_accumulation_steps": 8}, run_name="given"))
    with monkeypatch.context() as patch:
        patch.setattr(batch_size, "token_losses", Short(6, BACKWARD))
        train(make_config(**how | {"max_steps": 1}, run_name="auto"))
    monkeypatch.setattr(batch_size, "token_losses", Short(0, BACKWARD))
    resumed = train(make_config(**how, run_name="auto", resume="latest"))
    assert settings(resumed.run_dir) == (6, 8, None)
    expected, found = weights(given.checkpoint), weights(resumed.checkpoint)
    assert all(torch.equal(found[name], expected[name]) for name in expected)
    assert history(given.run_dir) == history(resumed.run_dir)


class Counted:
    """Losses that take 100 MB an image, from which the backward pass needs nothing."""

    def __init__(self) -> None:
        self.sizes: list[int] = []

    def __call__(self, model: nn.Module, batch: Batch) -> Tensor:
        self.sizes.append(len(batch.valid))
        torch.ones(len(batch.valid), 25_000_000)
        return token_losses(model, batch)


def test_on_a_cpu_memory_is_counted_and_what_does_not_promise_to_fit_is_not_tried(
    make_config: MakeConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    counted = Counted()
    monkeypatch.setattr(batch_size, "token_losses", counted)
    config = make_config(**AUTO | {"max_steps": 1}, memory_limit_gb=resident_bytes() / 1e9 + 1.35)
    train(config)
    assert counted.sizes == [1, 4, 12], "4 and 12 for 400 MB and 1.2 GB: 16 would take 1.6"
    assert settings(config.run_dir) == (12, 4, None)


def test_a_limit_without_something_to_find_is_refused(make_config: MakeConfig) -> None:
    with pytest.raises(ValueError, match="memory_limit_gb does nothing alone"):
        make_config(memory_limit_gb=8)


@pytest.mark.slow
def test_two_processes_agree_on_one_number(make_config: MakeConfig, start: Start, tmp_path: Path) -> None:
    config = make_config(**AUTO, ema_decay=0.9)
    finish(start("florence2ner", "train", "--config", write(config, tmp_path), processes=2))
    size, accumulation, _ = settings(config.run_dir)
    assert size * accumulation == 48
    state = json.loads((config.run_dir / "step-2" / "state" / "train_state.json").read_text())
    assert (state["micro_batch"], state["images_at_once"], state["global_batch"]) == (size, size, 96)


def test_where_others_share_out_the_memory_it_is_refused(
    make_config: MakeConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(batch_size, "name_of_sharding", lambda _: "FSDP")
    with pytest.raises(UserError, match="train_batch_size: auto doesn't work under FSDP"):
        train(make_config(**AUTO))
