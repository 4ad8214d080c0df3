"""The model behind the page: its answers are those of `caption`, and other settings give others."""

from pathlib import Path

import pytest

from florence2ner.config.commands import ReviewConfig
from florence2ner.data.samples import ImageRef
from florence2ner.review.ask import Question
from florence2ner.review.model import Model
from tests.conftest import Caption


@pytest.mark.slow
def test_an_answer_is_what_caption_writes(photos: Path, trained_model: Path, images: Path, run: Caption) -> None:
    run()
    settings = {"directory": photos, "model_name": str(trained_model), "max_new_tokens": 16, "retry": False}
    model = Model(ReviewConfig.model_validate(settings))
    image = ImageRef.at(images / "0.png")
    text, _ = model.answer(image, Question(task="<CAPTION>", beams=1), seed=1)
    assert text == (images / "0.txt").read_text().strip()
    sampled = {model.answer(image, Question(task="<CAPTION>", temperature=2.0), seed)[0] for seed in range(6)}
    assert len(sampled) > 1
    other = ImageRef.at(images / "1.png")
    assert model.answer(other, Question(task="<CAPTION>", beams=1), 1)[0] == (images / "1.txt").read_text().strip()
