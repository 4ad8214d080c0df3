"""Asking a model: questions in a queue, answers as they come, and what goes wrong is told."""

import threading
from pathlib import Path

import pytest

from florence2ner.config.commands import ReviewConfig
from florence2ner.data.samples import ImageRef
from florence2ner.errors import UserError
from florence2ner.review.ask import Asking, Job, Question
from florence2ner.review.model import Model


def finished(asking: Asking, job: Job) -> Job:
    """The job when it is done. Its thread does one after the other: another job's end follows its own."""
    ended = threading.Event()
    for _ in range(6000):
        if job.state in ("done", "failed"):
            return job
        ended.wait(0.02)
    raise AssertionError(job)


def test_what_is_asked_where_nothing_is_said(photos: Path) -> None:
    asking = Asking(ReviewConfig(directory=photos, task_prompt="<MORE_DETAILED_CAPTION>", num_beams=4), Model)
    assert [question.words for question in asking.usual()] == [
        "<MORE_DETAILED_CAPTION> 4 beams",
        "<CAPTION> 4 beams",
        "<DETAILED_CAPTION> 4 beams",
        "<MORE_DETAILED_CAPTION> sampled at 0.8",
    ]


def test_without_a_model_nothing_is_asked(photos: Path) -> None:
    with pytest.raises(UserError, match="start florence2ner review with --model-name"):
        Asking(ReviewConfig(directory=photos), Model).ask(ImageRef.at(photos / "0.png"), [Question(task="<CAPTION>")])


def test_a_task_that_needs_a_text_is_refused(photos: Path) -> None:
    asking = Asking(ReviewConfig(directory=photos, model_name="x"), Model)
    with pytest.raises(UserError, match="asks about a text"):
        asking.ask(ImageRef.at(photos / "0.png"), [Question(task="<CAPTION_TO_PHRASE_GROUNDING>")])


def test_a_model_that_is_not_there_is_told_and_asked_again(photos: Path) -> None:
    asking = Asking(ReviewConfig(directory=photos, model_name="nowhere/at-all"), Model)
    for _ in range(2):
        job = finished(asking, asking.ask(ImageRef.at(photos / "0.png"), [Question(task="<CAPTION>")]))
        assert job.as_json()["state"] == "failed"
        assert "can't find the model nowhere/at-all" in job.reason


@pytest.mark.slow
def test_answers_come_one_after_the_other(photos: Path, trained_model: Path) -> None:
    settings = {"directory": photos, "model_name": str(trained_model), "max_new_tokens": 16}
    asking = Asking(ReviewConfig.model_validate(settings), Model)
    good, broken = ImageRef.at(photos / "0.png"), ImageRef.at(photos / "1.png")
    (photos / "1.png").write_bytes(b"no picture")
    warm = [Question(task="<CAPTION>", temperature=1.5)]
    jobs = [asking.ask(image, questions) for image, questions in ((broken, warm), (good, asking.usual()), (good, warm))]
    assert finished(asking, jobs[0]).reason == "not an image that can be read"
    assert len(finished(asking, jobs[1]).answers) == 4
    answer = jobs[1].answers[0]
    assert answer["question"] == "<CAPTION> 3 beams"
    assert answer["text"]
    assert finished(asking, jobs[2]).state == "done"
    assert asking.job(jobs[2].number) is jobs[2]
    assert asking.job(99) is None
