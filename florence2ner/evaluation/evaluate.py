"""How good a model is on a set of samples: loss over tokens, generated captions beside the truth."""

import json
import math
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from accelerate import Accelerator
from accelerate.utils import gather_object
from rich.console import Console
from rich.table import Table

from florence2ner.config.commands import EvalConfig
from florence2ner.data.batch import Window
from florence2ner.data.layouts.pairs import discover_samples
from florence2ner.data.loader import FeatureSource, SequentialLoader, Workers, resolve_workers
from florence2ner.data.order import deal
from florence2ner.data.samples import Sample
from florence2ner.data.split import EVAL_FOLDER
from florence2ner.display import Display
from florence2ner.engine.loop import run_loop
from florence2ner.engine.runtime import autocast_dtype, make_accelerator
from florence2ner.errors import UserError
from florence2ner.files import write_text
from florence2ner.metrics import exact_match
from florence2ner.model.captioner import Captioner, Decoding
from florence2ner.model.checkpoints.loading import load_model


@dataclass(frozen=True)
class Row:
    """One generated caption beside the truth."""

    image: str
    reference: str
    prediction: str


@dataclass(frozen=True)
class Evaluation:
    """The figures of an evaluation. `exact_match` is over `captions`, the others over all samples."""

    loss: float  # nats per label token
    perplexity: float
    exact_match: float | None  # share; None where nothing was generated
    samples: int
    tokens: int
    captions: tuple[Row, ...]

    def figures(self) -> dict[str, float]:
        """The numbers to log, by metric name."""
        values = {"eval/loss": self.loss, "eval/perplexity": self.perplexity}
        return values if self.exact_match is None else values | {"eval/exact_match": self.exact_match}


@dataclass(frozen=True)
class _BatchResult:
    loss_sum: float
    tokens: int
    samples: int
    predictions: tuple[tuple[int, str], ...]  # index of the sample, caption


def evaluate(config: EvalConfig) -> Evaluation:
    """Evaluate a model on a folder of captioned images. Prints the figures and some captions.

    Raises UserError for a dataset without pairs or a model that can't be found.
    """
    accelerator = make_accelerator(config.mixed_precision, seed=0)
    display = Display(is_main=accelerator.is_main_process)
    held_out = config.dataset_path / EVAL_FOLDER
    root = held_out if held_out.is_dir() else config.dataset_path
    found = discover_samples(root, config.task_prompt)
    for line in found.report():
        display.say(line)
    if not found.samples:
        raise UserError(f"no image with a caption in {root}: each image needs a .txt of the same name beside it")
    model, processor = load_model(
        config.model_name, device=accelerator.device, attn_implementation=config.attn_implementation
    )
    _warn_if_trained_on(config.model_name, found.samples, display)
    if config.output and accelerator.is_main_process:
        write_text(config.output, "")  # better to fail before the work than after it
    captioner = Captioner(model, processor).to(accelerator.device)
    captioner.fix_weights(autocast_dtype(accelerator))
    if config.compile:
        captioner.compile_model()
    result = evaluate_samples(
        accelerator,
        display,
        captioner,
        found.samples,
        batch_size=config.batch_size,
        workers=resolve_workers(accelerator, config),
        num_beams=config.num_beams,
        max_new_tokens=config.max_new_tokens,
    )
    assert result is not None
    if accelerator.is_main_process:
        _print(result, show=config.show)
        if config.output:
            settings = {"model_name": config.model_name, "dataset_path": str(root)}
            write_text(config.output, json.dumps(settings | asdict(result), indent=1, ensure_ascii=False) + "\n")
    accelerator.wait_for_everyone()
    return result


