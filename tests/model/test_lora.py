"""LoRA on a tiny model: which layers get adapters, that these alone are trained, and that nothing goes round them."""

import copy
import re
import sys
from typing import Any

import pytest
import torch
from torch import Tensor

from florence2ner.config.options import Decoding
from florence2ner.errors import UserError
from florence2ner.model.build import build_captioner, frozen_beside_adapters
from florence2ner.model.captioner import Captioner
from florence2ner.model.generation import generate
from florence2ner.model.inputs import Pixels
from florence2ner.model.lora import Lora, adapted_layers, add_lora, config_of, difference, import_peft, merge_lora
from tests.conftest import ColdStart
from tests.model.support import prompts
from tests.model.test_build import loss_of

CPU = torch.device("cpu")
LANGUAGE = {
    f"model.language_model.{side}.layers.{layer}.{name}"
    for side in ("encoder", "decoder")
    for layer in (0, 1)
    for name in ("fc1", "fc2")
}
LANGUAGE |= {
    f"model.language_model.{attention}.{matrix}_proj"
    for layer in (0, 1)
    for attention in (
        f"encoder.layers.{layer}.self_attn",
        f"decoder.layers.{layer}.self_attn",
        f"decoder.layers.{layer}.encoder_attn",
    )
    for matrix in ("q", "k", "v", "out")
}
VISION = {
    f"model.vision_tower.blocks.{stage}.0.{kind}_block.{name}"
    for stage in range(4)
    for kind, attention in (("spatial", "window_attn"), ("channel", "channel_attn"))
    for name in (f"{attention}.qkv", f"{attention}.proj", "ffn.fc1", "ffn.fc2")
}
each_kind = pytest.mark.parametrize("kind", [{}, {"dora": True}], ids=["lora", "dora"])


def like(**changes: Any) -> Lora:
    common: dict[str, Any] = {"rank": 4, "alpha": 8, "dropout": 0.0, "targets": "all", "dora": False, "rslora": False}
    return Lora(**common | changes)


def adapted(built_model: tuple[Any, Any], lora: Lora, *, random: bool = True) -> Any:
    """A copy with adapters; `random`: that compute something."""
    model = copy.deepcopy(built_model[0])
    add_lora(model, lora, base="somewhere", seed=1)
    generator = torch.Generator().manual_seed(2)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if random and ".lora_B." in name:
                parameter.normal_(std=0.1, generator=generator)
            if random and ".lora_magnitude_vector." in name:
                parameter.mul_(1.3)
    return model


def captioner_of(model: Any, processor: Any, **settings: Any) -> Captioner:
    return build_captioner(model, processor, device=CPU, frozen=frozen_beside_adapters(model), **settings)


def losses(captioner: Captioner) -> Tensor:
    with torch.no_grad():
        return loss_of(captioner)


@pytest.mark.parametrize(
    ("targets", "layers"),
    [
        ("language", LANGUAGE),
        ("vision", VISION),
        ("all", LANGUAGE | VISION),
        (r".*decoder.*\.q_proj", {name for name in LANGUAGE if re.fullmatch(r".*decoder.*q_proj", name)}),
        (r".*\.image_projection", {"model.multi_modal_projector.image_projection"}),
    ],
)
def test_targets_are_the_layers_that_are_trained_and_no_others(
    built_model: tuple[Any, Any], targets: str, layers: set[str]
) -> None:
    model = adapted(built_model, like(targets=targets), random=False)
    assert set(adapted_layers(model)) == layers
    captioner = captioner_of(model, built_model[1])
    trained = {name.removeprefix("model.") for name, p in captioner.named_parameters() if p.requires_grad}
    assert trained == {f"{layer}.lora_{matrix}.default.weight" for layer in layers for matrix in "AB"}
    parts = {name.split(".")[1] for name in layers}
    inner = captioner.train().model.model
    for part in ("vision_tower", "language_model", "multi_modal_projector"):
        assert all(module.training == (part in parts) for module in getattr(inner, part).modules()), part
    assert captioner.vision.is_frozen == ("vision_tower" not in parts)


@each_kind
def test_new_adapters_change_nothing_and_depend_on_the_seed_alone(
    built_model: tuple[Any, Any], kind: dict[str, bool]
) -> None:
    before = losses(build_captioner(copy.deepcopy(built_model[0]), built_model[1], device=CPU))
    torch.manual_seed(5)
    state = torch.get_rng_state()
    one = adapted(built_model, like(**kind), random=False)
    assert torch.equal(torch.get_rng_state(), state)
    torch.manual_seed(6)
    other = adapted(built_model, like(**kind), random=False).state_dict()
    assert all(torch.equal(weight, other[name]) for name, weight in one.state_dict().items())
    torch.testing.assert_close(losses(captioner_of(one, built_model[1])), before, rtol=1e-6, atol=1e-6)


@each_kind
def test_every_adapter_changes_the_loss_and_gets_a_gradient(
    built_model: tuple[Any, Any], kind: dict[str, bool]
) -> None:
    """A kernel that read the weight of a layer would go round its adapter."""
    model = adapted(built_model, like(**kind))
    captioner = captioner_of(model, built_model[1])
    loss = loss_of(captioner)
    loss.backward()
    for name, parameter in model.named_parameters():
        assert (parameter.grad is not None and bool(parameter.grad.any())) == (".lora_" in name), name
    for name in adapted_layers(model):
        matrix = model.get_submodule(f"{name}.lora_B.default").weight
        kept = matrix.detach().clone()
        with torch.no_grad():
            matrix.zero_()
        assert losses(captioner) != loss.detach(), name
        with torch.no_grad():
            matrix.copy_(kept)
    assert losses(captioner) == loss.detach()


