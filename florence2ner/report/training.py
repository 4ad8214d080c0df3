"""The report of a training run: its curves, and the captions of the same images as they change."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

from florence2ner.metrics.table import METRICS
from florence2ner.report.page import Block, Page, build_page
from florence2ner.report.rows import RowLike, in_order_of_use, said, settings_block, truth_and

SHOWN = 24  # images whose captions are followed
_MOST_POINTS = 1500  # of a curve; of more, each point is a mean of several
_FIRST = 3  # metrics whose curves come before those of the training itself
_MOST_STEPS = 60  # evaluations whose captions are shown
_SPEED, _NORM, _RATE = "train/images_per_second", "train/gradient_norm", "train/learning_rate"


@dataclass(frozen=True)
class Captions:
    """What a model wrote about the images that are followed, after so many updates."""

    step: int
    rows: Sequence[RowLike]  # of these, those of the images that are followed


def training_page(
    *,
    title: str,
    lead: Sequence[str],
    facts: Mapping[str, str],
    lines: Sequence[Mapping[str, float]],
    evaluations: Sequence[Captions],
    followed: Sequence[tuple[tuple[str, str], str]],
    settings: Mapping[str, Any],
    notes: Sequence[str] = (),
) -> str:
    """The page of a run.

    `lines` are those of metrics.jsonl, `followed` the images whose captions are shown: (image, task prompt) and the
    picture, as a data: URI or empty. `lead` says first what matters most, such as whether the run made it better.
    """
    blocks: list[Block] = [_charts(lines)] if lines else []
    if timeline := _timeline(evaluations, [name for name, _ in followed]):
        blocks.append(timeline)
    blocks.append(settings_block(settings))
    return build_page(
        Page(
            tool="florence2ner train",
            title=title,
            lead=lead,
            notes=notes,
            facts=facts,
            blocks=blocks,
            pictures=[picture for _, picture in followed],
        )
    )


def _charts(lines: Sequence[Mapping[str, float]]) -> Block:
    """All curves. The loss on held-out images stands in the chart of the loss."""
    names = dict.fromkeys(name for line in lines for name in line)
    loss = {"title": "Loss", "unit": "nats per token", "wide": True, "log": True, "goal": "lower", "series": []}
    loss["series"] = [
        _series(lines, "train/loss", "training", "noisy"),
        _series(lines, "eval/loss", "held out", "points"),
    ]
    metrics = [_metric_chart(lines, name) for name in in_order_of_use(names) if name != "eval/loss"]
    rates = [_series(lines, name, name[len(_RATE) :].strip("_") or "all") for name in names if name.startswith(_RATE)]
    charts: list[dict[str, Any]] = [
        loss,
        *metrics[:_FIRST],
        {"title": "Learning rate", "series": rates},
        {"title": "Gradient norm", "log": True, "series": [_series(lines, _NORM, "gradient norm", "noisy")]},
        {"title": "Speed", "unit": "images per second", "series": [_series(lines, _SPEED, "images/s", "noisy")]},
        *metrics[_FIRST:],
    ]
    for chart in charts:
        chart["series"] = [series for series in chart["series"] if series["steps"]]
    return {"block": "charts", "title": "Curves", "charts": [chart for chart in charts if chart["series"]]}


def _metric_chart(lines: Sequence[Mapping[str, float]], name: Any) -> dict[str, Any]:
    metric = METRICS[name]
    series = [_series(lines, name, metric.label, "points")]
    return {
        "title": metric.label,
        "about": metric.meaning,
        "goal": metric.goal,
        "percent": metric.percent,
        "series": series,
    }


def _series(lines: Sequence[Mapping[str, float]], name: str, label: str, kind: str = "line") -> dict[str, Any]:
    """A curve. `kind`: line; noisy, which is smoothed; or points, of evaluations."""
    found = [(line["step"], line[name]) for line in lines if name in line]
    if len(found) > _MOST_POINTS and kind != "points":
        size = -(-len(found) // _MOST_POINTS)
        parts = [found[start : start + size] for start in range(0, len(found), size)]
        found = [(part[-1][0], sum(value for _, value in part) / len(part)) for part in parts]
    return {"label": label, "kind": kind, "steps": [step for step, _ in found], "values": [value for _, value in found]}


def _timeline(evaluations: Sequence[Captions], names: Sequence[tuple[str, str]]) -> Block | None:
    """What was written about the same images after each evaluation."""
    every = -(-len(evaluations) // _MOST_STEPS)  # the first and the last, and some between
    evaluations = [found for at, found in enumerate(evaluations) if (len(evaluations) - 1 - at) % every == 0 or not at]
    known = [{(row.image, row.task_prompt): row for row in found.rows} for found in evaluations]
    images = []
    for place, name in enumerate(names):
        rows = [found.get(name) for found in known]
        references = next((row.references for row in rows if row), None)
        if references:
            entry = {"image": name[0], "task": name[1], "picture": place, "steps": [_step(row) for row in rows]}
            images.append(entry | {"references": list(references)})
    if not images:
        return None
    return {
        "block": "timeline",
        "title": "Captions as they change",
        "steps": [found.step for found in evaluations],
        "images": images,
    }


_compared = lru_cache(maxsize=_MOST_STEPS * SHOWN * 2)(truth_and)  # the page is made anew after each evaluation


def _step(row: RowLike | None) -> list[dict[str, Any]] | None:
    """Truth and prediction after an evaluation, marked where they differ; None where nothing was written."""
    if row is None or row.prediction is None:
        return None
    truth, written, _ = _compared(row.prediction, row.references)
    return [said("truth", truth, kind="lack"), said("prediction", written, flags=row.flags, kind="odd")]
