"""The commands whose flags are the settings of a config model: train, schedule, eval, caption, inspect, review."""

from typing import Annotated

import typer

from florence2ner.cli.app import config_command
from florence2ner.config.commands import (
    CaptionConfig,
    EvalConfig,
    InspectConfig,
    ReviewConfig,
    ScheduleConfig,
    TrainConfig,
)
from florence2ner.engine import launcher
from florence2ner.process import importing


def _list_optimizers(wanted: bool | None) -> None:
    if wanted:
        from florence2ner.optim.catalog import describe_optimizers

        print("\n".join(describe_optimizers()))
        raise typer.Exit


_OPTIMIZERS = typer.Option(
    "--list-optimizers",
    help="Print the names that --optimizer takes, and end.",
    callback=_list_optimizers,
    is_eager=True,
    rich_help_panel="Optimizer",
    metavar="",
)


_ESTIMATE = typer.Option(
    "--estimate",
    help="Print the memory that a run with these settings takes, without loading the model, and end.",
    rich_help_panel="Machine",
    metavar="",
)
_FLAGS_OF_TRAIN = {
    "list_optimizers": Annotated[bool | None, _OPTIMIZERS],
    "estimate": Annotated[bool | None, _ESTIMATE],
}


@config_command(TrainConfig, name="train", further=_FLAGS_OF_TRAIN)
def _train(config: TrainConfig, *, estimate: bool = False) -> None:
    """Fine-tune Florence-2 on a folder of images and captions."""
    if estimate:
        with importing():
            from florence2ner.training.estimate import estimate_memory
        estimate_memory(config)
        return
    with importing():
        from florence2ner.training.train import train
    train(config)


@config_command(ScheduleConfig, name="schedule")
def _schedule(config: ScheduleConfig) -> None:
    """Draw the learning rate that a run of train with these settings would have."""
    from florence2ner.training.preview import draw_schedule

    draw_schedule(config)


@config_command(EvalConfig, name="eval")
def _eval(config: EvalConfig) -> int:
    """Say how good a model is: loss, caption metrics, captions beside the truth; and whether it beats another."""
    with importing():
        from florence2ner.evaluation.evaluate import evaluate, is_worse
    return 1 if is_worse(config, evaluate(config)) else 0


@config_command(CaptionConfig, name="caption")
def _caption(config: CaptionConfig) -> int:
    """Caption images and folders: a .txt beside each image, existing ones kept."""
    from florence2ner.captioning.caption import caption

    return 3 if caption(config).failed else 0


@config_command(InspectConfig, name="inspect")
def _inspect(config: InspectConfig) -> int:
    """Look at a dataset before it is trained on: what breaks, what hurts, what is doubled or odd."""
    if not launcher.is_main():  # one process is enough, and all would write the same files
        return 0
    from florence2ner.inspection.inspect import inspect_dataset

    return 1 if inspect_dataset(config).breaks else 0


@config_command(ReviewConfig, name="review")
def _review(config: ReviewConfig) -> None:
    """Look through images and captions on a local page: edit, accept, replace, tag, ask the model again."""
    if not launcher.is_main():  # one page is enough
        return
    from florence2ner.review.server import review

    review(config)
