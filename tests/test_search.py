"""Decoding against transformers' own, on a model whose captions end at different lengths."""

import copy
from collections import Counter
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import Florence2ForConditionalGeneration, Florence2Processor

from florence2ner.model.adapt import freeze
from florence2ner.model.captioner import Captioner, Decoding
from florence2ner.model.checkpoints.scratch import build_model

IMAGES, LIMIT = 6, 40
SETTINGS: list[dict[str, Any]] = [
    {},
    {"length_penalty": -1.0},
    {"length_penalty": 2.0},
    {"repetition_penalty": 1.3, "no_repeat_ngram_size": 2},
    {"no_repeat_ngram_size": 0},
    {"no_repeat_ngram_size": 1},
]


@pytest.fixture(scope="module")
def built() -> tuple[Florence2ForConditionalGeneration, Florence2Processor]:
    # With this seed and these factors, captions look at the image, and some end early, some late and some at the limit.
    model, processor = build_model("tiny", ["a small red star in the top left corner", "two blue squares"], seed=2)
    with torch.no_grad():
        model.lm_head.weight[model.generation_config.eos_token_id] *= 1.6
        for layer in model.model.language_model.decoder.layers:
            layer.encoder_attn.v_proj.weight *= 4
            layer.encoder_attn.out_proj.weight *= 2
    return model.eval(), processor


@pytest.fixture(scope="module")
def images() -> Tensor:
    torch.manual_seed(3)
    shades = torch.randint(0, 256, (IMAGES, 3, 4, 4), dtype=torch.uint8)
    return shades.repeat_interleave(16, 2).repeat_interleave(16, 3)


def _prompts(processor: Florence2Processor, *, padded: bool) -> tuple[Tensor, Tensor]:
    ids = torch.full((IMAGES, 21), processor.image_token_id)
    ids[:, 17:] = torch.tensor([5, 6, 7, 2])
    ids[:, 18] += torch.arange(IMAGES)
    mask = torch.ones_like(ids)
    if padded:
        ids[::2, 19:], mask[::2, 20:] = torch.tensor([2, 1]), 0
    return ids, mask


@pytest.mark.parametrize("padded", [False, True])
@pytest.mark.parametrize("early_stopping", [True, False, "never"])
@pytest.mark.parametrize("settings", SETTINGS, ids=str)
@pytest.mark.parametrize("beams", [1, 2, 3, 5])
def test_texts_are_those_of_transformers(
    built: tuple[Any, Any], images: Tensor, beams: int, settings: dict[str, Any], early_stopping: Any, padded: bool
) -> None:
    model, processor = built
    captioner = Captioner(copy.deepcopy(model), processor)
    captioner.model.generation_config.early_stopping = early_stopping
    ids, mask = _prompts(processor, padded=padded)
    with torch.no_grad():
        embedded = captioner.embed_images(images)
        decoding = Decoding(num_beams=beams, max_new_tokens=LIMIT, **settings)
        ours = captioner.generate(embedded, ids, mask if padded else None, decoding)
        expected = model.generate(
            input_ids=ids,
            pixel_values=captioner.normalise(images),
            attention_mask=mask,
            num_beams=beams,
            max_new_tokens=LIMIT,
            early_stopping=early_stopping,
            suppress_tokens=[model.config.image_token_id],
            **settings,
        )
    pad = model.config.text_config.pad_token_id
    rows = [[token for token in row[1:] if token != pad] for row in expected.tolist()]
    assert [one.raw for one in ours] == processor.batch_decode(rows)
    assert [one.tokens for one in ours] == [len(row) for row in rows]