def evaluate_samples(
    accelerator: Accelerator,
    display: Display,
    captioner: Captioner,
    samples: Sequence[Sample],
    *,
    batch_size: int,
    workers: Workers,
    num_beams: int,
    max_new_tokens: int,
    generate: int | None = None,
    features: FeatureSource | None = None,
    give_up: Callable[[], bool] = lambda: False,
) -> Evaluation | None:
    """Loss over all samples, and captions of the first `generate` (None: of all). Every process must call this.

    The samples are shared out to the processes; each gets the whole result. Leaves the captioner in evaluation mode.
    `features` gives what is known of an image already. None when `give_up` said so in one of them, which it is asked
    after each batch. Raises UserError when no image can be read.
    """
    limit = len(samples) if generate is None else generate
    captioner.eval()
    decoding = Decoding(num_beams=num_beams, max_new_tokens=max_new_tokens)

    def step(window: Window) -> _BatchResult:
        (batch,) = window.batches
        assert batch.labels is not None
        assert batch.label_positions is not None
        with torch.no_grad(), accelerator.autocast():
            images = captioner.collect(batch.pixel_values, batch.features, batch.encoded)
            if images.dtype == torch.uint8:
                images = captioner.encode(images)  # once, for loss and captions
            loss_sum = captioner.token_losses(
                images, batch.input_ids, batch.attention_mask, batch.labels, batch.label_positions
            ).sum()
            wanted = [i for i, index in enumerate(batch.indices) if index < limit and batch.counted[i]]
            answers = []
            if wanted:
                embedded = captioner.embed_images(images[wanted])
                mask = None if batch.attention_mask is None else batch.attention_mask[wanted]
                answers = captioner.generate(embedded, batch.input_ids[wanted], mask, decoding)
        predictions = zip((batch.indices[i] for i in wanted), (answer.text for answer in answers), strict=True)
        return _BatchResult(loss_sum.item(), batch.label_tokens, sum(batch.counted), tuple(predictions))

    batches = deal(len(samples), batch_size, process=accelerator.process_index, processes=accelerator.num_processes)
    loader = SequentialLoader(
        samples,
        captioner.processor,
        batches,
        features=features,
        workers=workers,
    )
    results: list[_BatchResult] = []
    with display.bar("evaluating", total=len(batches)) as bar:

        def after_step(window: Window, result: _BatchResult) -> bool:
            results.append(result)
            for index, reason in window.batches[0].failures:
                display.warn(f"{samples[index].image} is left out of the evaluation: {reason}")
            bar.advance()
            return give_up()

        run_loop(loader, step, after_step, device=accelerator.device)
    gathered = gather_object([(results, give_up())])
    if any(gave_up for _, gave_up in gathered):
        return None
    results = [result for part, _ in gathered for result in part]
    return _summarise(results, samples)


def _summarise(results: Sequence[_BatchResult], samples: Sequence[Sample]) -> Evaluation:
    tokens = sum(result.tokens for result in results)
    if not tokens:
        raise UserError("none of the images to evaluate on can be read")
    loss = math.fsum(result.loss_sum for result in results) / tokens
    predictions = sorted(pair for result in results for pair in result.predictions)
    rows = tuple(Row(str(samples[i].image), samples[i].caption or "", text) for i, text in predictions)
    return Evaluation(
        loss=loss,
        perplexity=math.exp(min(loss, 700.0)),
        exact_match=exact_match([row.prediction for row in rows], [row.reference for row in rows]) if rows else None,
        samples=sum(result.samples for result in results),
        tokens=tokens,
        captions=rows,
    )


def _print(result: Evaluation, *, show: int) -> None:
    console = Console(soft_wrap=True)
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
    """Say so when the checkpoint's run trained on some of these samples, as its split.json tells."""
    split_file = Path(model_name).absolute().parent / "split.json"
    if not split_file.is_file():
        return
    split = json.loads(split_file.read_text(encoding="utf-8"))
    trained = {Path(split["dataset_path"], name) for name in split["train"]}
    seen = sum(sample.image.resolve() in trained for sample in samples)
    if seen:
        display.say(f"note: {seen} of these {len(samples)} images were trained on; the figures flatter the model")
