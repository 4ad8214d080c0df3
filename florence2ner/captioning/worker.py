"""Carries out a captioning plan: processes take images from a work queue, ask the model, write the answers."""

import itertools
import math
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import torch
from accelerate import Accelerator
from accelerate.utils import broadcast_object_list, gather_object

from florence2ner.captioning.asking import Asker
from florence2ner.captioning.plan import CaptionPlan, CaptionSummary, text_style
from florence2ner.captioning.report import write_report
from florence2ner.captioning.watch import Watch
from florence2ner.config.commands import CaptionConfig
from florence2ner.data.batch import Batch, Window
from florence2ner.data.loader import SequentialLoader, Workers
from florence2ner.data.samples import ImageRef, Sample
from florence2ner.display import Display
from florence2ner.engine.collectives import lost_process_in_one_line
from florence2ner.engine.loop import run_loop
from florence2ner.engine.memory import AdaptiveBatch
from florence2ner.engine.queue import WorkQueue
from florence2ner.engine.run_files import find_model
from florence2ner.engine.runtime import autocast_dtype, make_accelerator, precision_note
from florence2ner.engine.signals import StopSignals
from florence2ner.errors import Interrupted
from florence2ner.files import append_text, as_utf8, remove_lock, write_text
from florence2ner.model.answers import parse_answer
from florence2ner.model.build import load_captioner
from florence2ner.model.checkpoints.loading import quiet_transformers, width_of
from florence2ner.model.checkpoints.processing import expand_prompt
from florence2ner.model.generation import Generated
from florence2ner.model.inputs import Embeddings, Pixels
from florence2ner.model.tasks import find_task
from florence2ner.outputs.answers import Answer, Content, Failure, Question, Record
from florence2ner.outputs.forms import json_line
from florence2ner.report.captions import Gallery
from florence2ner.report.thumbnails import MOST_PICTURES

_SIGPIPE = 13  # Windows has no name for it
_NAMED = 10  # most failed images named while a process runs, and most lines of a kind in the summary
GO_ON = "the same command goes on with the rest"
_rounds = itertools.count()  # numbers the work queues, the same in all processes


@quiet_transformers()
@lost_process_in_one_line(lambda: GO_ON)
def run(config: CaptionConfig, plan: CaptionPlan | None, watch: Watch | None, display: Display) -> CaptionSummary:
    """Carry out `plan`, which the main process has and the others receive from it, and go on with what `watch` finds.

    The others pass None for both.

    Every process must call this; each gets the whole summary. Raises Interrupted after SIGINT or SIGTERM, UserError
    where a process was lost, and BrokenPipeError where nobody reads standard output any more.
    """
    accelerator = make_accelerator(
        config.mixed_precision, seed=config.seed, width=partial(width_of, find_model(config.model_name))
    )
    (plan,) = broadcast_object_list([plan])
    assert plan is not None
    if config.dry_run or not (plan.todo or config.watch):
        return CaptionSummary(done=0, kept=plan.kept, failed=0)
    if note := precision_note(config.mixed_precision):
        display.say(f"note: {note}")
    with StopSignals() as signals:
        worker = Worker(config, accelerator, display, signals)
        if accelerator.is_main_process:
            plan.output.open()
            if config.failures:
                write_text(config.failures, "")
        accelerator.wait_for_everyone()  # until the main process has opened the output
        stopped_by = worker.caption(plan)
        if config.watch:
            stopped_by = _watch(worker, watch, stopped_by)
    if accelerator.is_main_process:
        plan.output.finish()
        if config.failures:
            remove_lock(config.failures)
    write_report(config, worker.gallery, display)
    if stopped_by == _SIGPIPE:
        raise BrokenPipeError
    summary = summarise(
        gather_object([worker.tally]), kept=plan.kept, seconds=worker.seconds, retry=config.retry, display=display
    )
    if stopped_by:
        rest = "" if config.watch else f"; {GO_ON}"
        raise Interrupted(f"stopped by signal {stopped_by}: what is captioned is on the disk{rest}", signal=stopped_by)
    return summary


def _watch(worker: "Worker", watch: Watch | None, stopped_by: int | None) -> int | None:
    """Caption images that appear in the folders, until a signal comes. Returns that signal."""
    worker.display.say(f"watching {', '.join(map(str, worker.config.paths))}: Ctrl-C ends it")
    while not stopped_by:
        (found,) = broadcast_object_list([_await_round(worker, watch)])
        stopped_by = worker.caption(found) if isinstance(found, CaptionPlan) else found
    return stopped_by


def _await_round(worker: "Worker", watch: Watch | None) -> CaptionPlan | int | None:
    """Wait until there are new images or a signal. Returns a plan or the signal in the main process, else None.

    No collective operation, which would give up after a while: the main process looks for images, the others for word
    from it. Any of them may be the one that gets the signal.
    """
    signals = worker.signals
    with WorkQueue(worker.accelerator, f"watch-{next(_rounds)}") as queue:
        if watch is None:  # not the main process
            queue.wait_until(lambda: queue.get("over") > 0, meanwhile=lambda: signals.tell(queue))
            return None

        def pause(seconds: float) -> bool:
            queue.wait_until(lambda: signals.tell(queue) is not None, limit=seconds)
            return signals.told(queue) is not None

        new = watch.wait(pause)
        found = watch.plan(*new, worker.refuse) if new else signals.told(queue)
        queue.add("over")
        return found


