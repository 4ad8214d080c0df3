"""The captioning itself: every process takes images from a common heap, asks the model, and writes the answers."""

import itertools
import time
from collections import Counter
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path

import torch
from accelerate import Accelerator
from accelerate.utils import broadcast_object_list, gather_object

from florence2ner.captioning.plan import CaptionSummary, Plan, decoding_settings, make_plan, text_style
from florence2ner.captioning.watch import Watch
from florence2ner.config.commands import CaptionConfig
from florence2ner.data.batch import Batch, Window, expand_prompt
from florence2ner.data.loader import SequentialLoader, resolve_workers
from florence2ner.data.samples import Sample
from florence2ner.display import Display
from florence2ner.engine.loop import run_loop
from florence2ner.engine.memory import Pieces
from florence2ner.engine.queue import SharedCounts
from florence2ner.engine.runtime import autocast_dtype, make_accelerator
from florence2ner.engine.signals import StopSignals
from florence2ner.errors import Interrupted, UserError
from florence2ner.files import append_text, as_utf8, remove_lock, write_text
from florence2ner.model.answers import flag_problems, parse_answer
from florence2ner.model.captioner import Captioner, Decoding, Generated
from florence2ner.model.checkpoints.loading import load_model
from florence2ner.model.tasks import find_task
from florence2ner.outputs.answers import Answer, Content, Question, Record
from florence2ner.outputs.records import json_line

_NAMED = 10  # images named on the way (per process), and in the summary; --failures names all
_rounds = itertools.count()


def run(config: CaptionConfig, plan: Plan | None, display: Display) -> CaptionSummary:
    """Carry out the main process's plan; the others have None. Every process must call this, each gets the summary."""
    accelerator = make_accelerator(config.mixed_precision, seed=0)
    (plan,) = broadcast_object_list([plan])
    assert plan is not None
    if config.dry_run or not (plan.todo or config.watch):
        return CaptionSummary(done=0, kept=plan.kept, failed=0)
    with StopSignals() as signals:
        worker = _Worker(config, accelerator, display, signals)
        if accelerator.is_main_process:
            plan.output.open()
            if config.failures:
                write_text(config.failures, "")
        accelerator.wait_for_everyone()  # what they write to is open
        stopped_by = worker.caption(plan)
        if config.watch:
            stopped_by = _watch(worker, plan, stopped_by)
    if accelerator.is_main_process:
        plan.output.finish()
        if config.failures:
            remove_lock(config.failures)
    summary = _summarise(gather_object([worker.tally]), plan.kept, worker.seconds, display)
    if stopped_by:
        rest = "" if config.watch else "; the same command goes on with the rest"
        raise Interrupted(f"stopped by signal {stopped_by}: what is captioned is on the disk{rest}", signal=stopped_by)
    return summary


def _watch(worker: "_Worker", plan: Plan, stopped_by: int | None) -> int | None:
    """Caption what appears in the folders, until a signal comes: returns it."""
    watch = Watch(worker.config.paths, (image for image, _ in plan.todo))
    worker.display.say(f"watching {', '.join(map(str, worker.config.paths))}: Ctrl-C ends it")
    while not stopped_by:
        found: Plan | int | None = None
        if worker.accelerator.is_main_process:
            new = watch.wait(worker.signals.wait)
            found = make_plan(worker.config, *new) if new else worker.signals.received
        (found,) = broadcast_object_list([found])
        assert found is not None
        stopped_by = worker.caption(found) if isinstance(found, Plan) else found
    return stopped_by


@dataclass
class _Tally:
    """What one process did."""

    done: int = 0
    failures: list[tuple[str, str]] = field(default_factory=list)  # image, reason
    flagged: list[tuple[str, str]] = field(default_factory=list)  # image, what looks wrong


@dataclass(frozen=True)
class _Item:
    """An image of a batch, and what is to be asked about it."""

    image: Path
    size: tuple[int, int]  # width, height in pixels
    questions: tuple[Question, ...]


