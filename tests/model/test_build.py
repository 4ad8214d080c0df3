"""The builder of models: what is frozen, in which precision and layout weights are, and which kernels are used."""

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from florence2ner.model.build import EVERYTHING, NOTHING, Frozen, build_captioner, load_captioner
from florence2ner.model.captioner import Captioner
from florence2ner.model.checkpoints.loading import load_model
from florence2ner.model.inputs import Pixels, Text
from tests.model.support import RATE, model_inputs

CPU = torch.device("cpu")
TOWER = Frozen(vision=True, language=False, other=False)
LANGUAGE = Frozen(vision=False, language=True, other=False)
PROJECTOR = Frozen(vision=False, language=False, other=True)
each_freezing = pytest.mark.parametrize(
    "frozen", [EVERYTHING, NOTHING, TOWER, LANGUAGE, PROJECTOR, Frozen(vision=True, language=True, other=False)]
)


def build(built_model: tuple[Any, Any], *, device: torch.device = CPU, **settings: Any) -> Captioner:
    model, processor = built_model
    return build_captioner(copy.deepcopy(model), processor, device=device, **settings)


def owners(frozen: Frozen) -> dict[str, bool]:
    """Beginnings of the parameters' names, and whether these are frozen."""
    return {
        "model.model.vision_tower.": frozen.vision,
        "model.model.language_model.": frozen.language,
        "model.lm_head.": frozen.language,
        "model.model.multi_modal_projector.": frozen.other,
    }


def is_frozen(name: str, frozen: Frozen) -> bool:
    (found,) = (is_frozen for owner, is_frozen in owners(frozen).items() if name.startswith(owner))
    return found


