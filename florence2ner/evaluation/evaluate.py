"""Evaluates a model on captioned images: the loss per token, and generated captions against the references."""

import itertools
import json
import math
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from accelerate import Accelerator
from accelerate.utils import broadcast_object_list, gather_object
from rich.console import Console
from rich.table import Table

from florence2ner.captioning.asking import Asker
from florence2ner.config.commands import EvalConfig
from florence2ner.config.options import GenerationOptions, TooLong
from florence2ner.data.batch import Batch, FeatureSource, Window
from florence2ner.data.captions import fit_captions, overlong_note, special_tokens_warning
from florence2ner.data.layouts.choice import discover, folder_of, no_samples, with_layout
from florence2ner.data.loader import SequentialLoader, Workers
from florence2ner.data.order import deal
from florence2ner.data.samples import Sample, merge
from florence2ner.data.split_file import SPLIT_FILE, images_trained_on
from florence2ner.display import Display
from florence2ner.engine.collectives import lost_process_in_one_line
from florence2ner.engine.loop import run_loop
from florence2ner.engine.memory import AdaptiveBatch
from florence2ner.engine.queue import WorkQueue
from florence2ner.engine.run_files import find_model
from florence2ner.engine.runtime import autocast_dtype, make_accelerator, precision_note
from florence2ner.errors import UserError
from florence2ner.files import as_utf8, check_writable, write_text
from florence2ner.metrics import METRICS, MetricName, Observed, measure
from florence2ner.model.build import load_captioner
from florence2ner.model.captioner import Captioner
from florence2ner.model.checkpoints.loading import quiet_transformers
from florence2ner.model.generation import Generated
from florence2ner.model.inputs import Encoded, Pixels
from florence2ner.model.tasks import doubt_about, find_task

_rounds = itertools.count()  # numbers the work queues, the same in all processes


@dataclass(frozen=True)
class Row:
    """A generated caption and its reference."""

    image: str  # the image's key in the dataset
    reference: str
    prediction: str


@dataclass(frozen=True)
class Evaluation:
    """The result of an evaluation. `exact_match` is computed over `captions`, the rest over all readable samples."""

    loss: float  # mean over all label tokens, in nats
    perplexity: float
    exact_match: float | None  # share from 0 to 1; None where nothing was generated
    samples: int  # number of samples that could be read
    tokens: int  # number of their label tokens
    captions: tuple[Row, ...]  # in the order of the samples
    unreadable: tuple[str, ...] = ()  # keys of images that could not be read and are left out

    def figures(self) -> dict[MetricName, float]:
        """The metrics to log, by name, without those that are None."""
        values = {name: getattr(self, name.removeprefix("eval/")) for name in METRICS}
        return {name: value for name, value in values.items() if value is not None}


@dataclass(frozen=True)
class _BatchResult:
    loss_sum: float
    tokens: int
    samples: int
    predictions: tuple[tuple[int, str], ...]  # (index of the sample, generated caption)
    unreadable: tuple[int, ...]  # indices of samples whose image could not be read


