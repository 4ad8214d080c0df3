"""Fixtures: the model whose captions end at different lengths, and pictures for it."""

from tests.model.conftest import captioner, embedded, pictures, writing_model

__all__ = ["captioner", "embedded", "pictures", "writing_model"]
