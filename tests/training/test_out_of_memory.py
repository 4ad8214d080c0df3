"""Where memory runs out in the middle of an update, the update and the run are what they would have been."""

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from florence2ner import UserError, train
from florence2ner.config.commands import TrainConfig
from florence2ner.data.batch import Batch
from florence2ner.training import setup
from tests.conftest import MakeConfig, Start
from tests.programs import gradients
from tests.support import finish, history, relative_differences, weights, write
from tests.training.support import BACKWARD, FORWARD, Prepared, Short, prepare, samples_of_different_lengths


def take(prepared: Prepared) -> tuple[dict[str, Tensor], Any]:
    """Do an update with dropout. Returns its gradients, and the update."""
    captioner, step, window = prepared
    captioner.train()
    found: dict[str, Tensor] = {}
    clip = step.accelerator.clip_grad_norm_

    def look(parameters: Any, largest: float) -> Tensor:
        found.update({name: p.grad.detach().clone() for name, p in captioner.named_parameters()})
        return clip(parameters, largest)

    step.accelerator.clip_grad_norm_ = look
    torch.manual_seed(5)
    return found, step(window)


@pytest.mark.parametrize("place", [FORWARD, BACKWARD])
@pytest.mark.parametrize(("batch_size", "accumulation"), [(8, 1), (4, 2)], ids=["whole", "second of two"])
def test_the_update_is_that_of_a_run_that_took_fewer_at_once_from_the_start(
    shapes: Path, dropout_model: Path, place: str, batch_size: int, accumulation: int
) -> None:
    samples = samples_of_different_lengths(shapes)
    short = Short(2, place, spared=accumulation - 1)
    disturbed = prepare(samples, dropout_model, batch_size, accumulation, losses=short)
    said: list[str] = []
    disturbed[1].warn = said.append
    gradients, update = take(disturbed)
    expected, plain = take(prepare(samples, dropout_model, batch_size, accumulation, images_at_once=2))
    assert short.failures == (2 if batch_size == 8 else 1)
    assert said == ["memory ran out: taking 2 images at once from now on, which trains the same"]
    assert update == plain
    assert gradients.keys() == expected.keys()
    assert all(torch.equal(gradients[name], expected[name]) for name in expected)


def test_without_dropout_it_is_that_of_the_undisturbed_run(shapes: Path, tiny_model: Path) -> None:
    samples = samples_of_different_lengths(shapes)
    gradients, update = take(prepare(samples, tiny_model, 8, 1, losses=Short(3, BACKWARD)))
    expected, plain = take(prepare(samples, tiny_model, 8, 1))
    assert (update.tokens, update.samples) == (plain.tokens, plain.samples)
    assert update.loss_sum == pytest.approx(plain.loss_sum, rel=1e-5)
    assert max(relative_differences(gradients, expected).values()) < 1e-5


def test_no_memory_for_a_single_image_is_one_clear_line(shapes: Path, tiny_model: Path) -> None:
    _, step, window = prepare(samples_of_different_lengths(shapes), tiny_model, 8, 1, losses=Short(0, FORWARD))
    with pytest.raises(UserError, match="memory runs out with a single image: set gradient_checkpointing"):
        step(window)


def test_another_error_is_no_lack_of_memory(shapes: Path, tiny_model: Path) -> None:
    def wrong(model: nn.Module, batch: Batch) -> Tensor:
        raise RuntimeError("mat1 and mat2 shapes cannot be multiplied")

    _, step, window = prepare(samples_of_different_lengths(shapes), tiny_model, 8, 1, losses=wrong)
    with pytest.raises(RuntimeError, match="multiplied"):
        step(window)


def test_a_run_goes_on_with_fewer_at_once_and_a_resumed_one_remembers(
    make_config: MakeConfig, dropout_model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def config(name: str, **changes: object) -> TrainConfig:
        how = {"model_name": str(dropout_model), "max_steps": 4, "eval_steps": None, "lr_schedule": "constant"}
        return make_config(run_name=name, **how | changes)

    with monkeypatch.context() as patch:
        patch.setattr(setup, "token_losses", Short(2, BACKWARD, spared=3))  # the second update's second micro-batch
        whole = train(config("whole"))
        patch.setattr(setup, "token_losses", Short(2, BACKWARD, spared=3))
        train(config("cut", max_steps=3))
    resumed = train(config("cut", resume="latest"))  # with memory enough, but it is not tried again
    expected, found = weights(whole.checkpoint), weights(resumed.checkpoint)
    assert all(torch.equal(found[name], expected[name]) for name in expected)
    assert history(whole.run_dir) == history(resumed.run_dir)


def test_the_weights_are_those_of_the_undisturbed_run(make_config: MakeConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    plain = train(make_config(run_name="plain", max_steps=3, eval_steps=None))
    short = Short(1, BACKWARD, spared=3)
    monkeypatch.setattr(setup, "token_losses", short)
    disturbed = train(make_config(run_name="disturbed", max_steps=3, eval_steps=None))
    assert short.failures == 2, "of four images, then of two"
    differences = relative_differences(weights(plain.checkpoint), weights(disturbed.checkpoint))
    assert max(differences.values()) < 1e-4  # a few steps of AdamW divide small gradients by themselves


@pytest.mark.slow
def test_one_of_two_processes_halves_its_batches_and_the_gradient_is_the_same(
    make_config: MakeConfig, start: Start, shapes: Path, tmp_path: Path
) -> None:
    outputs = [tmp_path / name for name in ("whole", "shared")]
    config = make_config(dataset_path=shapes, train_batch_size=6, gradient_accumulation_steps=2)
    gradients.main(make_config(dataset_path=shapes, train_batch_size=24, gradient_accumulation_steps=1), outputs[0])
    finish(start("tests.programs.gradients", write(config, tmp_path), outputs[1], 1, 0, processes=2))
    whole, other = (load_file(output / "0.safetensors") for output in outputs)
    torch.testing.assert_close(other.pop(""), whole.pop(""), rtol=1e-5, atol=0)
    assert max(relative_differences(whole, other).values()) < 1e-5


@pytest.mark.slow
def test_a_process_that_the_others_wait_for_ends_the_run_with_the_way_out(
    make_config: MakeConfig, start: Start, shapes: Path, tmp_path: Path
) -> None:
    config = make_config(dataset_path=shapes, train_batch_size=6, gradient_accumulation_steps=2)
    ended = start("tests.programs.gradients", write(config, tmp_path), tmp_path / "none", 1, 1, processes=2).wait()
    assert ended.returncode != 0
    assert "memory runs out with 6 images at once, while the other processes wait for them: start again" in ended.stderr
