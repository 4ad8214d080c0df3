"""Fine-tune Microsoft's Florence-2 as an image captioner, measure it, and caption folders with it.

The public names are imported on first use (PEP 562), so that importing the package does not import torch.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from florence2ner.captioning.caption import caption
    from florence2ner.config.commands import CaptionConfig, EvalConfig, InspectConfig, TrainConfig
    from florence2ner.errors import UserError
    from florence2ner.evaluation.evaluate import evaluate
    from florence2ner.evaluation.result import Evaluation
    from florence2ner.inspection.inspect import inspect_dataset
    from florence2ner.model.checkpoints.loading import load_model
    from florence2ner.training.callbacks import Callback
    from florence2ner.training.result import TrainResult
    from florence2ner.training.step import Update
    from florence2ner.training.train import train

__all__ = [
    "Callback",
    "CaptionConfig",
    "EvalConfig",
    "Evaluation",
    "InspectConfig",
    "TrainConfig",
    "TrainResult",
    "Update",
    "UserError",
    "caption",
    "evaluate",
    "inspect_dataset",
    "load_model",
    "train",
]

_HOMES = {
    "Callback": "training.callbacks",
    "CaptionConfig": "config.commands",
    "EvalConfig": "config.commands",
    "Evaluation": "evaluation.result",
    "InspectConfig": "config.commands",
    "TrainConfig": "config.commands",
    "TrainResult": "training.result",
    "Update": "training.step",
    "UserError": "errors",
    "caption": "captioning.caption",
    "evaluate": "evaluation.evaluate",
    "inspect_dataset": "inspection.inspect",
    "load_model": "model.checkpoints.loading",
    "train": "training.train",
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
