"""Captions as the tokenizer reads them: which are too long for the model, and which hold special tokens."""

from dataclasses import replace
from pathlib import Path

import pytest
from transformers import PreTrainedTokenizerBase

from florence2ner.data.captions import (
    count_tokens,
    drop_overlong,
    longest_captions,
    overlong_note,
    special_tokens_warning,
)
from florence2ner.data.samples import ImageRef, Sample
from florence2ner.errors import UserError
from florence2ner.model.checkpoints.loading import load_model
from florence2ner.model.tasks import TASK_TOKENS


@pytest.fixture(scope="module")
def tokenizer(tiny_model: Path) -> PreTrainedTokenizerBase:
    """Read only."""
    return load_model(tiny_model)[1].tokenizer


def make_samples(*captions: str, task: str = "<CAPTION>") -> list[Sample]:
    return [Sample(ImageRef.at(Path(f"{at}.png")), task, (caption,)) for at, caption in enumerate(captions)]


def test_captions_over_the_limit_are_dropped_and_no_others(tokenizer: PreTrainedTokenizerBase) -> None:
    samples = make_samples("a", "a star", "a star" * 50_000, "a star star")
    lengths = count_tokens([sample.caption for sample in samples], tokenizer)
    assert lengths == [len(tokenizer(sample.caption).input_ids) for sample in samples]
    assert drop_overlong(samples, tokenizer, lengths[1]) == (samples[0], samples[1])
    with pytest.raises(UserError, match="every caption is longer than the 2 tokens that the model can write: shorten"):
        drop_overlong(samples, tokenizer, 2)
    assert drop_overlong([], tokenizer, 2) == ()
    several = [replace(samples[1], captions=("a star", "a star star", "a"))]
    assert drop_overlong(several, tokenizer, lengths[1]) == (replace(samples[1], captions=("a star", "a")),)
    assert longest_captions([*several, samples[0]], tokenizer) == (lengths[3], lengths[0])
    assert overlong_note([*several, samples[2]], [replace(samples[1], captions=("a star",))], 128) == (
        "3 captions are longer than the 128 tokens that the model can write and are left out"
    )
    assert overlong_note(several, several, 128) is None


def test_captions_with_special_tokens_are_counted_and_named(tokenizer: PreTrainedTokenizerBase) -> None:
    plain = make_samples("a < b > c", "<s", "<CAPTION>", "<loc_1 >", "<html>")
    assert special_tokens_warning(plain, tokenizer) is None
    samples = make_samples("a", "one</s>two", "<pad><image> <s>", "a <loc_1><loc_999>", "b</s>")
    assert special_tokens_warning(samples, tokenizer) == (
        "4 captions hold </s>, <image>, <loc_..>, <pad>, <s>, which the model doesn't take for text, but for signs to "
        "itself: 1.png, 2.png, 3.png and 1 more"
    )


@pytest.mark.parametrize(("task", "warned"), [("<CAPTION>", True), ("<OD>", False), ("<MY_OWN>", False)])
def test_places_belong_into_answers_about_places(tokenizer: PreTrainedTokenizerBase, task: str, warned: bool) -> None:
    samples = make_samples("star<loc_1><loc_2><loc_3><loc_4>", task=task)
    assert (special_tokens_warning(samples, tokenizer) is not None) == warned
    assert special_tokens_warning(make_samples("star</s>", task=task), tokenizer) is not None


def test_what_is_warned_of_is_what_the_tokenizer_takes_for_one_token(tokenizer: PreTrainedTokenizerBase) -> None:
    for token in (*tokenizer.all_special_tokens, *TASK_TOKENS):
        assert len(tokenizer(token, add_special_tokens=False).input_ids) == 1
        assert special_tokens_warning(make_samples(f"a{token}b"), tokenizer) is not None
