"""Fixtures: the model whose captions end at different lengths, and pictures for it."""

from tests.model.conftest import pictures, writing_model

__all__ = ["pictures", "writing_model"]
