"""A run that averages its weights: what is evaluated, saved and resumed, and how it is trained all the same."""

import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from florence2ner import EvalConfig, UserError, evaluate, train
from florence2ner.demo import draw_dataset
from florence2ner.engine.run_files import load_train_state
from tests.conftest import MakeConfig, Start
from tests.engine.test_sharding import sharded
from tests.support import finish, weights, write
from tests.training.test_run_folder import assert_same_bits

RUN = {"max_steps": 4, "gradient_accumulation_steps": 1, "save_steps": 1, "save_total_limit": None, "keep_states": True}
RUN |= {"feature_cache": "off", "eval_steps": 2}


def in_state(checkpoint: Path) -> dict[str, torch.Tensor]:
    """The weights that a run goes on with, by the names of the exported model."""
    return {
        name.removeprefix("model."): value
        for name, value in load_file(checkpoint / "state" / "model.safetensors").items()
    }


def averaged(history: list[dict[str, torch.Tensor]], decay: float) -> dict[str, torch.Tensor]:
    """The average over the weights after each update, by a plain loop."""
    mean = history[0]
    for number, now in enumerate(history[1:], 2):
        kept = min(decay, 1 - number ** (-2 / 3))
        mean = {name: kept * mean[name] + (1 - kept) * now[name] for name in mean}
    return mean


def test_the_average_is_evaluated_and_exported_and_the_run_goes_on_with_its_own_weights(
    make_config: MakeConfig, dropout_model: Path, tmp_path: Path
) -> None:
    held_out = tmp_path / "held out"
    draw_dataset(held_out, 3, seed=3)
    base = shutil.copytree(dropout_model, tmp_path / "base")
    settings = RUN | {"model_name": str(base), "eval_path": held_out}
    plain = train(make_config(run_name="plain", **settings))
    whole = train(make_config(run_name="whole", ema_decay=0.6, **settings))
    steps = [f"step-{number}" for number in range(1, 5)]
    passed = [weights(plain.run_dir / step) for step in steps]
    for number, step in enumerate(steps, 1):
        own, exported = in_state(whole.run_dir / step), weights(whole.run_dir / step)
        assert all(torch.equal(own[name], value) for name, value in passed[number - 1].items()), "it trains as ever"
        for name, value in averaged(passed[:number], 0.6).items():
            torch.testing.assert_close(exported[name], value, rtol=1e-5, atol=1e-7)
    changed = {name for name, value in weights(whole.checkpoint).items() if not torch.equal(value, passed[3][name])}
    assert changed
    assert not [name for name in changed if "vision_tower" in name], "what is frozen has no average"
    common = {"dataset_path": held_out, "num_beams": 1, "max_new_tokens": 2}
    result = evaluate(EvalConfig(model_name=str(whole.checkpoint), **common))
    assert whole.figures["eval/loss"] == pytest.approx(result.loss, rel=1e-6)
    assert whole.figures["eval/loss"] != plain.figures["eval/loss"]

    shutil.rmtree(base)
    fork = train(make_config(run_name="fork", ema_decay=0.6, resume=str(whole.run_dir / "step-2"), **settings))
    assert_same_bits(whole.checkpoint, fork.checkpoint)
    one, other = in_state(whole.checkpoint), in_state(fork.checkpoint)
    assert all(torch.equal(other[name], value) for name, value in one.items())
    for changes, has, wants in (
        ({}, "0.6", "none"),
        ({"ema_decay": 0.5, "resume": str(plain.checkpoint)}, "none", "0.5"),
    ):
        resumed = {"run_name": "other", "resume": str(whole.checkpoint)} | settings | changes
        with pytest.raises(UserError, match=f"the run has ema_decay {has}, this command {wants}: an average is of the"):
            train(make_config(**resumed))


def test_the_average_may_be_kept_out_of_the_export_and_go_on_in_any_layout(
    make_config: MakeConfig, capsys: pytest.CaptureFixture[str]
) -> None:
    settings = RUN | {"eval_steps": None, "max_steps": 3, "ema_decay": 0.6}
    whole = train(make_config(run_name="whole", **settings))
    raw = train(make_config(run_name="raw", export_ema=False, **settings))
    assert not list((raw.checkpoint / "state").glob("model*"))
    assert all(torch.equal(value, in_state(whole.checkpoint)[name]) for name, value in weights(raw.checkpoint).items())
    changed = {"export_layout": "original", "export_ema": True, "ema_decay": 0.5}
    fork = train(make_config(run_name="fork", resume=str(raw.run_dir / "step-1"), **settings | changed))
    assert "ema_decay 0.6 -> 0.5" in capsys.readouterr().err
    again = train(make_config(run_name="again", resume=str(fork.run_dir / "step-2"), **settings | changed))
    assert load_train_state(again.checkpoint).step == 3
    assert_same_bits(fork.checkpoint, again.checkpoint)
    one, other = in_state(whole.checkpoint), in_state(again.checkpoint)
    assert all(torch.equal(other[name], value) for name, value in one.items()), "the weights know nothing of it"


@pytest.mark.slow
def test_two_processes_average_what_both_have_trained(make_config: MakeConfig, start: Start, tmp_path: Path) -> None:
    both = make_config(**RUN | {"max_steps": 3, "ema_decay": 0.6, "train_batch_size": 2})
    finish(start("florence2ner", "train", "--config", write(both, tmp_path), processes=2))
    checkpoints = [both.run_dir / f"step-{number}" for number in (1, 2, 3)]
    passed, exported = [in_state(checkpoint) for checkpoint in checkpoints], weights(checkpoints[-1])
    for name, value in averaged(passed, 0.6).items():
        torch.testing.assert_close(exported[name], value, rtol=1e-5, atol=1e-7)
    assert [name for name, value in exported.items() if (value - passed[-1][name]).abs().max() > 1e-4]


@pytest.mark.slow
def test_sharded_weights_are_not_averaged(make_config: MakeConfig, start: Start, tmp_path: Path) -> None:
    run = sharded(start, make_config(max_steps=1, ema_decay=0.9), tmp_path).wait()
    assert run.returncode == 2
    (line,) = (line for line in run.stderr.splitlines() if line.startswith("error") and "process" not in line)
    assert (
        line
        == "error: ema_decay can't be used under FSDP: leave it out, or start with accelerate_configs/multi_gpu.yaml"
    )