class _Worker:
    """What one process needs to caption images, and its part of the figures."""

    def __init__(self, config: CaptionConfig, accelerator: Accelerator, display: Display, signals: StopSignals) -> None:
        self.config = config
        self.accelerator = accelerator
        self.display = display
        self.signals = signals
        self.tally = _Tally()
        self.seconds = 0.0  # spent on captioning, not on waiting for images to appear
        model, processor = load_model(
            config.model_name, device=accelerator.device, attn_implementation=config.attn_implementation
        )
        self.captioner = Captioner(model, processor).to(accelerator.device).eval()
        self.captioner.fix_weights(autocast_dtype(accelerator))
        if config.compile:
            self.captioner.compile_model()
        self.tasks = {task.name: task for task in map(find_task, config.task_prompt)}
        self.decoding = Decoding(**decoding_settings(config))
        self.style = text_style(config)
        self.pieces = Pieces(config.batch_size, display.warn)
        self.second_pieces = Pieces(config.batch_size, display.warn)  # more beams, more memory

    def caption(self, plan: Plan) -> int | None:
        """Take images of the plan until none is left. Returns the signal that any process was stopped by, if any."""
        counts = SharedCounts(self.accelerator, f"caption-{next(_rounds)}")
        images = [image for image, _ in plan.todo]
        loader = SequentialLoader(
            [Sample(image, self.config.task_prompt[0]) for image in images],
            self.captioner.processor,
            counts.claim(len(images), self.config.batch_size),
            workers=resolve_workers(self.accelerator, self.config),
            max_pixels=self.config.max_pixels,
        )
        start = time.perf_counter()
        with self.display.bar("captioning", total=len(images)) as bar:

            def show() -> None:
                done = counts.get("done")
                bar.reach(done, images_per_second=f"{done / (time.perf_counter() - start):.1f}")

            def after_step(window: Window, records: list[Record]) -> bool:
                (batch,) = window.batches
                plan.output.write([record for record in records if record.answers])
                self._note(plan, batch, records)
                counts.add("done", len(batch.indices))
                show()
                if self.signals.received and counts.add("signals") == 1:
                    counts.add("stop", self.signals.received)
                return counts.get("stop") > 0

            run_loop(loader, partial(self._step, plan), after_step, device=self.accelerator.device)
            counts.wait_for_all(meanwhile=show)
        self.seconds += time.perf_counter() - start
        return counts.get("stop") or None

    def _step(self, plan: Plan, window: Window) -> list[Record]:
        """Ask about the images of a batch that could be read."""
        (batch,) = window.batches
        start = time.perf_counter()
        pixel_values = batch.pixel_values
        assert pixel_values is not None  # nothing is encoded before
        rows = [row for row, counted in enumerate(batch.counted) if counted]
        todo = [plan.todo[batch.indices[row]] for row in rows]
        items = [_Item(image, batch.sizes[row], questions) for row, (image, questions) in zip(rows, todo, strict=True)]

        def ask(piece: slice) -> list[tuple[Answer, ...]]:
            with torch.no_grad(), self.accelerator.autocast():
                return self._ask(pixel_values[rows[piece]], items[piece])

        answers = self.pieces.run(ask, len(items))
        seconds = (time.perf_counter() - start) / max(len(items), 1)
        return [Record(item.image, item.size, seconds, given) for item, given in zip(items, answers, strict=True)]

    def _ask(self, pixel_values: torch.Tensor, items: Sequence[_Item]) -> list[tuple[Answer, ...]]:
        """All answers for some images, each encoded once."""
        embedded = self.captioner.embed_images(pixel_values)
        answers: list[list[Answer]] = [[] for _ in items]
        for question in dict.fromkeys(question for item in items for question in item.questions):
            wanted = [row for row, item in enumerate(items) if question in item.questions]
            generated = self._generate(question, embedded[wanted], self.decoding)
            flags = [self._flags(question, one) for one in generated]
            doubtful = [i for i, found in enumerate(flags) if found] if self.config.retry else []
            if doubtful:
                again = self._try_again(question, embedded[[wanted[i] for i in doubtful]])
                for i, other in zip(doubtful, again, strict=False):
                    if len(better := self._flags(question, other)) < len(flags[i]):
                        generated[i], flags[i] = other, better
            for row, one, found in zip(wanted, generated, flags, strict=True):
                content = self._content(question, items[row], one)
                if content or question.may_be_empty:
                    answers[row].append(Answer(question, content, found))
        return [tuple(given) for given in answers]

    def _try_again(self, question: Question, embedded: torch.Tensor) -> list[Generated]:
        """Second answers; none where memory doesn't suffice for more beams: the first ones stay."""
        decoding = _second_try(self.decoding)
        with suppress(UserError):
            return self.second_pieces.run(
                lambda piece: self._generate(question, embedded[piece], decoding), len(embedded)
            )
        return []

    def _generate(self, question: Question, embedded: torch.Tensor, decoding: Decoding) -> list[Generated]:
        ids = expand_prompt(self.captioner.processor, question.prompt).to(embedded.device).expand(len(embedded), -1)
        return self.captioner.generate(embedded, ids, None, decoding)

    @staticmethod
    def _flags(question: Question, generated: Generated) -> tuple[str, ...]:
        flags = flag_problems(generated.raw, new_tokens=generated.tokens, limit=generated.limit)
        return tuple(flag for flag in flags if not (flag == "empty" and question.may_be_empty))

    def _content(self, question: Question, item: _Item, generated: Generated) -> Content:
        content = parse_answer(self.tasks[question.name], generated.raw, item.size)
        if isinstance(content, str) and content:
            content = self.style.apply(content, item.image)
        return content

    def _note(self, plan: Plan, batch: Batch, records: Sequence[Record]) -> None:
        """Count what was done, and name what was not."""
        asked = dict(plan.todo[index] for index in batch.indices)
        failures = [(as_utf8(plan.todo[index][0]), reason) for index, reason in batch.failures]
        for record in records:
            if len(record.answers) < len(asked[record.image]):
                failures.append((as_utf8(record.image), "the model wrote nothing"))
                continue
            self.tally.done += 1
            if flags := sorted({flag for answer in record.answers for flag in answer.flags}):
                self.tally.flagged.append((as_utf8(record.image), ", ".join(flags)))
        for image, reason in failures:
            self.tally.failures.append((image, reason))
            if len(self.tally.failures) <= _NAMED:
                self.display.warn(f"{image} is skipped: {reason}")
            elif len(self.tally.failures) == _NAMED + 1:
                self.display.warn("from here on, images that fail are only counted; --failures FILE names them all")
        if failures and self.config.failures:
            lines = (json_line({"path": image, "reason": reason}) for image, reason in failures)
            append_text(self.config.failures, "".join(lines))


