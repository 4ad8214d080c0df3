"""Captions tar shards: processes take whole shards, and a run that was stopped goes on within each of them."""

import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, closing
from itertools import islice
from pathlib import Path

from accelerate.utils import gather_object

from florence2ner.captioning.plan import CaptionPlan, CaptionSummary
from florence2ner.captioning.worker import GO_ON, Worker, summarise
from florence2ner.config.commands import CaptionConfig
from florence2ner.config.options import ReadingOptions
from florence2ner.data.samples import ImageRef
from florence2ner.data.shards import Faults, read_shard
from florence2ner.display import Display
from florence2ner.engine.collectives import lost_process_in_one_line
from florence2ner.engine.queue import WorkQueue
from florence2ner.engine.runtime import make_accelerator, precision_note
from florence2ner.engine.signals import StopSignals
from florence2ner.errors import Interrupted, UserError
from florence2ner.files import hold, remove_lock, write_text
from florence2ner.model.checkpoints.loading import quiet_transformers
from florence2ner.outputs.answers import Question
from florence2ner.outputs.shards import ShardPlace, ShardRecords, finish_shard

_BATCHES = 64  # that are read ahead at once: enough for workers to start for, few enough for their images to be held


@quiet_transformers()
@lost_process_in_one_line(lambda: GO_ON)
def run_shards(
    config: CaptionConfig, places: Sequence[ShardPlace], questions: tuple[Question, ...], display: Display
) -> CaptionSummary:
    """Caption the shards of these places.

    Every process must call this, with the same arguments; each gets the whole summary. Memory doesn't grow with the
    number of shards. Raises Interrupted after SIGINT or SIGTERM, and UserError where a process was lost.
    """
    accelerator = make_accelerator(config.mixed_precision, seed=config.seed)
    if note := precision_note(config.mixed_precision):
        display.say(f"note: {note}")
    start = time.perf_counter()
    with StopSignals() as signals:
        worker = Worker(config, accelerator, display, signals)
        if accelerator.is_main_process and config.failures:
            write_text(config.failures, "")
        accelerator.wait_for_everyone()
        with (
            WorkQueue(accelerator, "shards") as queue,
            display.bar("captioning shards", total=len(places)) as bar,
        ):

            def show() -> None:
                rate = queue.get("done") / (time.perf_counter() - start)
                bar.reach(queue.get("finished"), images_per_second=f"{rate:.1f}")

            shards = _Shards(worker, queue, questions, show)
            for (index,) in queue.claim(len(places), 1):
                if signals.tell(queue) is not None:
                    break
                shards.caption(places[index])
                queue.add("finished")
                show()
            queue.wait_for_all(meanwhile=lambda: queue.hurry() if signals.received else show())
            stopped_by = signals.told(queue)
    if accelerator.is_main_process and config.failures:
        remove_lock(config.failures)
    faults = Faults()
    everywhere = gather_object([(worker.tally, shards.faults, shards.kept)])
    for _, found, _ in everywhere:
        faults.merge(found.counts, found.names)
    for line in faults.report():
        display.say(line)
    seconds, kept = time.perf_counter() - start, sum(kept for _, _, kept in everywhere)
    tallies = [tally for tally, _, _ in everywhere]
    summary = summarise(tallies, kept=kept, seconds=seconds, retry=config.retry, display=display)
    if stopped_by:
        message = f"stopped by signal {stopped_by}: what is captioned is on the disk; {GO_ON}"
        raise Interrupted(message, signal=stopped_by)
    return summary


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
        if place.finished.exists() and config.existing == "skip":
            return
        with ExitStack() as stack:
            try:
                stack.enter_context(hold(place.finished, str(place.finished)))
            except UserError as error:
                self._worker.display.warn(f"{place.shard} is left to another run: {error}")
                return
            records = self._open(place)
            for images in _read_ahead(place.shard, faults, _BATCHES * config.batch_size):
                self._ask(images, records)
                if self._worker.signals.tell(self._queue) is not None:
                    return
            records.finish()
            if faults.is_torn:
                self._worker.refuse(Path(place.shard), f"it can't be read to its end; what could be is in {place.rows}")
            else:
                again = (sample.image for sample in read_shard(place.shard, ReadingOptions(), Faults(), captions=False))
                finish_shard(place, again, self._questions, config.caption_extension)
        self.faults.merge(faults.counts, faults.names)

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
        return records

    def _ask(self, images: Sequence[ImageRef], records: ShardRecords) -> None:
        missing = [(image, records.missing(image.path)) for image in images]
        todo = [(image, questions) for image, questions in missing if questions]
        self.kept += len(images) - len(todo)
        plan = CaptionPlan(tuple((image.path, questions) for image, questions in todo), kept=0, output=records)
        size = self._worker.config.batch_size
        batches = (range(at, min(at + size, len(todo))) for at in range(0, len(todo), size))
        self._worker.work(self._queue, plan, [image for image, _ in todo], batches, self._show)


def _read_ahead(shard: str, faults: Faults, size: int) -> Iterator[list[ImageRef]]:
    """The images of a shard, some at a time, of which the next ones are read meanwhile."""
    samples = read_shard(shard, ReadingOptions(), faults, captions=False)
    with closing(samples), ThreadPoolExecutor(1) as reader:

        def read() -> list[ImageRef]:
            return [sample.image for sample in islice(samples, size)]

        ahead = reader.submit(read)
        while images := ahead.result():
            ahead = reader.submit(read)
            yield images
