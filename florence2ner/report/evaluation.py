"""The report of an evaluation: its scores with intervals, and every caption beside the truth; one model or two."""

from collections.abc import Mapping, Sequence
from typing import Any, Protocol

from florence2ner.data.samples import ImageRef
from florence2ner.metrics.table import METRICS, format_figure
from florence2ner.report.page import Block, Page, build_page
from florence2ner.report.rows import (
    Interval,
    Pictures,
    RowLike,
    main_metric,
    metric_infos,
    said,
    settings_block,
    truth_and,
)
from florence2ner.report.thumbnails import MOST_PICTURES

_TILES = 3  # figures at the top of the page, besides the number of images


_VERDICTS = {
    "better": "B is better",
    "worse": "B is worse",
    "unsure": "It can't be told which is better",
    "same": "Both are the same",
    "none": "B differs from A",
}


class DifferenceLike(Protocol):
    """How a metric of two models differs."""

    @property
    def metric(self) -> str:
        """Its name."""

    @property
    def before(self) -> float:
        """Of the first model."""

    @property
    def after(self) -> float:
        """Of the second model."""

    @property
    def interval(self) -> Interval | None:
        """95%, of after - before."""

    @property
    def wins(self) -> int:
        """Images that the second scores better on."""

    @property
    def losses(self) -> int:
        """Images that it scores worse on."""

    @property
    def ties(self) -> int:
        """The other images."""

    @property
    def is_better(self) -> bool:
        """Whether the second is better without a doubt."""

    @property
    def is_worse(self) -> bool:
        """Whether it is worse without a doubt."""


def evaluation_page(
    *,
    title: str,
    figures: Mapping[Any, float],
    intervals: Mapping[Any, Interval],
    rows: Sequence[RowLike],
    images: Mapping[str, ImageRef],
    settings: Mapping[str, Any],
    by: Sequence[str] = (),
    notes: Sequence[str] = (),
) -> str:
    """The page of one model. `images` by their keys; rows without a prediction count in the figures alone.

    It is sorted by the first metric of `by`, or by the one that tells most.
    """
    written = [row for row in rows if row.prediction is not None]
    main = main_metric([name for name in figures if any(name in row.scores for row in written)], by)
    shown, left_out = _worst(written, main)
    pictures = Pictures(images)
    blocks: list[Block] = [_scores(figures, intervals, len(rows))]
    if shown:
        entries = [_entry(row, pictures) for row in shown]
        blocks.append(_gallery("Captions", entries, main))
    blocks.append(settings_block(settings))
    return build_page(
        Page(
            tool="florence2ner eval",
            title=title,
            facts={"images": f"{len({row.image for row in rows}):,}"} | _tiles(figures, main),
            notes=[*notes, *left_out],
            blocks=blocks,
            pictures=pictures.make(),
        )
    )


def comparison_page(
    *,
    titles: tuple[str, str],
    differences: Sequence[DifferenceLike],
    before: Sequence[RowLike],
    after: Sequence[RowLike],
    images: Mapping[str, ImageRef],
    settings: Mapping[str, Any],
    by: Sequence[str] = (),
    notes: Sequence[str] = (),
) -> str:
    """The page of two models on the same images; before[i] and after[i] are about the same. `titles` name the two."""
    pairs = [
        pair for pair in zip(before, after, strict=True) if pair[0].prediction is not None is not pair[1].prediction
    ]
    names = [found.metric for found in differences]
    main = main_metric([name for name in names if any(name in a.scores and name in b.scores for a, b in pairs)], by)
    shown, left_out = _most_different(pairs, main)
    pictures = Pictures(images)
    blocks: list[Block] = [_differences(titles, differences)]
    if shown:
        entries = [_entry_of_two(first, second, pictures) for first, second in shown]
        blocks.append(_gallery("Captions side by side", entries, main, of_two=True))
    blocks.append(settings_block(settings))
    chosen = next((found for found in differences if found.metric == main), None)
    return build_page(
        Page(
            tool="florence2ner eval --against",
            title=f"{titles[1]} against {titles[0]}",
            lead=[f"{_VERDICTS[_verdict(chosen)]}: {chosen}.".replace("->", "→")] if chosen else [],
            notes=[f"A is {titles[0]}, B is {titles[1]}; both on the same {len(before):,} images.", *notes, *left_out],
            blocks=blocks,
            pictures=pictures.make(),
        )
    )


def _verdict(found: DifferenceLike) -> str:
    """How sure it is: without an interval, not at all."""
    if found.before == found.after:
        return "same"
    if found.interval is None:
        return "none"
    return "better" if found.is_better else "worse" if found.is_worse else "unsure"


