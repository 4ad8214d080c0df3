"""Hands an evaluation over to its report."""

from collections.abc import Sequence
from pathlib import Path

from florence2ner.config.commands import EvalConfig
from florence2ner.data.samples import Sample
from florence2ner.evaluation.result import Evaluation
from florence2ner.files import write_text
from florence2ner.report.evaluation import comparison_page, evaluation_page


def write_report(config: EvalConfig, result: Evaluation, models: Sequence[str], samples: Sequence[Sample]) -> None:
    """Write the page of `config.report`: of the first of `models`, or of both where there are two.

    `samples` are those that were evaluated on. Raises UserError where the file can't be written.
    """
    assert config.report is not None
    images = {sample.image.key: sample.image for sample in samples}
    settings = config.model_dump(mode="json") | {"model_name": models[0]}
    notes = [f"{len(result.unreadable):,} images could not be read and are left out."] if result.unreadable else []
    if result.comparison:
        after, before = models
        page = comparison_page(
            titles=short_names(before, after),
            differences=result.comparison.differences,
            before=result.comparison.before,
            after=result.comparison.after,
            images=images,
            settings=settings | {"against": before},
            by=config.eval_metrics,
            notes=notes,
        )
    else:
        page = evaluation_page(
            title="/".join(Path(models[0]).parts[-2:]),
            figures=result.figures,
            intervals=result.intervals(),
            rows=result.rows,
            images=images,
            settings=settings,
            by=config.eval_metrics,
            notes=notes,
        )
    write_text(config.report, page)


def short_names(first: str, second: str) -> tuple[str, str]:
    """The shortest ends of two paths that differ."""
    parts = Path(first).parts, Path(second).parts
    for count in range(1, max(map(len, parts)) + 1):
        ends = ["/".join(each[-count:]) for each in parts]
        if ends[0] != ends[1]:
            return ends[0], ends[1]
    return first, second
