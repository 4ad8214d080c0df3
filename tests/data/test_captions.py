"""Captions as the tokenizer reads them: which are too long for the model."""

from pathlib import Path

import pytest
from transformers import PreTrainedTokenizerBase

from florence2ner.data.captions import count_tokens, drop_overlong, overlong_note
from florence2ner.data.samples import ImageRef, Sample
from florence2ner.errors import UserError
from florence2ner.model.checkpoints.loading import load_model


@pytest.fixture(scope="module")
def tokenizer(tiny_model: Path) -> PreTrainedTokenizerBase:
    """Read only."""
    return load_model(tiny_model)[1].tokenizer


def make_samples(*captions: str, task: str = "<CAPTION>") -> list[Sample]:
    return [Sample(ImageRef.at(Path(f"{at}.png")), task, (caption,)) for at, caption in enumerate(captions)]


def test_captions_over_the_limit_are_dropped_and_no_others(tokenizer: PreTrainedTokenizerBase) -> None:
    samples = make_samples("a", "a star", "a star" * 50_000, "a star star")
    lengths = count_tokens(samples, tokenizer)
    assert lengths == [len(tokenizer(sample.caption).input_ids) for sample in samples]
    assert drop_overlong(samples, tokenizer, lengths[1]) == (samples[0], samples[1])
    with pytest.raises(UserError, match="every caption is longer than the 2 tokens that the model can write: shorten"):
        drop_overlong(samples, tokenizer, 2)
    assert drop_overlong([], tokenizer, 2) == ()
    assert (
        overlong_note(3, 128) == "3 captions are longer than the 128 tokens that the model can write and are left out"
    )