def _tiles(figures: Mapping[Any, float], main: str | None) -> dict[str, str]:
    chosen = (main or "eval/loss", "eval/exact_match", "eval/rouge_l", "eval/loss")
    names = dict.fromkeys(name for name in chosen if name in figures)
    return {METRICS[name].label: format_figure(name, figures[name]) for name in [*names][:_TILES]}  # type: ignore[index]


def badness(name: str, score: float) -> float:
    """How bad a score is: the larger the worse."""
    goal = METRICS[name].goal  # type: ignore[index]
    return abs(score - 1) if goal == "one" else -score if goal == "higher" else score


def _worst(rows: Sequence[RowLike], main: str | None) -> tuple[Sequence[RowLike], list[str]]:
    """The rows that the page has room for, and a note where there are more."""
    if len(rows) <= MOST_PICTURES or main is None:
        note = f"The first {MOST_PICTURES:,} of {len(rows):,} captions are shown."
        return rows[:MOST_PICTURES], [note] if len(rows) > MOST_PICTURES else []
    order = sorted(rows, key=lambda row: -badness(main, row.scores[main]) if main in row.scores else 0.0)
    label = METRICS[main].label  # type: ignore[index]
    return order[:MOST_PICTURES], [f"The {MOST_PICTURES:,} worst of {len(rows):,} captions by {label} are shown."]


Pair = tuple[RowLike, RowLike]


def _most_different(pairs: Sequence[Pair], main: str | None) -> tuple[Sequence[Pair], list[str]]:
    if len(pairs) <= MOST_PICTURES:
        return pairs, []

    def change(pair: Pair) -> float:
        first, second = (row.scores.get(main, 0.0) for row in pair)
        return -abs(second - first)

    note = f"The {MOST_PICTURES:,} of {len(pairs):,} images are shown on which the two differ most."
    return sorted(pairs, key=change)[:MOST_PICTURES], [note]


def _scores(figures: Mapping[Any, float], intervals: Mapping[Any, Interval], images: int) -> Block:
    rows = [
        {"metric": name, "value": value, "interval": intervals.get(name)}
        for name, value in figures.items()
        if name in METRICS
    ]
    about = f"With 95% intervals: how far each would differ on {images:,} other images of the same kind."
    return {"block": "scores", "title": "Scores", "about": about, "rows": rows, "metrics": metric_infos()}


def _differences(titles: tuple[str, str], differences: Sequence[DifferenceLike]) -> Block:
    rows = [
        {
            "metric": found.metric,
            "before": found.before,
            "after": found.after,
            "interval": found.interval,
            "counts": [found.wins, found.ties, found.losses],
            "verdict": _verdict(found),
        }
        for found in differences
    ]
    about = (
        "The difference of each metric with its 95% interval, paired over the images, and on how many images B wins."
    )
    return {
        "block": "differences",
        "title": "Is B better than A?",
        "about": about,
        "names": list(titles),
        "rows": rows,
        "metrics": metric_infos(),
    }


def _gallery(title: str, entries: Sequence[Mapping[str, Any]], main: str | None, *, of_two: bool = False) -> Block:
    infos = metric_infos()
    known = {name for entry in entries for name in entry["scores"]}
    metrics = {name: info for name, info in infos.items() if name in known}
    return {"block": "gallery", "title": title, "rows": entries, "metrics": metrics, "sort": main, "of_two": of_two}


def _entry(row: RowLike, pictures: Pictures) -> dict[str, Any]:
    truth, written, others = truth_and(row.prediction or "", row.references)
    return {
        "image": row.image,
        "picture": pictures.place_of(row.image),
        "task": row.task_prompt,
        "texts": [said("truth", truth, kind="lack"), said("prediction", written, flags=row.flags, kind="odd")],
        "others": others,
        "scores": _rounded(row.scores),
    }


def _entry_of_two(first: RowLike, second: RowLike, pictures: Pictures) -> dict[str, Any]:
    """A row with both predictions. The truth is marked as the second model's prediction has it."""
    _, before, _ = truth_and(first.prediction or "", first.references)
    entry = _entry(second, pictures)
    truth, after = entry["texts"]
    texts = [truth, said("A", before, flags=first.flags, kind="odd"), after | {"who": "B"}]
    return entry | {"texts": texts, "before": _rounded(first.scores)}


def _rounded(scores: Mapping[Any, float]) -> dict[str, float]:
    return {name: round(score, 4) for name, score in scores.items()}