@pytest.mark.parametrize("beams", [1, 3])
def test_finished_captions_leave_the_batch(built: tuple[Any, Any], images: Tensor, beams: int) -> None:
    """Counted at the decoder itself."""
    model, processor = built
    captioner = Captioner(copy.deepcopy(model), processor)
    rows: list[int] = []
    decoder = captioner.model.model.language_model.decoder
    decoder.register_forward_pre_hook(lambda _, __, inputs: rows.append(len(inputs["input_ids"])), with_kwargs=True)
    ids, _ = _prompts(processor, padded=False)
    with torch.no_grad():
        answers = captioner.generate(captioner.embed_images(images), ids, None, Decoding(beams, LIMIT))
    lengths = sorted(answer.tokens for answer in answers)
    assert lengths[0] < lengths[-1]
    assert rows == sorted(rows, reverse=True)
    assert rows[-1] < IMAGES * beams
    if beams == 1:
        assert sum(rows) == sum(lengths)


def test_samples_follow_the_likelihoods(built: tuple[Any, Any], images: Tensor) -> None:
    """The first tokens of many samples, against the softmax of the logits."""
    model, processor = built
    captioner = Captioner(copy.deepcopy(model), processor)
    captioner.model.generation_config.update(forced_bos_token_id=None, forced_eos_token_id=None)
    ids, _ = _prompts(processor, padded=False)
    draws = 3000
    with torch.no_grad():
        torch.manual_seed(0)
        embedded = captioner.embed_images(images[:1]).expand(draws, -1, -1)
        decoding = Decoding(1, 1, temperature=2.0, top_k=0)
        answers = captioner.generate(embedded, ids[:1].expand(draws, -1), None, decoding)
        start = torch.tensor([[model.config.text_config.decoder_start_token_id]])
        inputs = {"input_ids": ids[:1], "pixel_values": captioner.normalise(images[:1]), "decoder_input_ids": start}
        likely = (model(**inputs).logits[0, -1] / 2).softmax(-1)
    counts = Counter(answer.raw for answer in answers)
    for token in likely.topk(5).indices.tolist():
        share = likely[token].item()
        assert abs(counts[processor.tokenizer.decode([token])] / draws - share) < 4 * (share / draws) ** 0.5


def test_kernels_without_shared_keys_write_the_same(built: tuple[Any, Any], images: Tensor) -> None:
    model, processor = built
    ids, mask = _prompts(processor, padded=True)
    texts = []
    for kernels in ("sdpa", "eager"):
        copied = copy.deepcopy(model)
        copied.set_attn_implementation(kernels)
        captioner = Captioner(copied, processor)
        with torch.no_grad():
            texts.append(captioner.generate(captioner.embed_images(images), ids, mask, Decoding(3, LIMIT)))
    assert texts[0] == texts[1]


@pytest.mark.slow
@pytest.mark.parametrize("fixed", [True, False], ids=["captioning", "training"])
def test_compiled_parts_give_the_same(built: tuple[Any, Any], images: Tensor, fixed: bool) -> None:
    model, processor = built
    ids, _ = _prompts(processor, padded=False)
    labels = torch.tensor([[0, 7, 8, 9, 2]]).expand(IMAGES, -1)
    texts, losses, gradients = [], [], []
    for compiled in (False, True):
        copied = copy.deepcopy(model)
        freeze(copied, vision=True, language=False, other=False)
        captioner = Captioner(copied, processor)
        if fixed:
            captioner.fix_weights(None)
        if compiled:
            captioner.compile_model()
        features = captioner.encode(images)
        loss = captioner.token_losses(features, ids, None, labels, torch.arange(labels.numel())).sum()
        losses.append(loss.item())
        if fixed:
            with torch.no_grad():
                texts.append(captioner.generate(captioner.embed_images(features), ids, None, Decoding(3, LIMIT)))
        else:
            loss.backward()
            gradients.append({name: p.grad for name, p in copied.named_parameters() if p.grad is not None})
    torch.testing.assert_close(losses[1], losses[0], rtol=1e-5, atol=0)
    if fixed:
        assert texts[0] == texts[1]
    else:
        torch.testing.assert_close(*gradients, rtol=1e-3, atol=1e-5)
