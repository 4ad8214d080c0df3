"""Captions as the tokenizer reads them: which are too long for the model, and which hold special tokens."""

from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from transformers import PreTrainedTokenizerBase

from florence2ner.data.captions import (
    Fitted,
    count_tokens,
    fit_captions,
    longest_captions,
    overlong_note,
    shorten,
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


def test_captions_over_the_limit_are_left_out_and_no_others(tokenizer: PreTrainedTokenizerBase) -> None:
    samples = make_samples("a", "a star", "a star" * 50_000, "a star star")
    lengths = count_tokens([sample.caption for sample in samples], tokenizer)
    assert lengths == [len(tokenizer(sample.caption).input_ids) for sample in samples]
    assert fit_captions(samples, tokenizer, lengths[1]) == Fitted((samples[0], samples[1]), left_out=2)
    for too_long in ("skip", "truncate"):
        with pytest.raises(UserError, match="every caption is longer than the 2 tokens that the model can write: shor"):
            fit_captions(samples, tokenizer, 2, too_long)
    assert fit_captions([], tokenizer, 2).samples == ()
    several = [replace(samples[1], captions=("a star", "a star star", "a"))]
    fitted = fit_captions(several, tokenizer, lengths[1])
    assert fitted == Fitted((replace(samples[1], captions=("a star", "a")),), left_out=1)
    assert longest_captions([*several, samples[0]], tokenizer) == (lengths[3], lengths[0])
    assert overlong_note([fitted, Fitted((), 1, 3)], 128) == (
        "2 captions are longer than the 128 tokens that the model can write and are left out; "
        "3 captions are longer than the 128 tokens that the model can write and are cut"
    )
    assert overlong_note([Fitted(())], 128) is None


def test_captions_over_the_limit_are_cut_after_a_word(tokenizer: PreTrainedTokenizerBase) -> None:
    samples = make_samples("a red star", "a red star, a blue square and a green circle", "star" * 40)
    limit = len(tokenizer("a red star, a blue").input_ids)
    fitted = fit_captions(samples, tokenizer, limit, "truncate")
    cut = [sample.caption for sample in fitted.samples]
    assert cut[:2] == ["a red star", "a red star, a blue"]
    assert samples[2].caption.startswith(cut[2])
    assert fitted.cut == 2
    before_the_comma = len(tokenizer("a red star,").input_ids)
    assert shorten("a red star, a blue", "<CAPTION>", tokenizer, before_the_comma) == "a red star", (
        "no comma at the end"
    )
    with pytest.raises(
        UserError, match=r"^2 captions are longer than the \d+ tokens .*: 1.png, 2.png; shorten them, or"
    ):
        fit_captions(samples, tokenizer, limit, "refuse")


@given(text=st.text(st.characters(codec="utf-8"), min_size=1, max_size=80), limit=st.integers(3, 40))
def test_what_is_cut_fits(tokenizer: PreTrainedTokenizerBase, text: str, limit: int) -> None:
    cut = shorten(text.strip(), "<CAPTION>", tokenizer, limit)
    assert text.strip().startswith(cut)
    assert not cut or len(tokenizer(cut).input_ids) <= limit


def test_answers_with_places_are_cut_after_a_whole_object(tokenizer: PreTrainedTokenizerBase) -> None:
    objects = [f"star<loc_{n}><loc_2><loc_3><loc_4>" for n in range(5)]
    two = "".join(objects[:2])
    limit = len(tokenizer(two).input_ids)
    for more in range(3):
        assert shorten("".join(objects), "<OD>", tokenizer, limit + more) == two
    assert shorten("".join(objects), "<OD>", tokenizer, 4) == ""


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