def test_alpha_and_rank_scale(built_model: tuple[Any, Any]) -> None:
    scales = [(like(), 2), (like(alpha=4), 1), (like(rslora=True), 4), (like(alpha=3, rank=2), 1.5)]
    for lora, scale in scales:
        model = adapted(built_model, lora)
        layer = model.get_submodule("model.language_model.encoder.layers.0.fc1")
        before = layer.weight.clone()
        matrices = layer.lora_B.default.weight @ layer.lora_A.default.weight
        merge_lora(model)
        merged = model.get_submodule("model.language_model.encoder.layers.0.fc1").weight
        torch.testing.assert_close(merged - before, scale * matrices, rtol=1e-4, atol=1e-6)


@each_kind
def test_merged_is_adapted_and_a_plain_model_again(
    built_model: tuple[Any, Any], pictures: Tensor, kind: dict[str, bool]
) -> None:
    model = adapted(built_model, like(**kind))
    plain = copy.deepcopy(model)
    merge_lora(plain)
    assert plain.state_dict().keys() == built_model[0].state_dict().keys()
    assert [type(module) for module in plain.modules()] == [type(module) for module in built_model[0].modules()]
    assert all(parameter.requires_grad for parameter in plain.parameters())
    one, other = captioner_of(model, built_model[1]), build_captioner(plain, built_model[1], device=CPU)
    torch.testing.assert_close(losses(one), losses(other), rtol=1e-5, atol=1e-5)
    ids, mask = prompts(built_model[1], padded=True)
    decoding = Decoding(num_beams=2, max_new_tokens=12)
    texts = []
    for captioner in (one, other):
        with torch.no_grad():
            embedded = captioner.vision.embed(Pixels(pictures))
        texts.append([text.raw for text in generate(captioner, embedded, ids, mask, decoding)])
    assert texts[0] == texts[1]


@each_kind
def test_weights_that_were_cast_in_advance_change_no_bit(built_model: tuple[Any, Any], kind: dict[str, bool]) -> None:
    model = adapted(built_model, like(**kind))
    other = captioner_of(copy.deepcopy(model), built_model[1], dtype=torch.bfloat16)
    with torch.autocast("cpu", torch.bfloat16):
        assert losses(captioner_of(model, built_model[1])) == losses(other)
    base = other.model.model.language_model.encoder.layers[0].fc1.base_layer.weight
    assert base.dtype == (torch.float32 if kind.get("dora") else torch.bfloat16)


@each_kind
def test_recomputed_activations_give_the_same_gradients(built_model: tuple[Any, Any], kind: dict[str, bool]) -> None:
    gradients = []
    for recompute in (False, True):
        model = adapted(built_model, like(dropout=0.2, **kind))
        captioner = captioner_of(model, built_model[1], gradient_checkpointing=recompute).train()
        torch.manual_seed(0)
        loss_of(captioner).backward()
        gradients.append([p.grad for p in model.parameters() if p.requires_grad])
    assert all(torch.equal(one, other) for one, other in zip(*gradients, strict=True))


@pytest.mark.parametrize(
    ("targets", "message"),
    [
        ("q_proj", r"is the whole name of no layer .* such as model\.language_model\.decoder\.layers\.1\.fc2"),
        (r".*encoder.*", "matches model.language_model.encoder, not only linear layers"),
        (r".*\.conv1|lm_head", "not only linear layers"),
        ("lm_head", "shares its weight with the embeddings"),
    ],
)
def test_targets_that_can_have_no_adapter_are_refused(built_model: tuple[Any, Any], targets: str, message: str) -> None:
    model = copy.deepcopy(built_model[0])
    with pytest.raises(UserError, match=message):
        add_lora(model, like(targets=targets), base="somewhere", seed=1)


def test_other_adapters_than_those_that_are_there_are_named(built_model: tuple[Any, Any]) -> None:
    model = adapted(built_model, like(targets="language"))
    assert config_of(model).base_model_name_or_path == "somewhere"
    assert difference(model, like(targets="language")) is None
    assert difference(model, like(targets=r"model\.language_model.*(proj|fc\d)")) is None, "the same layers"
    for other, message in (
        (like(targets="language", rank=8), "their rank is 4, not 8"),
        (like(targets="language", alpha=4), "their alpha is 8, not 4"),
        (like(targets="language", dropout=0.1), "their dropout is 0.0, not 0.1"),
        (like(targets="language", dora=True), "their use of DoRA is False, not True"),
        (like(targets="language", rslora=True), "their use of rsLoRA is False, not True"),
        (like(targets="all"), "their layers are others than those of all"),
    ):
        assert difference(model, other) == message


def test_the_fix_is_named_where_peft_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "peft", None)  # as good as not installed
    with pytest.raises(UserError, match=r"pip install 'florence2ner\[lora\]'"):
        import_peft()


def test_importing_peft_says_nothing(cold_start: ColdStart) -> None:
    """Nor does bitsandbytes, which peft imports where it is installed."""
    started = cold_start("-c", "from florence2ner.model.lora import import_peft; import_peft()")
    assert started.communicate() == ("", "")
