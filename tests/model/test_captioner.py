"""The loss of given captions: what is padded changes nothing, and smoothed labels are torch's."""

import copy
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch.utils._python_dispatch import TorchDispatchMode

from florence2ner.model import captioner as module
from florence2ner.model.build import NOTHING, build_captioner
from florence2ner.model.inputs import IGNORE_INDEX, Embeddings, Pixels, Text


def test_padding_of_a_prompt_changes_no_loss(built_model: tuple[Any, Any]) -> None:
    model, processor = built_model
    captioner = build_captioner(copy.deepcopy(model), processor, device=torch.device("cpu"))
    images = captioner.vision.embed(Pixels(torch.randint(0, 256, (1, 3, 64, 64), dtype=torch.uint8)))
    ids = torch.tensor([[processor.image_token_id] * 17 + [5, 6, 2]])
    labels = torch.tensor([[0, 7, 8, 9, 2]])
    positions = torch.arange(5)
    padded = torch.nn.functional.pad(ids, (0, 3), value=1)
    mask = (torch.arange(23) < 20).long()[None]
    with torch.no_grad():
        alone = captioner(images, Text(ids, None, labels, positions))
        beside = captioner(images, Text(padded, mask, labels, positions))
        blind = captioner(images, Text(padded, None, labels, positions))
    torch.testing.assert_close(alone, beside)
    assert not torch.allclose(alone, blind)


def test_smoothed_labels_are_torchs_in_training_and_plain_ones_in_evaluation(built_model: tuple[Any, Any]) -> None:
    model, processor = built_model
    captioner = build_captioner(copy.deepcopy(model), processor, device=torch.device("cpu"), frozen=NOTHING)
    images = Embeddings(torch.randn(2, 17, model.config.text_config.d_model))
    ids = torch.tensor([[processor.image_token_id] * 17 + [5, 6, 2]]).expand(2, -1)
    labels = torch.tensor([[0, 7, 8, 9, 2], [0, 7, 2, IGNORE_INDEX, IGNORE_INDEX]])
    text = Text(ids, None, labels, (labels.flatten() != IGNORE_INDEX).nonzero()[:, 0])
    hidden = captioner.model.model(
        inputs_embeds=captioner.merge(images, ids),
        decoder_input_ids=torch.tensor([[2, 0, 7, 8, 9], [2, 0, 7, 2, 1]]),
    ).last_hidden_state
    logits = captioner.model.lm_head(hidden).flatten(0, 1)

    def expected(smoothing: float) -> torch.Tensor:
        return F.cross_entropy(logits, labels.flatten(), reduction="none", label_smoothing=smoothing).view(2, 5)

    head = captioner.model.lm_head.weight
    captioner.label_smoothing = 0.2
    for mode, smoothing in ((True, 0.2), (False, 0.0)):
        losses = captioner.train(mode)(images, text)
        torch.testing.assert_close(losses, expected(smoothing))
        gradients = [
            torch.autograd.grad(loss.sum(), head, retain_graph=True)[0] for loss in (losses, expected(smoothing))
        ]
        torch.testing.assert_close(*gradients)
    assert (expected(0.2) - expected(0.0)).abs().max() > 0.01


class _Largest(TorchDispatchMode):
    """Notes the most rows of any tensor with `columns` columns but for `others`, such as transposed weights."""

    def __init__(self, columns: int, others: int) -> None:
        super().__init__()
        self.columns, self.others, self.rows = columns, others, 0

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = function(*args, **(kwargs or {}))
        shape = result.shape if isinstance(result, torch.Tensor) else ()
        if len(shape) == 2 and shape[1] == self.columns and shape[0] != self.others:
            self.rows = max(self.rows, shape[0])
        return result


@pytest.mark.parametrize("autocast", [False, True])
def test_logits_in_chunks_are_never_there_at_once_and_change_no_gradient(
    built_model: tuple[Any, Any], monkeypatch: pytest.MonkeyPatch, autocast: bool
) -> None:
    model, processor = built_model
    captioner = build_captioner(copy.deepcopy(model), processor, device=torch.device("cpu"), frozen=NOTHING).train()
    captioner.label_smoothing = 0.1
    vocabulary = model.config.text_config.vocab_size
    torch.manual_seed(0)
    images = Embeddings(torch.randn(3, 17, model.config.text_config.d_model))
    ids = torch.tensor([[processor.image_token_id] * 17 + [5, 6, 2]]).expand(3, -1)
    labels = torch.randint(3, vocabulary, (3, 7))
    labels[1, 4:] = IGNORE_INDEX
    text = Text(ids, None, labels, (labels.flatten() != IGNORE_INDEX).nonzero()[:, 0])
    found = []
    for tokens in (10**6, 4):
        monkeypatch.setattr(module, "LOGITS_AT_ONCE", tokens * vocabulary)
        captioner.zero_grad()
        with _Largest(vocabulary, model.config.text_config.d_model) as seen:
            with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
                losses = captioner(images, text)
            (losses * torch.arange(21).view(3, 7)).sum().backward()
        gradients = {name: p.grad for name, p in captioner.named_parameters() if p.grad is not None}
        found.append((losses.detach(), gradients, seen.rows))
    (whole, expected, all_rows), (parts, gradients, few_rows) = found
    assert (all_rows, few_rows) == (18, 4)
    torch.testing.assert_close(parts, whole)
    assert gradients.keys() == expected.keys()
    for name, gradient in expected.items():
        error = (gradients[name] - gradient).norm() / gradient.norm().clamp_min(1e-9)
        assert error < (1e-2 if autocast else 1e-5) or name.endswith("k_proj.bias"), name
