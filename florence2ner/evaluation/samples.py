"""Computes the loss of samples, and captions for them, divided among all processes; used by eval and train."""

import itertools
import math
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass

import torch
from accelerate import Accelerator
from accelerate.utils import gather_object

from florence2ner.captioning.asking import Asker
from florence2ner.config.options import GenerationOptions
from florence2ner.data.batch import Batch, FeatureSource, Window
from florence2ner.data.loader import SequentialLoader, Workers
from florence2ner.data.order import deal
from florence2ner.data.samples import Sample
from florence2ner.display import Display
from florence2ner.engine.loop import run_loop
from florence2ner.engine.memory import AdaptiveBatch
from florence2ner.engine.queue import WorkQueue
from florence2ner.errors import UserError
from florence2ner.evaluation.result import Evaluation, summarise
from florence2ner.evaluation.rows import Row
from florence2ner.files import as_utf8
from florence2ner.metrics.names import MetricName
from florence2ner.model.captioner import Captioner
from florence2ner.model.generation import Generated
from florence2ner.model.inputs import IGNORE_INDEX, Encoded, Pixels
from florence2ner.model.tasks import find_task

_rounds = itertools.count()  # numbers the work queues, the same in all processes


@dataclass(frozen=True)
class _Found:
    """What was found out about one sample."""

    index: int
    nats: float  # summed over its label tokens
    tokens: int
    answer: Generated | None


@dataclass(frozen=True)
class _BatchResult:
    found: tuple[_Found, ...]
    unreadable: tuple[int, ...]  # indices of samples whose image could not be read


def evaluate_samples(
    accelerator: Accelerator,
    display: Display,
    captioner: Captioner,
    samples: Sequence[Sample],
    *,
    generation: GenerationOptions,
    seed: int,
    batch_size: int,
    workers: Workers,
    metrics: Sequence[MetricName] = (),
    captions: int | None = None,
    features: FeatureSource | None = None,
    give_up: Callable[[], bool] = lambda: False,
) -> Evaluation | None:
    """Compute the loss over all samples, and generate captions for the first `captions` images (None: for all).

    Samples of one image and task are asked once, and all of their captions are references. `metrics`: those to compute,
    see `names_for`. Every process must call this: the samples are divided among them, and each gets the whole result.
    Leaves the captioner in evaluation mode. `give_up` is called after each batch; when it returns True in any process,
    the result is None. Raises UserError when no image can be read.
    """
    asked = _asked(samples, captions)
    asker = Asker(captioner, generation, seed=seed, batch_size=batch_size, notify=display.warn)
    batch = AdaptiveBatch(batch_size, display.warn)
    step = _EvaluationStep(accelerator, captioner, asker, batch, samples, asked)
    batches = deal(len(samples), batch_size, process=accelerator.process_index, processes=accelerator.num_processes)
    loader = SequentialLoader(samples, captioner.processor, batches, workers=workers, features=features)
    results: list[_BatchResult] = []
    captioner.eval()
    with (
        WorkQueue(accelerator, f"evaluate-{next(_rounds)}") as queue,
        display.bar("evaluating", total=len(batches)) as bar,
    ):

        def after_step(window: Window, result: _BatchResult) -> bool:
            results.append(result)
            for index, reason in window.batches[0].failures:
                display.warn(f"{samples[index].image} is left out of the evaluation: {reason}")
            bar.advance()
            return give_up()

        run_loop(loader, step, after_step)
        queue.wait_for_all()  # by signs of life: captions of one process may take long, another may be lost
    gathered = gather_object([(results, give_up())])
    if any(gave_up for _, gave_up in gathered):
        return None
    return _summarise([result for part, _ in gathered for result in part], samples, metrics)


def _asked(samples: Sequence[Sample], captions: int | None) -> frozenset[int]:
    """The indices of the samples to generate captions for: the first of each image and task, up to that number."""
    first: dict[tuple[str, str], int] = {}
    for index, sample in enumerate(samples):
        first.setdefault((sample.image.key, sample.task_prompt), index)
    return frozenset(itertools.islice(first.values(), captions))