def loss_of(captioner: Captioner) -> Tensor:
    """The loss of one random picture and a caption."""
    with torch.random.fork_rng():  # it seeds the generator that dropout draws from
        inputs = model_inputs(captioner.processor)
    pixels = torch.randint(0, 256, (1, 3, 64, 64), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    labels = inputs["labels"]
    return captioner(Pixels(pixels), Text(inputs["input_ids"], None, labels, torch.arange(labels.numel()))).sum()


@each_freezing
def test_what_is_frozen_takes_no_gradient_and_stays_in_evaluation_mode(
    built_model: tuple[Any, Any], frozen: Frozen
) -> None:
    captioner = build(built_model, frozen=frozen)
    assert not any(module.training for module in captioner.modules()), "in evaluation mode at first"
    for name, parameter in captioner.named_parameters():
        assert parameter.requires_grad != is_frozen(name, frozen), name
    inner = captioner.train().model.model
    for part, stays in (
        (inner.vision_tower, frozen.vision),
        (inner.language_model, frozen.language),
        (inner.multi_modal_projector, frozen.other),
    ):
        assert {module.training for module in part.modules()} == {not stays}
    assert frozen.everything == (frozen is EVERYTHING)


@each_freezing
def test_frozen_layers_are_cast_and_their_originals_come_back(built_model: tuple[Any, Any], frozen: Frozen) -> None:
    originals = {f"model.{name}": weight for name, weight in built_model[0].state_dict().items()}
    captioner = build(built_model, frozen=frozen, dtype=torch.bfloat16)
    layers = {
        f"{name}.{own}": parameter
        for name, module in captioner.named_modules()
        if isinstance(module, nn.Linear | nn.Conv2d)
        for own, parameter in module.named_parameters(recurse=False)
    }
    table = captioner.model.get_input_embeddings().weight  # looked up, and tied to the head
    for name, parameter in captioner.named_parameters():
        cast = name in layers and is_frozen(name, frozen) and parameter is not table
        assert parameter.dtype == (torch.bfloat16 if cast else torch.float32), name
        assert torch.equal(parameter, originals[name].to(parameter.dtype)), name
    kept = {} if frozen.everything else originals  # where all is frozen, nothing is ever saved
    before = {name: parameter.dtype for name, parameter in captioner.named_parameters()}
    with captioner.as_loaded():
        for name, parameter in captioner.named_parameters():
            assert torch.equal(parameter, kept.get(name, originals[name].to(before[name]))), name
            assert parameter.dtype == (torch.float32 if kept else before[name]), name
    assert {name: parameter.dtype for name, parameter in captioner.named_parameters()} == before


def test_without_a_precision_nothing_is_cast(built_model: tuple[Any, Any]) -> None:
    captioner = build(built_model, frozen=TOWER)
    assert {parameter.dtype for parameter in captioner.parameters()} == {torch.float32}


def test_the_towers_convolutions_have_their_channels_last(built_model: tuple[Any, Any]) -> None:
    captioner = build(built_model, dtype=torch.bfloat16)
    weights = [module.weight for module in captioner.vision.tower.modules() if isinstance(module, nn.Conv2d)]
    assert weights
    assert all(weight.is_contiguous(memory_format=torch.channels_last) for weight in weights)
    assert not all(weight.is_contiguous() for weight in weights), "some can tell the layouts apart"


@pytest.mark.parametrize("recompute", [False, True])
@pytest.mark.parametrize("frozen", [NOTHING, TOWER])
def test_layers_that_are_trained_run_again_in_the_backward_pass(
    built_model: tuple[Any, Any], recompute: bool, frozen: Frozen
) -> None:
    captioner = build(built_model, frozen=frozen, gradient_checkpointing=recompute).train()
    inner = captioner.model.model
    block = next(module for module in inner.vision_tower.blocks[0][0].modules() if isinstance(module, nn.Linear))
    watched = {
        "tower": block,
        "encoder": inner.language_model.encoder.layers[0].fc1,
        "decoder": inner.language_model.decoder.layers[0].fc1,
    }
    calls = dict.fromkeys(watched, 0)
    for name, module in watched.items():
        module.register_forward_hook(lambda *_, name=name: calls.__setitem__(name, calls[name] + 1))
    loss_of(captioner).backward()
    again = 2 if recompute else 1
    assert calls == {"tower": 1 if frozen.vision else again, "encoder": again, "decoder": again}


def _with_rates(built_model: tuple[Any, Any]) -> tuple[Any, Any]:
    """A copy that drops the outputs of its layers."""
    model, processor = copy.deepcopy(built_model[0]), built_model[1]
    for side in (model.model.language_model.encoder, model.model.language_model.decoder):
        for layer in side.layers:
            layer.dropout = RATE
    return model, processor


@pytest.mark.parametrize(
    ("settings", "fast"),
    [
        ({"frozen": TOWER}, True),
        ({"frozen": NOTHING, "gradient_checkpointing": True}, True),
        ({"frozen": LANGUAGE}, False),  # which never drops
        ({"frozen": EVERYTHING}, False),
        ({"frozen": TOWER, "compiled": True}, False),  # the compiler has its own
        ({"frozen": TOWER, "device": torch.device("meta")}, False),  # any device but a CPU
    ],
)
def test_our_dropout_is_for_a_language_model_that_trains_on_a_cpu_and_is_not_compiled(
    built_model: tuple[Any, Any], settings: dict[str, Any], fast: bool
) -> None:
    inner = build(_with_rates(built_model), **settings).model.model.language_model
    for layer in (*inner.encoder.layers, *inner.decoder.layers):
        assert layer.dropout == (0.0 if fast else RATE), "torch's own"
        hooks = [hook for hook in layer._forward_pre_hooks.values() if hasattr(hook, "rates")]
        assert [hook.rates["fc2"] for hook in hooks] == ([RATE] if fast else []), "ours, at the same rate"


def test_what_is_built_drops_in_training_only(built_model: tuple[Any, Any]) -> None:
    captioner = build(_with_rates(built_model), frozen=TOWER)
    dropped: list[float] = []
    with torch.no_grad():
        assert loss_of(captioner) == loss_of(captioner)
        captioner.train()
        losses = {loss_of(captioner).item() for _ in range(3)}
    assert len(losses) == 3
    layer = captioner.model.model.language_model.encoder.layers[0].fc2  # which has our hook by now
    layer.register_forward_hook(lambda module, args, output: dropped.append((output == 0).float().mean().item()))
    with torch.no_grad():
        loss_of(captioner)
    assert dropped == pytest.approx([RATE], abs=0.05), "at the layer's rate"


def test_a_captioner_is_loaded_with_the_weights_of_its_model(tiny_model: Path) -> None:
    model, processor = load_model(tiny_model)
    captioner = load_captioner(tiny_model, device=CPU)
    expected = model.state_dict()
    loaded = captioner.model.state_dict()
    assert loaded.keys() == expected.keys()
    assert all(torch.equal(loaded[name], weight) for name, weight in expected.items())
    assert captioner.processor.tokenizer.get_vocab() == processor.tokenizer.get_vocab()
    assert not any(parameter.requires_grad for parameter in captioner.parameters()), "frozen unless said otherwise"
    assert {buffer.device.type for buffer in captioner.buffers()} == {"cpu"}