@quiet_transformers()
@lost_process_in_one_line(lambda: "start the same command again")
def evaluate(config: EvalConfig) -> Evaluation:
    """Evaluate a model on a folder of captioned images, and print the metrics and some captions.

    Every process must call this; each gets the whole result. As in training, captions that are too long for the model
    are left out. Raises UserError for a dataset without captioned images or with too long captions only, a model that
    can't be loaded, an output that can't be written and a process that was lost.
    """
    accelerator = make_accelerator(config.mixed_precision, seed=config.seed)
    display = Display(is_main=accelerator.is_main_process)
    if note := precision_note(config.mixed_precision):
        display.say(f"note: {note}")
    if doubt := doubt_about(config.task_prompt):
        display.warn_once(doubt)
    if config.output:
        check_writable(config.output.parent, "choose another --output")
    folders, found = _discover(config, display)
    (model_name,) = broadcast_object_list([find_model(config.model_name)])  # a run that goes on may find a better one
    if model_name != config.model_name:
        display.say(f"evaluating {model_name}")
    captioner = load_captioner(
        model_name,
        attn_implementation=config.attn_implementation,
        device=accelerator.device,
        dtype=autocast_dtype(accelerator),
        compiled=config.compile,
    )
    samples = _fitting(found, captioner, config.too_long, display)
    _warn_if_trained_on(model_name, samples, display)
    result = evaluate_samples(
        accelerator,
        display,
        captioner,
        samples,
        generation=config,
        seed=config.seed,
        batch_size=config.batch_size,
        workers=Workers.for_device(
            accelerator.device,
            processes=config.dataloader_workers,
            prefetch=config.dataloader_prefetch,
            pin_memory=config.pin_memory,
        ),
    )
    assert result is not None
    if accelerator.is_main_process:
        _print(result, show=config.show)
        if config.output:
            settings = {"model_name": model_name, "dataset_path": folders}
            write_text(config.output, json.dumps(settings | asdict(result), indent=1, ensure_ascii=False) + "\n")
    accelerator.wait_for_everyone()
    return result


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
    captions: int | None = None,
    features: FeatureSource | None = None,
    give_up: Callable[[], bool] = lambda: False,
) -> Evaluation | None:
    """Compute the loss over all samples, and generate captions for the first `captions` of them (None: for all).

    Every process must call this: the samples are divided among them, and each gets the whole result. Leaves the
    captioner in evaluation mode. `give_up` is called after each batch; when it returns True in any process, the result
    is None. Raises UserError when no image can be read.
    """
    asker = Asker(captioner, generation, seed=seed, batch_size=batch_size, notify=display.warn)
    batch = AdaptiveBatch(batch_size, display.warn)
    step = _EvaluationStep(accelerator, captioner, asker, batch, samples, captions)
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
    return _summarise([result for part, _ in gathered for result in part], samples)


def _discover(config: EvalConfig, display: Display) -> tuple[list[str], tuple[Sample, ...]]:
    """The folders that are evaluated on, and their samples. Prints what is left out; raises UserError for no sample."""
    folders, parts = [], []
    for root in map(with_layout, config.roots):
        folder = folder_of("eval", root) or root.path
        found = discover(root, folder=folder)
        found.refused.check()
        if not found.samples:
            raise no_samples(folder, found, root.options, root.options.layout)
        folders.append(root.shards or str(folder))
        parts.append(found)
    found = merge(parts)
    for line in found.report():
        display.say(line)
    return folders, found.samples


def _fitting(
    samples: tuple[Sample, ...], captioner: Captioner, too_long: TooLong, display: Display
) -> tuple[Sample, ...]:
    """The samples with captions that the model can write. Prints what is left out or cut, and about special tokens."""
    tokenizer, longest = captioner.processor.tokenizer, captioner.longest_caption
    fitted = fit_captions(samples, tokenizer, longest, too_long)
    if note := overlong_note([fitted], longest):
        display.say(note)
    if warning := special_tokens_warning(fitted.samples, tokenizer):
        display.warn_once(warning)
    return fitted.samples