class _EvaluationStep:
    """A step of the loop: the loss of a batch, and captions for those of its samples with an index in `asked`."""

    def __init__(
        self,
        accelerator: Accelerator,
        captioner: Captioner,
        asker: Asker,
        batch: AdaptiveBatch,
        samples: Sequence[Sample],
        asked: Collection[int],
    ) -> None:
        self._accelerator = accelerator
        self._captioner = captioner
        self._asker = asker
        self._samples = samples
        self._batch = batch
        self._asked = asked
        self._may_be_empty = all(find_task(sample.task_prompt).may_be_empty for sample in samples)

    def __call__(self, window: Window) -> _BatchResult:
        (batch,) = window.batches
        rows = self._batch.run(lambda part: self._rows(batch.rows(part)), len(batch.valid))
        found = tuple(row for row, is_valid in zip(rows, batch.valid, strict=True) if is_valid)
        return _BatchResult(found, tuple(index for index, _ in batch.failures))

    def _rows(self, batch: Batch) -> list[_Found]:
        """The loss of each sample, and its caption where one is wanted."""
        batch = batch.to(self._accelerator.device)
        assert batch.text is not None
        vision = self._captioner.vision
        with torch.no_grad(), self._accelerator.autocast():
            images = vision.resolve(batch.images)
            if isinstance(images, Pixels):
                images = vision.encode(images)  # here, so that loss and captions share it
            losses = self._captioner(images, batch.text).sum(dim=1)
            wanted = [i for i, index in enumerate(batch.indices) if index in self._asked and batch.valid[i]]
            written = self._write(type(images)(images.values[wanted]), batch, wanted) if wanted else []
        tokens = (batch.text.labels != IGNORE_INDEX).sum(dim=1)
        answers = dict(zip(wanted, written, strict=True))
        numbers = zip(batch.indices, losses.tolist(), tokens.tolist(), strict=True)
        return [_Found(index, nats, count, answers.get(i)) for i, (index, nats, count) in enumerate(numbers)]

    def _write(self, images: Encoded, batch: Batch, rows: list[int]) -> list[Generated]:
        text = batch.text
        assert text is not None
        names = [as_utf8(self._samples[batch.indices[row]].image.path.name) for row in rows]
        mask = None if text.attention_mask is None else text.attention_mask[rows]
        embedded = self._captioner.vision.embed(images)
        return self._asker.ask(embedded, text.input_ids[rows], mask, names=names, may_be_empty=self._may_be_empty)


def _summarise(results: Sequence[_BatchResult], samples: Sequence[Sample], metrics: Sequence[MetricName]) -> Evaluation:
    found = sorted((row for result in results for row in result.found), key=lambda row: row.index)
    if not any(row.tokens for row in found):
        raise UserError("none of the images to evaluate on can be read")
    groups: dict[tuple[str, str], list[_Found]] = {}
    for row in found:
        sample = samples[row.index]
        groups.setdefault((sample.image.key, sample.task_prompt), []).append(row)
    unreadable = dict.fromkeys(samples[index].image.key for result in results for index in result.unreadable)
    rows = [_row(group, samples) for group in groups.values()]
    return summarise(rows, metrics, samples=len(found), unreadable=tuple(unreadable))


def _row(group: Sequence[_Found], samples: Sequence[Sample]) -> Row:
    """All that was found out about one image and task."""
    first = samples[group[0].index]
    answer = next((found.answer for found in group if found.answer), None)
    may_be_empty = find_task(first.task_prompt).may_be_empty
    return Row(
        image=first.image.key,
        task_prompt=first.task_prompt,
        references=tuple(dict.fromkeys(text for found in group for text in samples[found.index].captions)),
        nats=math.fsum(found.nats for found in group),
        tokens=sum(found.tokens for found in group),
        prediction=answer.text if answer else None,
        flags=answer.flags(may_be_empty=may_be_empty) if answer else (),
    )