def _second_try(first: Decoding) -> Decoding:
    """Other settings for a caption that went wrong: a search that punishes repeating and prefers to come to an end."""
    return replace(
        first,
        num_beams=max(first.num_beams, 3),
        temperature=None,
        top_p=None,
        top_k=None,
        no_repeat_ngram_size=3,
        repetition_penalty=1.3,
        length_penalty=-1.0,
    )


def _summarise(tallies: Sequence[_Tally], kept: int, seconds: float, display: Display) -> CaptionSummary:
    """Add up the processes' tallies and print them."""
    failures = [failure for tally in tallies for failure in tally.failures]
    flagged = [flag for tally in tallies for flag in tally.flagged]
    done = sum(tally.done for tally in tallies)
    display.say(f"{done} captioned, {kept} kept, {len(failures)} failed ({done / seconds:.1f} images/s)")
    for reason, number in Counter(reason for _, reason in failures).most_common(_NAMED):
        display.say(f"  failed: {number} x {reason}")
    if flagged:
        display.say(f"{len(flagged)} captions look wrong even after a second try:")
        for image, flags in flagged[:_NAMED]:
            display.say(f"  {image}: {flags}")
        if len(flagged) > _NAMED:
            display.say(f"  and {len(flagged) - _NAMED} more")
    return CaptionSummary(done=done, kept=kept, failed=len(failures), flagged=len(flagged))
