"""Captions: settings as given or as the checkpoint has them, second tries, and which text is kept of two."""

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from florence2ner.config.commands import CaptionConfig
from florence2ner.config.options import Decoding
from florence2ner.model.build import build_captioner
from florence2ner.model.captioner import Captioner
from florence2ner.model.generation import Generated, generate, replace_flagged, second_try, seed_of
from florence2ner.model.inputs import Embeddings, Pixels
from tests.model.support import IMAGES, LIMIT, prompts

GOOD = Generated("<s>a cat</s>", tokens=4, limit=9)
OTHER = Generated("<s>a dog</s>", tokens=4, limit=9)
CUT_OFF = Generated("<s>a cat and", tokens=9, limit=9)
EMPTY = Generated("<s></s>", tokens=2, limit=9)
EMPTY_AND_CUT_OFF = Generated("<s></s>", tokens=9, limit=9)


@pytest.mark.parametrize(
    ("text", "flags", "without_empty"),
    [
        (GOOD, (), ()),
        (CUT_OFF, ("cut_off",), ("cut_off",)),
        (EMPTY, ("empty",), ()),
        (EMPTY_AND_CUT_OFF, ("empty", "cut_off"), ("cut_off",)),
    ],
)
def test_flags_of_a_text_that_may_be_empty(text: Generated, flags: tuple[str, ...], without_empty: tuple[str]) -> None:
    assert text.flags() == flags
    assert text.flags(may_be_empty=True) == without_empty


def test_only_the_flagged_are_asked_again_and_only_what_looks_better_is_taken() -> None:
    asked: list[list[int]] = []

    def again(rows: list[int]) -> list[Generated]:
        asked.append(rows)
        return [OTHER, EMPTY, EMPTY, EMPTY_AND_CUT_OFF]

    first = [GOOD, CUT_OFF, CUT_OFF, GOOD, EMPTY_AND_CUT_OFF, EMPTY]
    assert replace_flagged(first, again) == [GOOD, OTHER, CUT_OFF, GOOD, EMPTY, EMPTY]
    assert asked == [[1, 2, 4, 5]], "once"
    assert first[1] is CUT_OFF, "what was given stays as it was"


@pytest.mark.parametrize("given", [[], [OTHER]], ids=["nothing", "fewer"])
def test_the_first_texts_stay_where_no_second_comes(given: list[Generated]) -> None:
    first = [CUT_OFF, GOOD, EMPTY]
    assert replace_flagged(first, lambda rows: given) == [*(given or first[:1]), GOOD, EMPTY]


def test_nothing_is_asked_again_where_nothing_looks_wrong() -> None:
    def again(rows: list[int]) -> list[Generated]:
        raise AssertionError("asked")

    assert replace_flagged([GOOD, OTHER], again) == [GOOD, OTHER]
    assert replace_flagged([GOOD, EMPTY], again, may_be_empty=True) == [GOOD, EMPTY]
    assert replace_flagged([], again) == []


@pytest.mark.parametrize(("beams", "expected"), [(1, 3), (3, 3), (5, 5)])
def test_a_second_try_changes_the_search_and_nothing_else(tmp_path: Path, beams: int, expected: int) -> None:
    sampled = {"temperature": 0.7, "top_p": 0.9, "top_k": 5, "bad_words": ("photo",), "max_new_tokens": 17}
    config = CaptionConfig(paths=(tmp_path,), num_beams=beams, batch_size=3, suffix=".", **sampled)
    for first in (config, Decoding(num_beams=beams, **sampled)):
        second = second_try(first)
        assert type(second) is type(first)
        assert second.model_dump() == first.model_dump() | {
            "num_beams": expected,
            "temperature": None,
            "top_p": None,
            "top_k": None,
            "no_repeat_ngram_size": 3,
            "repetition_penalty": 1.3,
            "length_penalty": -1.0,
        }


@pytest.mark.parametrize("beams", [1, 3])
def test_no_text_is_longer_than_the_models_table_of_positions(
    captioner: Captioner, embedded: Embeddings, beams: int
) -> None:
    positions = captioner.model.config.text_config.max_position_embeddings
    assert positions < 512
    ids, _ = prompts(captioner.processor, padded=False)
    texts = generate(captioner, embedded, ids, None, Decoding(num_beams=beams, max_new_tokens=512))
    assert {text.limit for text in texts} == {positions - 1}
    assert max(text.tokens for text in texts) == positions - 1, "some reach it"


