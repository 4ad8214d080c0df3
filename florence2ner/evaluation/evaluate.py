"""The eval command: says how good a model is on captioned images, and whether it is better than another."""

import json
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path

from accelerate import Accelerator
from accelerate.utils import broadcast_object_list

from florence2ner.config.commands import EvalConfig
from florence2ner.config.options import TooLong
from florence2ner.data.captions import fit_captions, overlong_note, special_tokens_warning
from florence2ner.data.layouts.choice import discover, folder_of, no_samples, with_layout
from florence2ner.data.loader import Workers
from florence2ner.data.samples import Sample, merge
from florence2ner.data.split_file import SPLIT_FILE, images_trained_on
from florence2ner.display import Display
from florence2ner.engine.collectives import lost_process_in_one_line
from florence2ner.engine.run_files import find_model
from florence2ner.engine.runtime import autocast_dtype, make_accelerator, precision_note
from florence2ner.errors import UserError
from florence2ner.evaluation.compare import Comparison, compare
from florence2ner.evaluation.report import short_names, write_report
from florence2ner.evaluation.result import Evaluation, as_json
from florence2ner.evaluation.samples import evaluate_samples
from florence2ner.evaluation.shown import print_comparison, print_evaluation
from florence2ner.files import check_writable, write_text
from florence2ner.metrics.bootstrap import FEWEST
from florence2ner.metrics.names import MetricName
from florence2ner.metrics.table import check_metrics
from florence2ner.model.build import load_captioner
from florence2ner.model.captioner import Captioner
from florence2ner.model.checkpoints.loading import load_empty, quiet_transformers, width_of
from florence2ner.model.tasks import doubt_about


@quiet_transformers()
@lost_process_in_one_line(lambda: "start the same command again")
def evaluate(config: EvalConfig) -> Evaluation:
    """Evaluate a model on a folder of captioned images, and print the metrics and some captions.

    With `config.against`, that model is evaluated on the same images, and the two are compared.
    Every process must call this; each gets the whole result. As in training, captions that are too long for the model
    are left out. Raises UserError for a dataset without captioned images or with too long captions only, a model that
    can't be loaded, a metric whose package is missing, an output that can't be written, `fail_if_worse` with too few
    images and a process that was lost.
    """
    check_metrics(config.eval_metrics)
    accelerator = make_accelerator(
        config.mixed_precision, seed=config.seed, width=partial(width_of, find_model(config.model_name))
    )
    display = Display(is_main=accelerator.is_main_process)
    if note := precision_note(config.mixed_precision):
        display.say(f"note: {note}")
    if doubt := doubt_about(config.task_prompt):
        display.warn_once(doubt)
    for file, flag in ((config.output, "--output"), (config.report, "--report")):
        if file:
            check_writable(file.parent, f"choose another {flag}")
    folders, found = _discover(config, display)
    if config.fail_if_worse and len(found) < FEWEST:
        raise UserError(f"fail_if_worse needs {FEWEST} images to tell what is no chance, and there are {len(found)}")
    wanted = [config.model_name, config.against] if config.against else [config.model_name]
    names = broadcast_object_list([find_model(name) for name in wanted])  # a run that goes on may find a better one
    for name in names[1:]:
        load_empty(name)  # before the first one is evaluated, which may take hours: there may be no such model
    results = [
        _evaluate_model(config, accelerator, display, name, found, is_asked_as=asked)
        for name, asked in zip(names, wanted, strict=True)
    ]
    result = results[0]
    if config.against:
        result = replace(result, comparison=compare(results[1].rows, result.rows, config.eval_metrics))
    if accelerator.is_main_process:
        _report(config, result, names, folders)
        if config.report:
            write_report(config, result, names, found)
            display.say(f"the report is in {config.report}")
    accelerator.wait_for_everyone()
    return result


def is_worse(config: EvalConfig, result: Evaluation) -> bool:
    """Whether the model is worse than that of `against` in a metric of `fail_if_worse`, beyond doubt."""
    found = result.comparison.differences if result.comparison else ()
    return any(entry.is_worse for entry in found if entry.metric in config.fail_if_worse)


def _evaluate_model(
    config: EvalConfig,
    accelerator: Accelerator,
    display: Display,
    model_name: str,
    found: tuple[Sample, ...],
    *,
    is_asked_as: str,
) -> Evaluation:
    if model_name != is_asked_as or config.against:
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
    workers = Workers.for_device(
        accelerator.device,
        processes=config.dataloader_workers,
        prefetch=config.dataloader_prefetch,
        pin_memory=config.pin_memory,
    )
    result = evaluate_samples(
        accelerator,
        display,
        captioner,
        samples,
        generation=config,
        seed=config.seed,
        batch_size=config.batch_size,
        workers=workers,
        metrics=config.eval_metrics,
    )
    assert result is not None
    return result


def _report(config: EvalConfig, result: Evaluation, names: list[str], folders: list[str]) -> None:
    """Print the result, and write it where that was asked for."""
    print_evaluation(result, show=0 if result.comparison else config.show)
    if result.comparison:
        before, after = short_names(names[1], names[0])
        print_comparison(
            result.comparison, before=before, after=after, show=config.show, by=_compared_by(config, result.comparison)
        )
    if config.output:
        told = {"model_name": names[0], "dataset_path": folders} | as_json(result, with_intervals=True)
        if result.comparison:
            told |= {"against": names[1], "comparison": result.comparison.as_json()}
        write_text(config.output, json.dumps(told, indent=1, ensure_ascii=False) + "\n")


def _compared_by(config: EvalConfig, found: Comparison) -> MetricName:
    """The metric by which images are said to differ: the first one asked for, or the one that says most."""
    known = {entry.metric for entry in found.differences if entry.wins + entry.losses + entry.ties}
    likely: tuple[MetricName, ...] = ("eval/cider", "eval/map", "eval/cer", "eval/exact_match", "eval/loss")
    return next(name for name in (*config.eval_metrics, *likely) if name in known)


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
