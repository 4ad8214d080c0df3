"""Decoding against transformers' own, on a model whose captions end at different lengths."""

import copy
from collections import Counter
from typing import Any

import pytest
import torch
from torch import Tensor

from florence2ner.config.options import Decoding
from florence2ner.model.build import build_captioner
from florence2ner.model.generation import generate
from florence2ner.model.inputs import Embeddings, Pixels
from tests.model.support import IMAGES, LIMIT, prompts

SETTINGS: list[dict[str, Any]] = [
    {},
    {"length_penalty": -1.0},
    {"length_penalty": 2.0},
    {"repetition_penalty": 1.3, "no_repeat_ngram_size": 2},
    {"no_repeat_ngram_size": 0},
    {"no_repeat_ngram_size": 1},
]


@pytest.mark.parametrize("padded", [False, True])
@pytest.mark.parametrize("settings", SETTINGS, ids=str)
@pytest.mark.parametrize(
    ("beams", "early_stopping"),
    [(1, True), *((beams, early) for beams in (3, 5) for early in (True, False, "never"))],  # one beam has one way
)
def test_texts_are_those_of_transformers(
    writing_model: tuple[Any, Any],
    pictures: Tensor,
    beams: int,
    settings: dict[str, Any],
    early_stopping: Any,
    padded: bool,
) -> None:
    model, processor = writing_model
    captioner = build_captioner(copy.deepcopy(model), processor, device=torch.device("cpu"))
    captioner.model.generation_config.early_stopping = early_stopping
    ids, mask = prompts(processor, padded=padded)
    with torch.no_grad():
        embedded = captioner.vision.embed(Pixels(pictures))
        decoding = Decoding(num_beams=beams, max_new_tokens=LIMIT, **settings)
        ours = generate(captioner, embedded, ids, mask if padded else None, decoding)
        expected = model.generate(
            input_ids=ids,
            pixel_values=captioner.vision.normalise(pictures),
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
def test_finished_captions_leave_the_batch(writing_model: tuple[Any, Any], pictures: Tensor, beams: int) -> None:
    """Counted at the decoder itself."""
    model, processor = writing_model
    captioner = build_captioner(copy.deepcopy(model), processor, device=torch.device("cpu"))
    rows: list[int] = []
    decoding = Decoding(num_beams=beams, max_new_tokens=LIMIT)
    decoder = captioner.model.model.language_model.decoder
    decoder.layernorm_embedding.register_forward_pre_hook(lambda _, inputs: rows.append(len(inputs[0])))
    ids, _ = prompts(processor, padded=False)
    with torch.no_grad():
        answers = generate(captioner, captioner.vision.embed(Pixels(pictures)), ids, None, decoding)
    lengths = sorted(answer.tokens for answer in answers)
    assert lengths[0] < lengths[-1]
    assert rows == sorted(rows, reverse=True)
    assert rows[-1] < IMAGES * beams
    if beams == 1:
        assert sum(rows) == sum(lengths)


def test_samples_follow_the_likelihoods(writing_model: tuple[Any, Any], pictures: Tensor) -> None:
    """The first tokens of many samples, against the softmax of the logits."""
    model, processor = writing_model
    captioner = build_captioner(copy.deepcopy(model), processor, device=torch.device("cpu"))
    captioner.model.generation_config.update(forced_bos_token_id=None, forced_eos_token_id=None)
    ids, _ = prompts(processor, padded=False)
    draws = 3000
    with torch.no_grad():
        torch.manual_seed(0)
        embedded = Embeddings(captioner.vision.embed(Pixels(pictures[:1])).values.expand(draws, -1, -1))
        decoding = Decoding.model_construct(num_beams=1, max_new_tokens=1, temperature=2.0, top_k=0)  # of all tokens
        answers = generate(captioner, embedded, ids[:1].expand(draws, -1), None, decoding, seeds=range(draws))
        start = torch.tensor([[model.config.text_config.decoder_start_token_id]])
        normalised = captioner.vision.normalise(pictures[:1])
        inputs = {"input_ids": ids[:1], "pixel_values": normalised, "decoder_input_ids": start}
        likely = (model(**inputs).logits[0, -1] / 2).softmax(-1)
    counts = Counter(answer.raw for answer in answers)
    for token in likely.topk(5).indices.tolist():
        share = likely[token].item()
        assert abs(counts[processor.tokenizer.decode([token])] / draws - share) < 4 * (share / draws) ** 0.5
