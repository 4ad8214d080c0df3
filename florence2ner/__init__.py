"""Fine-tune Microsoft's Florence-2 as an image captioner, measure it, and caption folders with it.

The public names below load on first use: importing the package does not import torch.
"""

import sys
from importlib import import_module
from types import ModuleType
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from florence2ner.caption import caption
    from florence2ner.config import CaptionConfig, EvalConfig, TrainConfig
    from florence2ner.errors import UserError
    from florence2ner.evaluate import evaluate
    from florence2ner.model.loading import load_model
    from florence2ner.train import train

__all__ = ["CaptionConfig", "EvalConfig", "TrainConfig", "UserError", "caption", "evaluate", "load_model", "train"]


class _Lazy:
    """A public name that is imported when first used."""

    def __init__(self, module: str) -> None:
        self.module = module

    def __set_name__(self, owner: type, name: str) -> None:
        self.name = name

    def __get__(self, package: ModuleType, owner: type) -> Any:
        return getattr(import_module(self.module), self.name)

    def __set__(self, package: ModuleType, value: Any) -> None:
        """Python binds each imported submodule here: `florence2ner.train` stays the function, not the file."""


class _Package(ModuleType):
    TrainConfig = _Lazy("florence2ner.config")
    EvalConfig = _Lazy("florence2ner.config")
    CaptionConfig = _Lazy("florence2ner.config")
    UserError = _Lazy("florence2ner.errors")
    train = _Lazy("florence2ner.train")
    evaluate = _Lazy("florence2ner.evaluate")
    caption = _Lazy("florence2ner.caption")
    load_model = _Lazy("florence2ner.model.loading")


sys.modules[__name__].__class__ = _Package
