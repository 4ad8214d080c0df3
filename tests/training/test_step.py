"""One optimizer update: its gradient is that of the mean over the tokens of the whole window, however it is cut."""

import json
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate import Accelerator
from PIL import Image
from safetensors.torch import load_file
from torch.utils._python_dispatch import TorchDispatchMode

from florence2ner import train
from florence2ner.data.layouts.pairs import discover_samples
from florence2ner.data.samples import Sample
from florence2ner.demo import draw_dataset
from florence2ner.model.captioner import Captioner
from florence2ner.model.checkpoints.loading import load_model
from florence2ner.training.step import Update, token_losses
from tests.conftest import MakeConfig, Start
from tests.programs import gradients
from tests.support import finish, relative_differences, write
from tests.training.support import Prepared, TokenLosses, prepare, samples_of_different_lengths


def update(
    samples: list[Sample], model_dir: Path, batch_size: int, accumulation: int, number: int
) -> tuple[Update, dict]:
    """Do update `number` of the plan on fresh weights, with a learning rate of 0. Returns it with the gradients."""
    captioner, step, window = prepare(samples, model_dir, batch_size, accumulation, number=number)
    gradients: dict[str, torch.Tensor] = {}
    for name, parameter in captioner.named_parameters():
        parameter.register_post_accumulate_grad_hook(
            lambda p, name=name: gradients.__setitem__(name, p.grad.detach().clone())
        )
    return step(window), gradients


@pytest.mark.parametrize("number", [0, 1], ids=["full window", "short last window"])
def test_gradient_and_loss_do_not_depend_on_how_the_window_is_cut(shapes: Path, tiny_model: Path, number: int) -> None:
    samples = samples_of_different_lengths(shapes)
    whole, expected = update(samples, tiny_model, 8, 1, number)
    for batch_size, accumulation in ((2, 4), (1, 8)):
        cut, gradients = update(samples, tiny_model, batch_size, accumulation, number)
        assert (cut.tokens, cut.samples) == (whole.tokens, whole.samples)
        assert cut.loss_sum == pytest.approx(whole.loss_sum, rel=1e-5)
        assert cut.gradient_norm == pytest.approx(whole.gradient_norm, rel=1e-5)
        norm = whole.gradient_norm
        for name, gradient in expected.items():
            torch.testing.assert_close(gradients[name], gradient, rtol=1e-4, atol=1e-6 * norm, msg=name)


def test_the_loss_is_that_of_the_native_class_over_all_tokens(shapes: Path, tiny_model: Path) -> None:
    samples = samples_of_different_lengths(shapes)[:8]
    result, gradients = update(samples, tiny_model, 4, 2, 0)
    model, processor = load_model(tiny_model)
    pictures = [Image.open(sample.image.path) for sample in samples]
    inputs = processor(images=pictures, text=["<CAPTION>"] * 8, return_tensors="pt", padding=True)
    labels = processor.tokenizer([sample.caption for sample in samples], return_tensors="pt", padding=True).input_ids
    loss = model(**inputs, labels=labels.masked_fill(labels == processor.tokenizer.pad_token_id, -100)).loss
    loss.backward()
    assert result.loss_sum / result.tokens == pytest.approx(loss.item(), rel=1e-5)
    norm = torch.nn.utils.get_total_norm(p.grad for p in model.parameters() if p.grad is not None)
    assert result.gradient_norm == pytest.approx(norm.item(), rel=1e-5)
    projection = model.model.multi_modal_projector.image_projection.weight.grad
    torch.testing.assert_close(
        gradients["model.model.multi_modal_projector.image_projection.weight"], projection, rtol=1e-4, atol=1e-7
    )


