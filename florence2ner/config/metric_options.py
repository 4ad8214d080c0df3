"""The groups of options about evaluations: which metrics, when a run is evaluated, what a model is compared with."""

from typing import Annotated, ClassVar, Self

from pydantic import BeforeValidator, model_validator

from florence2ner.config.base import Config, option
from florence2ner.metrics.names import ALWAYS, MetricName, whole_name

Metric = Annotated[MetricName, BeforeValidator(whole_name)]


class MetricOptions(Config):
    """Which metrics are computed."""

    panel: ClassVar[str] = "Evaluation"

    eval_metrics: tuple[Metric, ...] = option(
        (),
        "Metric to compute, beside loss and perplexity; repeat the flag for several. Without it: all that apply.",
    )


class EvaluationOptions(MetricOptions):
    """When a run is evaluated, and what is decided by the result."""

    panel: ClassVar[str] = "Evaluation"

    eval_batch_size: int = option(16, "Images per batch and process in evaluation.", ge=1)
    eval_steps: int | None = option(
        50, "Optimizer updates between evaluations; none: train on everything and never evaluate.", ge=1
    )
    eval_captions: int = option(
        64, "Held-out images that each evaluation writes captions for, always the same ones; 0: the loss alone.", ge=0
    )
    eval_before_training: bool = option(True, "Evaluate once before the first update.")
    metric_for_best: Metric = option(
        "eval/loss", "Metric of the `best` link, which follows the checkpoints that were evaluated at their own step."
    )
    early_stopping_patience: int | None = option(
        None, "Evaluations without a better metric_for_best after which the run ends; none: never.", ge=1
    )

    @model_validator(mode="after")
    def _best_is_computed(self) -> Self:
        if self.metric_for_best not in ALWAYS and not self.eval_captions:
            raise ValueError(f"metric_for_best {self.metric_for_best} is about captions: set eval_captions, such as 64")
        return self

    @model_validator(mode="after")
    def _patience_needs_evaluations(self) -> Self:
        if self.early_stopping_patience is not None and self.eval_steps is None:
            raise ValueError("early_stopping_patience needs evaluations: set eval_steps")
        return self


class CompareOptions(MetricOptions):
    """Another model to compare with."""

    panel: ClassVar[str] = "Evaluation"

    against: str | None = option(None, "Another model: is the first one better than this, on the same images?")
    fail_if_worse: tuple[Metric, ...] = option(
        (), "End with exit code 1 where the model is worse than that of against in this metric, beyond doubt."
    )

    @model_validator(mode="after")
    def _worse_than_something(self) -> Self:
        if self.fail_if_worse and self.against is None:
            raise ValueError("fail_if_worse does nothing alone: name another model with against")
        for name in self.fail_if_worse:
            if self.eval_metrics and name not in (*ALWAYS, *self.eval_metrics):
                raise ValueError(f"fail_if_worse {name} is not computed: add it to eval_metrics")
        return self
