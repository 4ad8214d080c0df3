"""Captions tar shards: processes take whole shards, and a run that was stopped goes on within each of them."""

import time
from collections.abc import Callable, Generator, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, closing
from functools import partial
from itertools import islice, takewhile
from pathlib import Path, PurePosixPath
from threading import Event

from accelerate import Accelerator
from accelerate.utils import broadcast_object_list, gather_object

from florence2ner.captioning.plan import CaptionPlan, CaptionSummary, ShardPlan
from florence2ner.captioning.report import write_report
from florence2ner.captioning.worker import GO_ON, Worker, summarise
from florence2ner.config.commands import CaptionConfig
from florence2ner.config.options import ReadingOptions
from florence2ner.config.roots import is_remote
from florence2ner.data.samples import ImageRef
from florence2ner.data.shards import Faults, read_shard
from florence2ner.display import Display
from florence2ner.engine.collectives import check_shared, lost_process_in_one_line
from florence2ner.engine.queue import WorkQueue
from florence2ner.engine.run_files import find_model
from florence2ner.engine.runtime import make_accelerator, precision_note
from florence2ner.engine.signals import StopSignals
from florence2ner.errors import Interrupted, InUse, UserError
from florence2ner.files import append_text, as_utf8, hold, remove_lock, write_text
from florence2ner.model.checkpoints.loading import quiet_transformers, width_of
from florence2ner.outputs.answers import Question
from florence2ner.outputs.forms import JsonLines, json_line
from florence2ner.outputs.shards import ShardPlace, ShardRecords, finish_shard

_BATCHES = 64  # that are read ahead at once: enough for workers to start for, few enough for their images to be held


@quiet_transformers()
@lost_process_in_one_line(lambda: GO_ON)
def run_shards(config: CaptionConfig, plan: ShardPlan | None, display: Display) -> CaptionSummary:
    """Carry out `plan`, which the main process has and the others receive from it: they pass None.

    Every process must call this; each gets the whole summary. Memory doesn't grow with the number of images. Raises
    Interrupted after SIGINT or SIGTERM, and UserError where a process was lost or can't see the shards.
    """
    accelerator = make_accelerator(
        config.mixed_precision, seed=config.seed, width=partial(width_of, find_model(config.model_name))
    )
    (plan,) = broadcast_object_list([plan])
    assert plan is not None
    if not plan.todo:
        return CaptionSummary(done=0, kept=0, failed=0)
    _check_seen(accelerator, plan)
    if note := precision_note(config.mixed_precision):
        display.say(f"note: {note}")
    with StopSignals() as signals:
        worker = Worker(config, accelerator, display, signals)
        if accelerator.is_main_process and config.failures:
            write_text(config.failures, _other_failures(config.failures, plan.todo))
        accelerator.wait_for_everyone()
        start = time.perf_counter()
        with WorkQueue(accelerator, "shards") as queue, display.bar("captioning shards", total=len(plan.todo)) as bar:

            def show() -> None:
                rate = queue.get("done") / (time.perf_counter() - start)
                bar.reach(queue.get("finished"), images_per_second=f"{rate:.1f}")

            shards = _Shards(worker, queue, plan.questions, show)
            for (index,) in queue.claim(len(plan.todo), 1):
                if signals.tell(queue) is not None:
                    break
                shards.caption(plan.todo[index])
                queue.add("finished")
                show()
            queue.wait_for_all(meanwhile=lambda: queue.hurry() if signals.received else show())
            stopped_by = signals.told(queue)
    if accelerator.is_main_process:
        if config.failures:
            remove_lock(config.failures)
        if not stopped_by:
            plan.finish()
    write_report(config, worker.gallery, display)
    summary = _summarise(config, worker, shards, time.perf_counter() - start)
    if stopped_by:
        message = f"stopped by signal {stopped_by}: what is captioned is on the disk; {GO_ON}"
        raise Interrupted(message, signal=stopped_by)
    return summary


def _summarise(config: CaptionConfig, worker: Worker, shards: "_Shards", seconds: float) -> CaptionSummary:
    """Add up and print what the processes have done and found. Every process must call this."""
    faults = Faults()
    everywhere = gather_object([(worker.tally, shards.faults, shards.kept)])
    for _, found, _ in everywhere:
        faults.merge(found.counts, found.names)
    for line in faults.report():
        worker.display.say(line)
    tallies, kept = [tally for tally, _, _ in everywhere], sum(kept for _, _, kept in everywhere)
    return summarise(tallies, kept=kept, seconds=seconds, retry=config.retry, display=worker.display)


def _check_seen(accelerator: Accelerator, plan: ShardPlan) -> None:
    """Raise UserError, in every process, where one can't see the shards or the folder of the output."""
    first = plan.todo[0]
    check_shared(accelerator, first.folder, "choose an --output-dir, or --output, that all machines share")
    if not is_remote(first.shard) and not all(gather_object([Path(first.shard).is_file()])):
        raise UserError(f"not all processes can see {first.shard}: keep the shards where all machines have them")


