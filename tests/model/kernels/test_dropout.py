"""Our dropout against torch's own: its rate, its scale, and the same entries when layers are recomputed."""

import copy
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from transformers import Florence2ForConditionalGeneration

from florence2ner.model.kernels.attention import use_fast_attention
from florence2ner.model.kernels.checkpointing import checkpoint_gradients
from florence2ner.model.kernels.dropout import draw_kept, dropout, share_kept, use_fast_dropout
from tests.model.support import RATE, model_inputs


def test_entries_are_kept_at_the_rate_and_independently() -> None:
    kept = draw_kept(torch.empty(1000, 1001), 0.1, 7).double()  # not a multiple of four entries
    spread = (0.1 * 0.9 / kept.numel()) ** 0.5
    assert abs(kept.mean().item() - 0.9) < 4 * spread
    for distance in (1, 2, 3, 4, 1001):  # within a random number, and a row further
        flat = kept.flatten() - 0.9
        correlation = (flat[:-distance] * flat[distance:]).mean().item() / 0.09
        assert abs(correlation) < 4 / kept.numel() ** 0.5
    assert not torch.equal(kept, draw_kept(torch.empty(1000, 1001), 0.1, 8).double())


def test_dropout_scales_what_it_keeps_and_its_gradient_alike() -> None:
    values = torch.randn(50, 40, requires_grad=True)
    dropped = dropout(values, RATE)
    kept = dropped != 0
    assert 0.6 < kept.float().mean() < 0.8
    torch.testing.assert_close(dropped, values * kept / share_kept(RATE))
    (gradient,) = torch.autograd.grad(dropped.sum(), values)
    torch.testing.assert_close(gradient, kept / share_kept(RATE))


def _with_rates(model: Florence2ForConditionalGeneration) -> Florence2ForConditionalGeneration:
    """A copy that drops, in attention too, as the real sizes do."""
    model = copy.deepcopy(model)
    for side in (model.model.language_model.encoder, model.model.language_model.decoder):
        side.dropout = 0.1
        for layer in side.layers:
            layer.dropout = layer.activation_dropout = layer.self_attn.dropout = 0.1
            if hasattr(layer, "encoder_attn"):
                layer.encoder_attn.dropout = 0.1
    return model.train()


def test_a_model_drops_where_it_did_before_and_as_much(built_model: tuple[Any, Any]) -> None:
    """torch's dropout and ours give other numbers, but the same mean and spread of every logit."""
    model, processor = built_model
    plain = _with_rates(model)
    fast = _with_rates(model)
    use_fast_dropout(fast.model.language_model)
    use_fast_attention(fast)
    inputs = model_inputs(processor)
    with torch.no_grad():
        logits = [torch.stack([m(**inputs).logits for _ in range(300)]).double() for m in (plain, fast)]
        means, spreads = [x.mean(0) for x in logits], [x.std(0) for x in logits]
        assert spreads[0].mean() > 0.1 * means[0].std()  # dropout matters here
        off = (means[0] - means[1]).abs() / (spreads[0] * (2 / 300) ** 0.5)
        assert off.mean() < 1.6  # 0.8 for equal means, were the logits independent
        assert abs(spreads[1].mean() / spreads[0].mean() - 1) < 0.05
        torch.testing.assert_close(fast.eval()(**inputs).logits, plain.eval()(**inputs).logits)


def test_recomputed_layers_drop_the_same_entries(built_model: tuple[Any, Any]) -> None:
    model, processor = built_model
    gradients = []
    for recompute in (False, True):
        copied = _with_rates(model)
        use_fast_dropout(copied.model.language_model)
        use_fast_attention(copied)
        if recompute:
            checkpoint_gradients(copied)
        inputs = model_inputs(processor)
        copied(**inputs, use_cache=False).loss.backward()
        gradients.append({name: p.grad for name, p in copied.named_parameters() if p.grad is not None})
    torch.testing.assert_close(*gradients)


class Adapter(nn.Module):
    """What wraps a linear layer: its output plus a small one of its own."""

    def __init__(self, base: nn.Linear) -> None:
        super().__init__()
        self.base = base
        self.own = nn.Linear(base.in_features, base.out_features, bias=False)

    def forward(self, values: Tensor) -> Tensor:
        return self.base(values) + self.own(values)


@pytest.mark.parametrize("moment", ["before", "after", "in between", "after a copy"])
def test_a_layer_that_is_wrapped_keeps_its_dropout(built_model: tuple[Any, Any], moment: str) -> None:
    model, _ = built_model
    copied = _with_rates(model)
    layer = copied.model.language_model.decoder.layers[0]
    if moment == "before":
        layer.fc2, layer.self_attn.out_proj = Adapter(layer.fc2), Adapter(layer.self_attn.out_proj)
    use_fast_dropout(copied.model.language_model)
    inputs = torch.randn(1, 200, 128)
    if moment in ("in between", "after a copy"):
        layer(inputs)
    if moment == "after a copy":
        copied = copy.deepcopy(copied)
        layer = copied.model.language_model.decoder.layers[0]
    if moment != "before":
        layer.fc2, layer.self_attn.out_proj = Adapter(layer.fc2), Adapter(layer.self_attn.out_proj)
    layer(inputs)  # the layer looks at each call what stands in it
    outputs: list[Tensor] = []
    for wrapped in (layer.self_attn.out_proj, layer.fc2):
        wrapped.register_forward_hook(lambda module, args, output: outputs.append(output))
        wrapped.base.register_forward_hook(lambda module, args, output: outputs.append(output))
    layer(inputs)
    for inner, outer in (outputs[:2], outputs[2:]):
        assert (inner != 0).all(), "not inside, where the adapter's own part would escape it"
        dropped = (outer == 0).float().mean().item()
        assert 0.08 < dropped < 0.12, "once, at the layer's rate"
    assert (layer.eval()(inputs) == layer(inputs)).all()
