"""The inspect command: looks at a dataset before it is trained on, and says what breaks, hurts or is odd."""

import json
import sys
from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

from florence2ner.config.commands import InspectConfig
from florence2ner.config.roots import Root
from florence2ner.data.look import look_at_all
from florence2ner.display import Display
from florence2ner.files import as_utf8, check_writable, write_text
from florence2ner.inspection.captions import caption_figures, caption_findings, caption_histogram
from florence2ner.inspection.dataset import Dataset, read_dataset
from florence2ner.inspection.faults import fault_findings
from florence2ner.inspection.files import file_findings
from florence2ner.inspection.findings import Figure, Finding, Histogram, Inspection, in_order, plain
from florence2ner.inspection.images import Looks, image_figures, image_findings, image_histograms
from florence2ner.inspection.page import build_page
from florence2ner.inspection.run import run_figures, run_findings
from florence2ner.inspection.tables import print_inspection
from florence2ner.model.tasks import doubt_about


def inspect_dataset(config: InspectConfig) -> Inspection:
    """Inspect the dataset that `train` would have: print what is found, and write the files that were asked for.

    No file of the dataset is changed. Torch is imported only where there is a `model_name`. Raises UserError as
    `read_dataset` does, for a model that can't be loaded and for a file that can't be written.
    """
    display = Display(is_main=True)
    json_file = None if str(config.json_file) == "-" else config.json_file
    for file, flag in ((json_file, "--json"), (config.report, "--report")):
        if file:
            check_writable(file.parent, f"choose another {flag}")
    if doubt := doubt_about(config.task_prompt):
        display.warn(doubt)
    found = look(config, display)
    to_stderr = config.fix or str(config.json_file) == "-"
    print_inspection(found, sys.stderr if to_stderr else sys.stdout)
    if config.json_file:
        text = json.dumps(as_json(found), indent=1, ensure_ascii=False) + "\n"
        if json_file:
            write_text(json_file, text)
        else:
            sys.stdout.buffer.write(text.encode())
    if config.report:
        write_text(config.report, build_page(found, max_pixels=config.max_pixels))
        display.say(f"the page is in {config.report}")
    if config.fix:
        _print_fixes(found)
    return found


def look(config: InspectConfig, display: Display) -> Inspection:
    """Read the captions, decode every image and put together what there is to say. Raises as `inspect_dataset`."""
    if config.split_by_similarity is not None and config.eval_steps is not None:
        display.say("decoding every image once, to find near duplicates")
    dataset = read_dataset(config)
    captions, split = dataset.captions, dataset.split
    captioned = sum(bool(item.captions) for item in dataset.items)
    findings = [
        *fault_findings(dataset),
        *file_findings(dataset),
        *caption_findings(captions, config.trigger_word, config.common_opening),
    ]
    numbers: dict[str, float] = {"images": len(dataset.items), "captioned_images": captioned}
    figures = [
        Figure("images", f"{len(dataset.items)}, {captioned} with a caption", numbers),
        *caption_figures(captions, captioned),
    ]
    histograms: tuple[Histogram, ...] = caption_histogram(captions)
    unchecked, encoding = "token lengths and unknown characters are not checked: name a model with --model-name", None
    if config.model_name:  # before the images, which may take hours: there may be no such model
        from florence2ner.inspection.tokens import measure  # imports torch, which takes seconds

        measured = measure(captions, split, config.model_name, config.too_long)
        findings += measured.findings
        histograms, encoding, unchecked, split = measured.histograms, measured.image_bytes, "", measured.split
        figures.append(measured.figure)
    looks = _looks(dataset, config, display)
    findings += [*run_findings(split, looks), *image_findings(dataset, looks, config.similarity)]
    figures += [*image_figures(looks), *run_figures(config, split, looks, encoding)]
    return Inspection(
        _names(config.roots),
        in_order(findings),
        tuple(figures),
        (*histograms, *image_histograms(looks)),
        (unchecked,) if unchecked else (),
        tuple(map(plain, dataset.found.notes)),
        _names(config.eval_roots),
    )


def _names(roots: Sequence[Root]) -> tuple[str, ...]:
    """Absolute paths, each once; of datasets on the hub the ids."""
    paths = [root.path.resolve() if root.path.exists() else root.path for root in roots]
    return tuple(dict.fromkeys(plain(as_utf8(path)) for path in paths))


def _looks(dataset: Dataset, config: InspectConfig, display: Display) -> Looks:
    looks = {}
    images = (item.image for item in dataset.items)
    with display.bar("looking at images", total=len(dataset.items)) as bar:
        seen = look_at_all(images, max_pixels=config.max_pixels, threads=config.decode_threads)
        for item, look in zip(dataset.items, seen, strict=True):
            looks[item] = look
            bar.advance()
    return looks


def as_json(found: Inspection) -> dict[str, Any]:
    """The inspection as JSON holds it: every case of every finding."""
    return {
        "dataset_path": list(found.roots),
        "eval_path": list(found.eval_roots),
        "breaks": found.breaks,
        "findings": [_as_json(finding) for finding in found.findings],
        "figures": {name: number for figure in found.figures for name, number in figure.numbers.items()},
        "histograms": [asdict(histogram) for histogram in found.histograms],
        "unchecked": list(found.unchecked),
        "notes": list(found.notes),
    }


def _as_json(finding: Finding) -> dict[str, Any]:
    return {
        "kind": finding.kind,
        "severity": finding.severity,
        "count": finding.count,
        "title": finding.headline,
        "advice": finding.advice,
        "examples": [
            {
                "name": as_utf8(example.name),
                "detail": as_utf8(example.detail),
                "images": [as_utf8(image.key) for image in example.images],
            }
            for example in finding.examples
        ],
        "fixes": list(finding.fixes),
    }


def _print_fixes(found: Inspection) -> None:
    """Print the commands that mend what is found, under what they mend, for a shell to read; each of them once."""
    printed: set[str] = set()
    for finding in found.findings:
        if fixes := [fix for fix in dict.fromkeys(finding.fixes) if fix not in printed]:
            print(f"# {finding.count} {finding.headline}", *fixes, sep="\n")
            printed.update(fixes)