def _other_failures(path: Path, todo: Sequence[ShardPlace]) -> str:
    """The lines of a file of failures that are about other shards than those which are to be captioned now.

    A shard that is finished is not read again, so nobody would name its failures a second time.
    """
    if not path.exists():
        return ""
    shards = {as_utf8(name) for place in todo for name in (place.shard, Path(place.shard))}
    rows = JsonLines("path").read(path)
    return "".join(
        json_line(row)
        for row in rows
        if row["path"] not in shards and shards.isdisjoint(map(str, PurePosixPath(row["path"]).parents))
    )


class _Torn(Exception):
    """A shard could not be read to its end where it is read a second time."""


class _Shards:
    """What one process does with the shards that it takes."""

    def __init__(
        self, worker: Worker, queue: WorkQueue, questions: tuple[Question, ...], show: Callable[[], object]
    ) -> None:
        self.faults = Faults()
        self.kept = 0  # images that had their captions
        self._worker = worker
        self._queue = queue
        self._questions = questions
        self._show = show

    def caption(self, place: ShardPlace) -> None:
        """Caption what is missing of a shard, and finish it, unless a signal came or it can't be read to its end."""
        config, faults = self._worker.config, Faults()
        with ExitStack() as stack:
            try:
                stack.enter_context(hold(place.finished, str(place.finished)))
            except InUse as error:
                self._worker.display.warn(f"{place.shard} is left to another run: {error}")
                return
            if config.existing == "skip" and place.finished.exists():  # by another run, since this one began
                return
            stack.callback(lambda: self.faults.merge(faults.counts, faults.names))
            records = self._open(place)
            stack.callback(records.finish)
            signals, size = self._worker.signals, _BATCHES * config.batch_size
            for images in _read_ahead(place.shard, faults, size, lambda: signals.received is not None):
                self._ask(images, records)
                if signals.tell(self._queue) is not None:
                    return
            if signals.tell(self._queue) is not None:  # perhaps the rest was not read
                return
            if not faults.is_torn:
                try:
                    finish_shard(place, _read_again(place.shard), self._questions, config.caption_extension)
                    return
                except _Torn:
                    pass
            self._worker.refuse(place.shard, f"it can't be read to its end; what could be is in {place.rows}")

    def _open(self, place: ShardPlace) -> ShardRecords:
        config = self._worker.config
        records = ShardRecords(
            place.rows,
            self._questions,
            config.model_name,
            config.given() | ({} if config.temperature is None else {"seed": config.seed}),
            overwrite=config.existing == "overwrite",
            shard=place.shard,
        )
        records.look([])
        records.open()
        append_text(place.rows, "")  # cuts a torn last row off
        return records

    def _ask(self, images: Sequence[ImageRef], records: ShardRecords) -> None:
        missing = [(image, records.missing(image.path)) for image in images]
        todo = [(image, questions) for image, questions in missing if questions]
        self.kept += len(images) - len(todo)
        plan = CaptionPlan(tuple((image.path, questions) for image, questions in todo), kept=0, output=records)
        size = self._worker.config.batch_size
        batches = [range(at, min(at + size, len(todo))) for at in range(0, len(todo), size)]
        self._worker.work(self._queue, plan, [image for image, _ in todo], batches, self._show, share=len(batches))


def _images_of(shard: str, faults: Faults) -> Generator[ImageRef, None, None]:
    """The images of a shard, each key's first. One that has none is a fault, too."""
    keys = set[str]()
    for sample in read_shard(shard, ReadingOptions(), faults, captions=False):
        key = str(sample.image.path.with_name(sample.image.path.name.partition(".")[0]))
        if key in keys:
            faults.add("images share their key with another and are left out", str(sample.image))
        else:
            keys.add(key)
            yield sample.image
    if not keys and not faults.is_torn:
        faults.add("shards have no image", shard)


def _read_again(shard: str) -> Iterator[ImageRef]:
    """The images of a shard that was read before. Raises _Torn where it can't be read to its end any more."""
    faults = Faults()
    yield from _images_of(shard, faults)
    if faults.is_torn:
        raise _Torn


def _read_ahead(shard: str, faults: Faults, size: int, stopped: Callable[[], bool]) -> Iterator[list[ImageRef]]:
    """The images of a shard, `size` at a time, of which the next ones are read meanwhile, until they are `stopped`."""
    over = Event()
    with closing(_images_of(shard, faults)) as images, ThreadPoolExecutor(1) as reader:

        def read() -> list[ImageRef]:
            return list(islice(takewhile(lambda _: not (over.is_set() or stopped()), images), size))

        try:
            ahead = reader.submit(read)
            while found := ahead.result():
                ahead = reader.submit(read)
                yield found
        finally:
            over.set()