class _EvaluationStep:
    """A step of the loop: the loss of a batch, and captions for those of its samples with an index below `captions`."""

    def __init__(
        self,
        accelerator: Accelerator,
        captioner: Captioner,
        asker: Asker,
        batch: AdaptiveBatch,
        samples: Sequence[Sample],
        captions: int | None,
    ) -> None:
        self._accelerator = accelerator
        self._captioner = captioner
        self._asker = asker
        self._samples = samples
        self._batch = batch
        self._limit = len(samples) if captions is None else captions
        self._may_be_empty = all(find_task(sample.task_prompt).may_be_empty for sample in samples)

    def __call__(self, window: Window) -> _BatchResult:
        (batch,) = window.batches
        rows = self._batch.run(lambda part: self._rows(batch.rows(part)), len(batch.valid))
        predictions = [(index, answer.text) for index, (_, answer) in zip(batch.indices, rows, strict=True) if answer]
        unreadable = tuple(index for index, _ in batch.failures)
        loss_sum = math.fsum(loss for loss, _ in rows)
        return _BatchResult(loss_sum, batch.label_tokens, sum(batch.valid), tuple(predictions), unreadable)

    def _rows(self, batch: Batch) -> list[tuple[float, Generated | None]]:
        """The loss of each sample, and its caption where one is wanted."""
        batch = batch.to(self._accelerator.device)
        assert batch.text is not None
        vision = self._captioner.vision
        with torch.no_grad(), self._accelerator.autocast():
            images = vision.resolve(batch.images)
            if isinstance(images, Pixels):
                images = vision.encode(images)  # here, so that loss and captions share it
            losses = self._captioner(images, batch.text).sum(dim=1)
            wanted = [i for i, index in enumerate(batch.indices) if index < self._limit and batch.valid[i]]
            written = self._write(type(images)(images.values[wanted]), batch, wanted) if wanted else []
        answers = dict(zip(wanted, written, strict=True))
        return [(loss, answers.get(i)) for i, loss in enumerate(losses.tolist())]

    def _write(self, images: Encoded, batch: Batch, rows: list[int]) -> list[Generated]:
        text = batch.text
        assert text is not None
        names = [as_utf8(self._samples[batch.indices[row]].image.path.name) for row in rows]
        mask = None if text.attention_mask is None else text.attention_mask[rows]
        embedded = self._captioner.vision.embed(images)
        return self._asker.ask(embedded, text.input_ids[rows], mask, names=names, may_be_empty=self._may_be_empty)


def _summarise(results: Sequence[_BatchResult], samples: Sequence[Sample]) -> Evaluation:
    tokens = sum(result.tokens for result in results)
    if not tokens:
        raise UserError("none of the images to evaluate on can be read")
    predictions = sorted(pair for result in results for pair in result.predictions)
    rows = tuple(Row(samples[i].image.key, samples[i].caption, text) for i, text in predictions)
    loss = math.fsum(result.loss_sum for result in results) / tokens
    figures = measure(Observed(loss, [row.prediction for row in rows], [row.reference for row in rows]))
    return Evaluation(
        loss=figures["eval/loss"],
        perplexity=figures["eval/perplexity"],
        exact_match=figures.get("eval/exact_match"),
        samples=sum(result.samples for result in results),
        tokens=tokens,
        captions=rows,
        unreadable=tuple(samples[i].image.key for result in results for i in result.unreadable),
    )


def _print(result: Evaluation, *, show: int) -> None:
    console = Console(soft_wrap=True, emoji=False)
    if show and result.captions:
        table = Table("image", "truth", "prediction", show_lines=True)
        for row in result.captions[:show]:
            table.add_row(*(text.replace("[", r"\[") for text in (Path(row.image).name, row.reference, row.prediction)))
        console.print(table)
    exact = "" if result.exact_match is None else f"  exact match {result.exact_match:.1%}"
    console.print(
        f"loss {result.loss:.4f}  perplexity {result.perplexity:.3f}{exact}  "
        f"({result.samples} images, {result.tokens} label tokens)",
        highlight=False,
    )


def _warn_if_trained_on(model_name: str, samples: Sequence[Sample], display: Display) -> None:
    """Print a note when the checkpoint's run trained on some of these samples, by the split.json in its run folder."""
    split_file = Path(model_name).absolute().parent / SPLIT_FILE
    if not split_file.is_file():
        return
    trained_on = images_trained_on(split_file)
    paths = (sample.image.path.resolve() for sample in samples)
    seen = sum(path in trained_on or not trained_on.isdisjoint(path.parents) for path in paths)
    if seen:
        display.say(f"note: {seen} of these {len(samples)} images were trained on; the figures flatter the model")
