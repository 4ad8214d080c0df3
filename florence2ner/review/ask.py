"""Asks a model for other captions of an image, one question after another, while the page goes on. Imports no torch."""

import itertools
import queue
import threading
from collections import OrderedDict
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

from pydantic import BaseModel, ConfigDict, Field

from florence2ner.config.commands import ReviewConfig
from florence2ner.data.samples import ImageRef
from florence2ner.errors import UserError
from florence2ner.model.tasks import find_task, prompt_of
from florence2ner.review.library import FLAGS

_KEPT = 32  # jobs whose answers can be read
_TASKS = ("<CAPTION>", "<DETAILED_CAPTION>", "<MORE_DETAILED_CAPTION>")
_WARM = 0.8  # temperature of the answer that is sampled


class Question(BaseModel):
    """What to ask about an image, and how the answer is generated."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    task: str = Field(min_length=1, max_length=1000)
    beams: int = Field(3, ge=1, le=16)
    temperature: float | None = Field(None, gt=0, le=5)

    @property
    def words(self) -> str:
        """The question, for the user."""
        if self.temperature is not None:
            return f"{self.task} sampled at {self.temperature:g}"
        return f"{self.task} {'greedy' if self.beams == 1 else f'{self.beams} beams'}"


@dataclass
class Job:
    """Questions about one image, and the answers so far."""

    number: int
    image: ImageRef
    questions: Sequence[Question]
    answers: list[dict[str, Any]] = field(default_factory=list)
    state: str = "waiting"  # then loading, answering, done or failed
    reason: str = ""  # why it failed

    def as_json(self) -> dict[str, Any]:
        """The job as the page gets it."""
        return {
            "job": self.number,
            "state": self.state,
            "reason": self.reason,
            "asked": len(self.questions),
            "answers": self.answers,
        }


class Answering(Protocol):
    """A model that answers."""

    def answer(self, image: ImageRef, question: Question, seed: int) -> tuple[str, tuple[str, ...]]:
        """A text and the flags of what looks wrong with it. Raises UserError and ImageError."""


class Asking:
    """A queue of jobs, and a thread with the model, which is loaded at the first of them."""

    def __init__(self, config: ReviewConfig, load: Callable[[ReviewConfig], Answering]) -> None:
        """`load` loads the model that the settings name; it may raise UserError."""
        self._config = config
        self._load = load
        self._jobs: OrderedDict[int, Job] = OrderedDict()
        self._numbers = itertools.count(1)
        self._queue: queue.SimpleQueue[Job] = queue.SimpleQueue()
        self._thread: threading.Thread | None = None
        self._lock = threading.Lock()

    @property
    def model_name(self) -> str | None:
        """The model that is asked; None: there is none."""
        return self._config.model_name

    @property
    def tasks(self) -> list[str]:
        """The tasks that the page offers."""
        return list(dict.fromkeys((self._config.task_prompt, *_TASKS)))

    @property
    def beams(self) -> int:
        """The beams that answers have where nothing else is said."""
        return min(self._config.num_beams, 16)

    def usual(self) -> list[Question]:
        """What is asked where nothing is said: every task, and once more with a temperature."""
        asked = [Question(task=task, beams=self.beams) for task in self.tasks]
        return [*asked, Question(task=self.tasks[0], beams=1, temperature=_WARM)]

    def ask(self, image: ImageRef, questions: Sequence[Question]) -> Job:
        """Ask about an image. Raises UserError where there is no model, and for a task that needs more than a token."""
        if self._config.model_name is None:
            raise UserError("no model is asked: start florence2ner review with --model-name")
        for question in questions:
            prompt_of(find_task(question.task))
        with self._lock:
            job = Job(next(self._numbers), image, questions)
            self._jobs[job.number] = job
            while len(self._jobs) > _KEPT:
                self._jobs.popitem(last=False)
            if self._thread is None:
                self._thread = threading.Thread(target=self._work, daemon=True)
                self._thread.start()
        self._queue.put(job)
        return job

    def job(self, number: int) -> Job | None:
        """A job by its number; None for one that is kept no longer."""
        return self._jobs.get(number)

    def _work(self) -> None:
        model: Answering | None = None
        while True:
            job = self._queue.get()
            try:
                if model is None:
                    job.state = "loading"
                    model = self._load(self._config)
                job.state = "answering"
                for question in job.questions:
                    # Another number each time: who asks again wants another answer.
                    text, flags = model.answer(job.image, question, self._config.seed + job.number)
                    names = [FLAGS.get(flag, flag.replace("_", " ")) for flag in flags]
                    job.answers.append({"question": question.words, "text": text, "flags": names})
                job.state = "done"
            except Exception as error:  # whatever a model or an image does, the page is told, and goes on
                job.reason, job.state = " ".join(str(error).split()) or type(error).__name__, "failed"