@dataclass
class Tally:
    """What one process has done: images captioned, failed and flagged."""

    done: int = 0
    failures: list[tuple[str, str]] = field(default_factory=list)  # image, reason
    flagged: list[tuple[str, str]] = field(default_factory=list)  # image, what looks wrong


@dataclass(frozen=True)
class _Item:
    """An image of a batch, and the questions to ask about it."""

    image: Path
    size: tuple[int, int]  # (width, height) of the upright image in pixels
    questions: tuple[Question, ...]


class Worker:
    """The model and settings with which one process captions images, and the tally of what it has done."""

    def __init__(self, config: CaptionConfig, accelerator: Accelerator, display: Display, signals: StopSignals) -> None:
        self.config = config
        self.accelerator = accelerator
        self.display = display
        self.signals = signals
        self.tally = Tally()
        self.workers = Workers.for_device(
            accelerator.device,
            processes=config.dataloader_workers,
            prefetch=config.dataloader_prefetch,
            pin_memory=config.pin_memory,
        )
        self.seconds = 0.0  # spent on captioning, without waiting for images to appear
        (model_name,) = broadcast_object_list([find_model(config.model_name)])  # a run may find a better one meanwhile
        if model_name != config.model_name:
            display.say(f"captioning with {model_name}")
        self.captioner = load_captioner(
            model_name,
            attn_implementation=config.attn_implementation,
            device=accelerator.device,
            dtype=autocast_dtype(accelerator),
            compiled=config.compile,
        )
        self.tasks = {task.name: task for task in map(find_task, config.task_prompt)}
        batch_size = config.batch_size
        self.asker = Asker(self.captioner, config, seed=config.seed, batch_size=batch_size, notify=display.warn)
        self.style = text_style(config)
        self.batch = AdaptiveBatch(batch_size, display.warn)
        most = -(-MOST_PICTURES // accelerator.num_processes)
        self.gallery = Gallery(most, max_pixels=config.max_pixels) if config.report else None

    def caption(self, plan: CaptionPlan) -> int | None:
        """Caption images of the plan until all processes are done. Returns the signal that stopped them, if any.

        Every process must call this.
        """
        images = [ImageRef.at(image) for image, _ in plan.todo]
        start = time.perf_counter()
        with (
            self._compiled(len(images)),
            WorkQueue(self.accelerator, f"caption-{next(_rounds)}") as queue,
            self.display.bar("captioning", total=len(images)) as bar,
        ):

            def show() -> None:
                done = queue.get("done")
                bar.reach(done, images_per_second=f"{done / (time.perf_counter() - start):.1f}")

            size = self.config.batch_size
            share = math.ceil(len(images) / (size * self.accelerator.num_processes))
            self.work(queue, plan, images, queue.claim(len(images), size), show, share=share)

            def meanwhile() -> None:
                show()
                if self.signals.received:
                    queue.hurry()

            queue.wait_for_all(meanwhile)
            self.seconds += time.perf_counter() - start
            return self.signals.told(queue)

    @contextmanager
    def _compiled(self, images: int) -> Iterator[None]:
        """A context manager in which the vision tower runs compiled, where that pays for this process's share."""
        share = 0 if self.config.compile else images // self.accelerator.num_processes
        with ExitStack() as stack:
            with torch.no_grad(), self.accelerator.autocast():
                compiled = self.captioner.vision.compiled_for(share, say=self.display.say, warn=self.display.warn)
                stack.enter_context(compiled)
            yield

    def work(
        self,
        queue: WorkQueue,
        plan: CaptionPlan,
        images: Sequence[ImageRef],
        batches: Iterable[Sequence[int]],
        show: Callable[[], object],
        *,
        share: int,
    ) -> None:
        """Caption batches of `images`, which are those of the plan, until there are no more or a signal came.

        `batches` lists the indices of each batch's images, and is likely to give `share` batches. What is done is
        counted in the queue, then `show` is called.
        """
        loader = SequentialLoader(
            [Sample(image, "") for image in images],
            self.captioner.processor,
            batches,
            text=False,
            workers=self.workers.for_share(share),
            max_pixels=self.config.max_pixels,
        )

        def after_step(window: Window, records: list[Record]) -> bool:
            (batch,) = window.batches
            refused: Sequence[Failure] = ()
            try:
                refused = plan.output.write([record for record in records if record.answers])
            except BrokenPipeError:  # as a signal, so that the other processes stop, too
                self.signals.received = _SIGPIPE
            self._note(plan, batch, records, dict(refused))
            if self.gallery is not None:
                kept = {images[index].path: images[index] for index in batch.indices}
                for record in records:
                    self.gallery.add(kept[record.image], record.size, record.answers)
            queue.add("done", len(batch.indices))
            show()
            return self.signals.tell(queue) is not None

        run_loop(loader, partial(self._step, plan), after_step)

    def _step(self, plan: CaptionPlan, window: Window) -> list[Record]:
        """The answers about those images of a batch that could be read."""
        batch = window.batches[0].to(self.accelerator.device)
        start = time.perf_counter()
        images = batch.images
        assert isinstance(images, Pixels)  # captioning has no feature cache
        rows = [row for row, valid in enumerate(batch.valid) if valid]
        todo = [plan.todo[batch.indices[row]] for row in rows]
        items = [_Item(image, batch.sizes[row], questions) for row, (image, questions) in zip(rows, todo, strict=True)]

        def ask(part: slice) -> list[tuple[Answer, ...]]:
            with torch.no_grad(), self.accelerator.autocast():
                return self._ask(Pixels(images.values[rows[part]]), items[part])

        answers = self.batch.run(ask, len(items))
        seconds = (time.perf_counter() - start) / max(len(items), 1)
        return [Record(item.image, item.size, seconds, given) for item, given in zip(items, answers, strict=True)]

    def _ask(self, pixels: Pixels, items: Sequence[_Item]) -> list[tuple[Answer, ...]]:
        """The answers to all questions about some images. Each image is encoded only once."""
        embedded = self.captioner.vision.embed(pixels).values
        answers: list[list[Answer]] = [[] for _ in items]
        for question in dict.fromkeys(question for item in items for question in item.questions):
            rows = [row for row, item in enumerate(items) if question in item.questions]
            ids = expand_prompt(self.captioner.processor, question.prompt).to(embedded.device).expand(len(rows), -1)
            names = [as_utf8(items[row].image.name) for row in rows]
            may_be_empty = question.may_be_empty
            texts = self.asker.ask(Embeddings(embedded[rows]), ids, None, names=names, may_be_empty=may_be_empty)
            for row, text in zip(rows, texts, strict=True):
                content = self._content(question, items[row], text)
                if content or may_be_empty:
                    answers[row].append(Answer(question, content, text.flags(may_be_empty=may_be_empty)))
        return [tuple(given) for given in answers]

    def _content(self, question: Question, item: _Item, generated: Generated) -> Content:
        content = parse_answer(self.tasks[question.name], generated.raw, item.size)
        if isinstance(content, str) and content:
            content = self.style.apply(content, item.image)
        return content

    def _note(self, plan: CaptionPlan, batch: Batch, records: Sequence[Record], refused: Mapping[Path, str]) -> None:
        """Add a batch to the tally, and report its failures; `refused` are images whose answers can't be written."""
        asked = dict(plan.todo[index] for index in batch.indices)
        failures = [(as_utf8(plan.todo[index][0]), reason) for index, reason in batch.failures]
        for record in records:
            if reason := refused.get(record.image):
                failures.append((as_utf8(record.image), reason))
                continue
            if len(record.answers) < len(asked[record.image]):
                failures.append((as_utf8(record.image), "the model wrote nothing"))
                continue
            self.tally.done += 1
            if flags := sorted({flag for answer in record.answers for flag in answer.flags}):
                self.tally.flagged.append((as_utf8(record.image), ", ".join(flags)))
        self._fail(failures)

    def refuse(self, image: Path | str, reason: str) -> None:
        """Report that an image, or a shard, is not captioned."""
        self._fail([(as_utf8(image), reason)])

    def _fail(self, failures: Sequence[tuple[str, str]]) -> None:
        for image, reason in failures:
            self.tally.failures.append((image, reason))
            if len(self.tally.failures) <= _NAMED:
                self.display.warn(f"{image} is skipped: {reason}")
            elif len(self.tally.failures) == _NAMED + 1:
                self.display.warn("from here on, images that fail are only counted; --failures FILE names them all")
        if failures and self.config.failures:
            lines = (json_line({"path": image, "reason": reason}) for image, reason in failures)
            append_text(self.config.failures, "".join(lines))


def summarise(tallies: Sequence[Tally], *, kept: int, seconds: float, retry: bool, display: Display) -> CaptionSummary:
    """Add up the processes' tallies and print them; `retry` is that of the settings."""
    failures = [failure for tally in tallies for failure in tally.failures]
    flagged = [flag for tally in tallies for flag in tally.flagged]
    done = sum(tally.done for tally in tallies)
    display.say(f"{done} captioned, {kept} kept, {len(failures)} failed ({done / seconds:.1f} images/s)")
    for reason, number in Counter(reason for _, reason in failures).most_common(_NAMED):
        display.say(f"  failed: {number} x {reason}")
    if flagged:
        display.say(f"{len(flagged)} captions look wrong{' even after a second try' if retry else ''}:")
        for image, flags in flagged[:_NAMED]:
            display.say(f"  {image}: {flags}")
        if len(flagged) > _NAMED:
            display.say(f"  and {len(flagged) - _NAMED} more")
    return CaptionSummary(done=done, kept=kept, failed=len(failures), flagged=len(flagged))