def test_the_limit_is_the_callers_where_it_is_lower(captioner: Captioner, embedded: Embeddings) -> None:
    ids, _ = prompts(captioner.processor, padded=False)
    texts = generate(captioner, embedded, ids, None, Decoding(num_beams=1, max_new_tokens=5))
    assert len(texts) == IMAGES
    assert {text.limit for text in texts} == {5}
    assert max(text.tokens for text in texts) == 5
    for text in texts:  # places are not words, but part of what is written
        assert text.text == text.raw.replace("<s>", "").replace("</s>", "").replace("<pad>", "").strip()


def _has_repeated_trigram(captioner: Captioner, text: Generated) -> bool:
    ids = captioner.processor.tokenizer(text.raw, add_special_tokens=False).input_ids
    trigrams = [tuple(ids[at : at + 3]) for at in range(len(ids) - 2)]
    return len(set(trigrams)) < len(trigrams)


def test_what_is_not_said_is_the_checkpoints_own(captioner: Captioner, embedded: Embeddings) -> None:
    ids, _ = prompts(captioner.processor, padded=False)

    def write(**settings: Any) -> list[Generated]:
        return generate(captioner, embedded, ids, None, Decoding(num_beams=1, max_new_tokens=LIMIT, **settings))

    assert captioner.model.generation_config.no_repeat_ngram_size == 3
    assert write() == write(no_repeat_ngram_size=3)
    assert write() != write(no_repeat_ngram_size=0)
    assert any(_has_repeated_trigram(captioner, text) for text in write(no_repeat_ngram_size=0))


def test_a_row_is_written_as_if_it_were_alone(captioner: Captioner, embedded: Embeddings) -> None:
    ids, mask = prompts(captioner.processor, padded=True)
    decoding = Decoding(num_beams=3, max_new_tokens=LIMIT)
    together = generate(captioner, embedded, ids, mask, decoding)
    for row, text in enumerate(together):
        length = int(mask[row].sum())
        alone = Embeddings(embedded.values[row : row + 1])
        assert generate(captioner, alone, ids[row : row + 1, :length], None, decoding) == [text]


@pytest.mark.parametrize("settings", [{"num_beams": 1}, {"num_beams": 2}, {"num_beams": 1, "top_k": 1}], ids=str)
def test_what_is_drawn_for_an_image_depends_on_its_seed_alone(
    captioner: Captioner, embedded: Embeddings, settings: dict[str, Any]
) -> None:
    ids, _ = prompts(captioner.processor, padded=False)
    decoding = Decoding(max_new_tokens=12, temperature=3.0, **settings)

    def write(rows: list[int], seeds: list[int]) -> list[Generated]:
        torch.manual_seed(len(rows))  # no draw may depend on what else was drawn in this process
        return generate(captioner, Embeddings(embedded.values[rows]), ids[rows], None, decoding, seeds=seeds)

    seeds = [seed_of(42, f"{row}.png") for row in range(IMAGES)]
    together = write([*range(IMAGES)], seeds)
    assert write([*range(IMAGES)][::-1], seeds[::-1]) == together[::-1]
    assert write([3], seeds[3:4]) == together[3:4]
    others = write([3] * 5, [seed_of(seed, "3.png") for seed in range(5)])
    assert len({text.raw for text in others}) == (1 if "top_k" in settings else 5), "another seed draws something else"


def test_the_sign_for_an_image_is_never_written(writing_model: tuple[Any, Any], pictures: Tensor) -> None:
    model, processor = writing_model
    model = copy.deepcopy(model)
    with torch.no_grad():  # it would be the likeliest token
        model.lm_head.weight[processor.image_token_id] = 10 * model.lm_head.weight.abs().max()
    captioner = build_captioner(model, processor, device=torch.device("cpu"))
    ids, _ = prompts(processor, padded=False)
    with torch.no_grad():
        embedded = captioner.vision.embed(Pixels(pictures))
    for beams in (1, 3):
        texts = generate(captioner, embedded, ids, None, Decoding(num_beams=beams, max_new_tokens=6))
        assert not any("<image>" in text.raw for text in texts)
