"""Whether a run has made the model better: its first evaluation and its best one on the same held-out images."""

from collections.abc import Sequence

from accelerate.utils import broadcast_object_list

from florence2ner.config.commands import TrainConfig
from florence2ner.data.samples import Sample
from florence2ner.display import Display
from florence2ner.engine.run_files import TrainState
from florence2ner.errors import UserError
from florence2ner.evaluation.compare import Comparison, compare
from florence2ner.evaluation.record import read_rows, recorded_steps
from florence2ner.evaluation.rows import Row
from florence2ner.metrics.bootstrap import FEWEST
from florence2ner.metrics.names import MetricName
from florence2ner.metrics.table import METRICS, check_metrics, names_for
from florence2ner.training.context import Context

_TOLD: tuple[MetricName, ...] = ("eval/loss", "eval/exact_match", "eval/cider", "eval/map", "eval/cer")


def check_wanted_metrics(config: TrainConfig, held_out: Sequence[Sample]) -> None:
    """Raise UserError where a metric that was asked for needs what isn't installed, or can't decide on the best.

    `metric_for_best` decides only where it applies to one of the images that are held out.
    """
    check_metrics((*config.eval_metrics, config.metric_for_best))
    rows = [
        Row(image="", task_prompt=task, references=references, nats=0.0, tokens=1, prediction=references[0])
        for task, references in dict.fromkeys((sample.task_prompt, sample.captions) for sample in held_out)
    ]
    observed = [row.observed() for row in rows]
    if rows and config.metric_for_best not in names_for(observed, [config.metric_for_best]):
        label = METRICS[config.metric_for_best].label
        raise UserError(
            f"metric_for_best {config.metric_for_best} ({label}) applies to none of the held-out images: choose "
            "another one, such as eval/loss"
        )


def tell_whether_better(context: Context, state: TrainState) -> Comparison | None:
    """Print how the best evaluation of the run compares with its first. Returns the comparison, in all processes.

    None where there are no two evaluations in the run's folder. Every process must call this.
    """
    found = [_compare(context.config, state, context.display) if context.accelerator.is_main_process else None]
    broadcast_object_list(found)
    (told,) = found
    if told is None:
        return None
    first, best, comparison = told
    metrics = dict.fromkeys((context.config.metric_for_best, *_TOLD))
    differences = [entry for name in metrics if (entry := comparison.of(name))]
    lines = "".join(f"\n  {difference}" for difference in differences)
    images = len(comparison.before)
    counted = f"{images} held-out image{'' if images == 1 else 's'}" + (", too few for intervals" * (images < FEWEST))
    context.display.say(f"from update {first} to {best}, on {counted}:{lines}")
    return comparison


def _compare(config: TrainConfig, state: TrainState, display: Display) -> tuple[int, int, Comparison] | None:
    """The steps of the first evaluation and the best, and how they compare."""
    steps = recorded_steps(config.run_dir)
    best = state.best_step if state.best_step in steps else steps[-1] if steps else None
    if best is None or best == steps[0]:
        return None
    try:
        rows = read_rows(config.run_dir, steps[0]), read_rows(config.run_dir, best)
        return steps[0], best, compare(*rows, config.eval_metrics)
    except (OSError, ValueError, KeyError, TypeError) as error:  # somebody has changed these files
        display.warn(f"the first evaluation can't be compared with that of update {best}: {error!r}")
        return None
