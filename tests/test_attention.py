"""Our attention and dropout against torch's own, and against formulas written out."""

import copy
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import Florence2ForConditionalGeneration, Florence2Processor

from florence2ner.model.adapt import checkpoint_gradients, freeze
from florence2ner.model.captioner import Captioner
from florence2ner.model.checkpoints.scratch import build_model
from florence2ner.model.kernels.attention import attend_with_dropout
from florence2ner.model.kernels.dropout import draw_kept, dropout, share_kept, use_fast_dropout

RATE = 0.3


@pytest.fixture(scope="module")
def built() -> tuple[Florence2ForConditionalGeneration, Florence2Processor]:
    model, processor = build_model("tiny", ["a small red star in the top left corner", "two blue squares"], seed=0)
    return model.eval(), processor


def _kept(heads: int, length: int, keys: int, dtype: torch.dtype, seed: int, rows: int) -> Tensor:
    like = torch.empty(heads, length, keys, dtype=dtype)
    return torch.stack([draw_kept(like, RATE, seed, row) for row in range(rows)])


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-6), (torch.bfloat16, 2e-2)])
@pytest.mark.parametrize("masked", ["nothing", "padding", "future"])
def test_attention_with_dropout_is_the_formula(dtype: torch.dtype, tolerance: float, masked: str) -> None:
    rows, heads, length, width = 2, 3, 9, 16
    drawn = [torch.randn(rows, length, heads, width, dtype=dtype).transpose(1, 2).requires_grad_() for _ in range(3)]
    allowed = torch.ones(rows, 1, length, length, dtype=torch.bool)
    if masked == "padding":
        allowed[1, ..., 6:] = False
    if masked == "future":
        allowed = allowed.tril()
    torch.manual_seed(5)
    seed = int(torch.randint(1 << 62, ()))
    torch.manual_seed(5)
    mask = allowed if masked == "padding" else None
    attended = attend_with_dropout(*drawn, mask, RATE, causal=masked == "future")
    gradient = torch.randn_like(attended)
    gradients = torch.autograd.grad(attended, drawn, gradient)

    query, key, value = exact = [tensor.detach().double().requires_grad_() for tensor in drawn]
    scores = (query @ key.transpose(2, 3) * width**-0.5).masked_fill(~allowed, -torch.inf)
    kept = _kept(heads, length, length, dtype, seed, rows)
    expected = scores.softmax(-1) * kept / share_kept(RATE) @ value
    torch.testing.assert_close(attended.double(), expected, atol=tolerance, rtol=tolerance)
    for ours, formula in zip(gradients, torch.autograd.grad(expected, exact, gradient.double()), strict=True):
        torch.testing.assert_close(ours.double(), formula, atol=3 * tolerance, rtol=3 * tolerance)


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


def _inputs(processor: Florence2Processor) -> dict[str, Tensor]:
    torch.manual_seed(0)
    labels = processor.tokenizer("a small red star", return_tensors="pt").input_ids
    ids = torch.full((1, 17), processor.image_token_id)
    return {"input_ids": ids, "pixel_values": torch.randn(1, 3, 64, 64), "labels": labels}


def test_a_model_drops_where_it_did_before_and_as_much(built: tuple[Any, Any]) -> None:
    """torch's dropout and ours give other numbers, but the same mean and spread of every logit."""
    model, processor = built
    plain = _with_rates(model)
    fast = _with_rates(model)
    use_fast_dropout(fast.model.language_model)
    Captioner(fast, processor)
    inputs = _inputs(processor)
    with torch.no_grad():
        logits = [torch.stack([m(**inputs).logits for _ in range(300)]).double() for m in (plain, fast)]
        means, spreads = [x.mean(0) for x in logits], [x.std(0) for x in logits]
        assert spreads[0].mean() > 0.1 * means[0].std()  # dropout matters here
        off = (means[0] - means[1]).abs() / (spreads[0] * (2 / 300) ** 0.5)
        assert off.mean() < 1.6  # 0.8 for equal means, were the logits independent
        assert abs(spreads[1].mean() / spreads[0].mean() - 1) < 0.05
        torch.testing.assert_close(fast.eval()(**inputs).logits, plain.eval()(**inputs).logits)


def test_recomputed_layers_drop_the_same_entries(built: tuple[Any, Any]) -> None:
    model, processor = built
    gradients = []
    for recompute in (False, True):
        copied = _with_rates(model)
        use_fast_dropout(copied.model.language_model)
        Captioner(copied, processor)
        if recompute:
            checkpoint_gradients(copied)
        inputs = _inputs(processor)
        copied(**inputs, use_cache=False).loss.backward()
        gradients.append({name: p.grad for name, p in copied.named_parameters() if p.grad is not None})
    torch.testing.assert_close(*gradients)


def test_the_towers_attention_gives_what_torch_gives(built: tuple[Any, Any]) -> None:
    model, processor = built
    captioner = Captioner(copy.deepcopy(model), processor)
    pixels = torch.randint(0, 256, (2, 3, 64, 64), dtype=torch.uint8)
    with torch.no_grad():
        expected = model.model.vision_tower(captioner.normalise(pixels)).last_hidden_state
        torch.testing.assert_close(captioner.vision_features(pixels), expected, atol=1e-4, rtol=1e-4)


def test_padding_of_a_prompt_changes_no_loss(built: tuple[Any, Any]) -> None:
    model, processor = built
    captioner = Captioner(copy.deepcopy(model), processor).eval()
    images = captioner.embed_images(torch.randint(0, 256, (1, 3, 64, 64), dtype=torch.uint8))
    ids = torch.tensor([[processor.image_token_id] * 17 + [5, 6, 2]])
    labels = torch.tensor([[0, 7, 8, 9, 2]])
    positions = torch.arange(5)
    padded = torch.nn.functional.pad(ids, (0, 3), value=1)
    mask = (torch.arange(23) < 20).long()[None]
    with torch.no_grad():
        alone = captioner.token_losses(images, ids, None, labels, positions)
        beside = captioner.token_losses(images, padded, mask, labels, positions)
        blind = captioner.token_losses(images, padded, None, labels, positions)
    torch.testing.assert_close(alone, beside)
    assert not torch.allclose(alone, blind)


@pytest.mark.parametrize("frozen", ["vision", "language"])
def test_lowered_weights_change_nothing_and_come_back(built: tuple[Any, Any], frozen: str) -> None:
    model, processor = built
    model = copy.deepcopy(model)
    freeze(model, vision=frozen == "vision", language=frozen == "language", other=False)
    captioner = Captioner(model, processor).eval()
    inputs = _inputs(processor)
    pixels = torch.randint(0, 256, (1, 3, 64, 64), dtype=torch.uint8)
    ids, labels = inputs["input_ids"], inputs["labels"]

    def losses() -> Tensor:
        with torch.autocast("cpu", torch.bfloat16):
            return captioner.token_losses(pixels, ids, None, labels, torch.arange(labels.numel()))

    before, weights = losses(), {name: weight.clone() for name, weight in captioner.state_dict().items()}
    captioner.lower_frozen(torch.bfloat16)
    lowered = [name for name, weight in captioner.named_parameters() if weight.dtype == torch.bfloat16]
    assert lowered
    assert all({"vision": "vision_tower", "language": "language_model"}[frozen] in name for name in lowered)
    assert torch.equal(losses(), before)
    with captioner.whole():
        torch.testing.assert_close(captioner.state_dict(), weights, rtol=0, atol=0)
    assert torch.equal(losses(), before)