class Waits(TorchDispatchMode):
    """Counts the operations for which a host waits for its GPU, whatever the device here."""

    def __init__(self) -> None:
        super().__init__()
        self.names: list[str] = []

    def __torch_dispatch__(self, operation: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if operation.overloadpacket.__name__ in {"_local_scalar_dense", "nonzero", "masked_select"}:
            self.names.append(str(operation))
        return operation(*args, **(kwargs or {}))


def test_no_operation_of_a_step_has_the_host_wait_for_the_device(shapes: Path, tiny_model: Path) -> None:
    samples = samples_of_different_lengths(shapes)[:8]
    longer = [replace(sample, task_prompt="<MORE_DETAILED_CAPTION>") for sample in samples[::2]]  # and so, a mask
    _, step, window = prepare([*longer, *samples[1::2]], tiny_model, 2, 4)
    with Waits() as waits:
        assert bool(torch.ones(1))
        step(window)
    assert waits.names == ["aten._local_scalar_dense.default"]  # our own, which shows that they are seen


def prepare_fp16(shapes: Path, model: Path, losses: TokenLosses, *, scale: float) -> Prepared:
    """As `prepare`, with autocast to float16 and a GradScaler, which Accelerate sets up on GPUs only."""

    def scaled(accelerator: Accelerator) -> None:
        accelerator.state._mixed_precision, accelerator.native_amp = "fp16", True
        accelerator.scaler = torch.amp.GradScaler("cpu", init_scale=scale)

    return prepare(samples_of_different_lengths(shapes)[:8], model, 8, 1, losses=losses, rate=1e-3, change=scaled)


def state_of(captioner: Captioner) -> dict[str, torch.Tensor]:
    return {name: value.clone() for name, value in captioner.state_dict().items()}


def is_as(before: dict[str, torch.Tensor], captioner: Captioner) -> bool:
    return all(torch.equal(value, before[name]) for name, value in captioner.state_dict().items())


def test_fp16_an_infinite_loss_alone_moves_no_weight(shapes: Path, tiny_model: Path) -> None:
    captioner, step, window = prepare_fp16(shapes, tiny_model, lambda *given: token_losses(*given) + torch.inf, scale=8)
    before = state_of(captioner)
    for _ in range(2):
        result = step(window)
        assert result.skipped
        assert len({*result.suspects} & {*map(str, shapes.iterdir())}) == 8
    assert math.isfinite(result.gradient_norm)
    assert is_as(before, captioner)


def test_fp16_a_scale_that_is_too_large_is_lowered_and_blames_no_image(shapes: Path, tiny_model: Path) -> None:
    captioner, step, window = prepare_fp16(shapes, tiny_model, token_losses, scale=2.0**24)
    before, results = state_of(captioner), []
    while not results or results[-1].skipped:
        assert is_as(before, captioner)
        results.append(step(window))
    assert 2 < len(results) < 24
    assert not any(result.suspects for result in results)
    assert not is_as(before, captioner)
    assert results[0].loss_sum == pytest.approx(results[-1].loss_sum)


def test_fp16_gradients_that_no_scale_can_hold_are_the_fault_of_images(shapes: Path, tiny_model: Path) -> None:
    _, step, window = prepare_fp16(shapes, tiny_model, lambda *given: token_losses(*given) * 1e30, scale=2.0)
    assert [len(step(window).suspects) for _ in range(2)] == [0, 8]


# batch size, accumulation, processes: eight images an update each time
WHOLE, CUT, SHARED = (8, 1, 1), (2, 4, 1), (2, 2, 2)


@pytest.fixture
def uneven(tmp_path: Path) -> Path:
    """Eleven images with captions of very different lengths: one full window of eight and a short one of three."""
    folder = tmp_path / "uneven"
    draw_dataset(folder, 11, seed=8)
    for number, sample in enumerate(discover_samples(folder, "<CAPTION>").samples):
        text = "red" if number % 5 == 0 else " and ".join([sample.caption] * (1 + number % 4))
        sample.image.path.with_suffix(".txt").write_text(text)
    return folder


@pytest.mark.slow
def test_one_gradient_on_any_number_of_processes(
    make_config: MakeConfig, start: Start, uneven: Path, tmp_path: Path
) -> None:
    outputs = []
    for batch_size, accumulation, processes in (WHOLE, CUT, SHARED):
        name = f"{batch_size}-{accumulation}-{processes}"
        config = make_config(
            dataset_path=uneven, run_name=name, train_batch_size=batch_size, gradient_accumulation_steps=accumulation
        )
        outputs.append(tmp_path / name)
        if processes == 1:
            gradients.main(config, outputs[-1])
        else:
            finish(start("tests.programs.gradients", write(config, tmp_path), outputs[-1], processes=processes))
    for update, samples in ((0, 8), (1, 3)):  # a full window, and the short last one
        whole, *others = (load_file(output / f"{update}.safetensors") for output in outputs)
        numbers = whole.pop("")
        assert numbers[2] == samples
        for other in others:
            torch.testing.assert_close(other.pop(""), numbers, rtol=1e-5, atol=0)
            assert max(relative_differences(whole, other).values()) < 1e-5


@pytest.mark.slow
def test_ten_updates_give_the_same_weights(
    make_config: MakeConfig, start: Start, uneven: Path, tiny_model: Path, tmp_path: Path
) -> None:
    checkpoints = []
    for batch_size, accumulation, processes in (WHOLE, CUT, SHARED):
        config = make_config(
            dataset_path=uneven,
            run_name=f"{batch_size}-{accumulation}-{processes}",
            train_batch_size=batch_size,
            gradient_accumulation_steps=accumulation,
            epochs=5,
            freeze_vision=False,
            eval_steps=None,
            save_steps=None,
            learning_rate=1e-4,
        )
        checkpoints.append(config.run_dir / "step-10")
        if processes == 1:
            train(config)
        else:
            finish(start("florence2ner", "train", "--config", write(config, tmp_path), processes=processes))
    initial = load_file(tiny_model / "model.safetensors")
    whole, *others = (load_file(checkpoint / "model.safetensors") for checkpoint in checkpoints)
    losses = [
        [json.loads(line)["train/loss"] for line in (checkpoint.parent / "metrics.jsonl").read_text().splitlines()]
        for checkpoint in checkpoints
    ]
    for other, loss in zip(others, losses[1:], strict=True):
        assert loss == pytest.approx(losses[0], rel=1e-5)
        differences = relative_differences(whole, other)
        # A tensor that started at zero is nothing but the ten steps, in which AdamW divides small gradients by
        # themselves: rounding shows there, to a few parts in 100,000.
        grown = {name for name in differences if not initial[name].count_nonzero()}
        assert max(value for name, value in differences.items() if name not in grown) < 1e-5
        assert max(differences[name] for name in grown) < 1e-4
