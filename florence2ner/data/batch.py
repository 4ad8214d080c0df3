"""Batches: decoded samples collated into tensors, and the window of micro-batches that makes one update."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence
from transformers import Florence2Processor

from florence2ner.data.order import Draw
from florence2ner.data.samples import Sample
from florence2ner.data.shards import Faults
from florence2ner.data.tags import CaptionRule
from florence2ner.model.checkpoints.processing import expand_prompt
from florence2ner.model.inputs import (
    IGNORE_INDEX,
    Embeddings,
    Features,
    Images,
    PartlyEncoded,
    Pixels,
    Tensors,
    Text,
    images_of_rows,
)

AS_THEY_ARE = CaptionRule()


@dataclass(frozen=True)
class FeatureSource:
    """Encodings that were computed in advance.

    `load(key)` gives the encoding of the image with that key, without a batch dimension: of `Features` (C, h, w), of
    `Embeddings` (N, d_model). None where there is none.
    """

    load: Callable[[str], Tensor | None]
    encoded_type: type[Features] | type[Embeddings]


@dataclass(frozen=True)
class Example:
    """One drawn sample with its decoded image or its cached encoding: exactly one of `pixels` and `encoded` is set."""

    draw: Draw
    sample: Sample
    pixels: Tensor | None = None  # uint8 (3, H, W)
    encoded: Tensor | None = None  # see `FeatureSource`
    size: tuple[int, int] = (0, 0)  # (width, height) of the upright image in the file, in pixels; unset if not decoded
    failure: str = ""  # why the image could not be read


@dataclass(frozen=True)
class FromLane:
    """What the reader of a stream says with a batch: where its lane is afterwards, and what was passed over so far."""

    lane: int
    position: list[int]  # as `Position.numbers` gives it
    faults: Faults  # since the batch before


@dataclass(frozen=True)
class Batch(Tensors):
    """One micro-batch."""

    images: Images
    text: Text | None  # None for encoding and captioning
    indices: tuple[int, ...]  # (B,) positions of the samples in the dataset
    valid: tuple[bool, ...]  # (B,) False for a filler (see `Draw`) and for an image that could not be read
    failures: tuple[tuple[int, str], ...]  # index and reason of each image that could not be read
    sizes: tuple[tuple[int, int], ...]  # (B,) as in `Example`
    refs: tuple[tuple[str, str], ...] = ()  # (B,) the key of each image, and what it is called in messages
    origin: FromLane | None = None  # None: not of a stream

    @property
    def label_tokens(self) -> int:
        """The number of tokens with a loss; known without waiting for the device."""
        return 0 if self.text is None else self.text.label_positions.numel()

    def rows(self, part: slice) -> "Batch":
        """The samples in a part of the batch. What is said of the batch as a whole stays with the whole."""
        return Batch(
            images=images_of_rows(self.images, part),
            text=self.text and self.text.rows(part),
            indices=self.indices[part],
            valid=self.valid[part],
            failures=(),
            sizes=self.sizes[part],
            refs=self.refs[part],
        )

    def cut(self, rows: int) -> list["Batch"]:
        """The batch in parts of at most `rows` samples, as even as can be."""
        samples = len(self.valid)
        parts = -(-samples // rows)
        edges = [samples * part // parts for part in range(parts + 1)]
        return [self] if parts == 1 else [self.rows(slice(*pair)) for pair in pairwise(edges)]


@dataclass(frozen=True)
class Window:
    """The micro-batches of one process that make one optimizer update (or one step of evaluation or captioning)."""

    batches: tuple[Batch, ...]


class Collator:
    """Collates examples into a `Batch`, in the DataLoader's workers. Without a `processor` the batch has no text."""

    def __init__(
        self,
        processor: Florence2Processor | None,
        encoded_type: type[Features] | type[Embeddings] = Features,
        rule: CaptionRule = AS_THEY_ARE,
    ) -> None:
        self.processor = processor
        self.encoded_type = encoded_type
        self.rule = rule

    def __call__(self, examples: Sequence[Example]) -> Batch:
        return Batch(
            images=self._stack(examples),
            text=self._write(self.processor, examples) if self.processor else None,
            indices=tuple(example.draw.index for example in examples),
            valid=tuple(example.draw.valid for example in examples),
            failures=tuple((example.draw.index, example.failure) for example in examples if example.failure),
            sizes=tuple(example.size for example in examples),
            refs=tuple((example.sample.image.key, str(example.sample.image)) for example in examples),
        )

    def _stack(self, examples: Sequence[Example]) -> Images:
        pixels = [example.pixels for example in examples if example.pixels is not None]
        encoded = [example.encoded for example in examples if example.encoded is not None]
        if not encoded:
            return Pixels(torch.stack(pixels))
        known = self.encoded_type(torch.stack(encoded))
        if not pixels:
            return known
        return PartlyEncoded(Pixels(torch.stack(pixels)), known, tuple(e.encoded is not None for e in examples))

    def _write(self, processor: Florence2Processor, examples: Sequence[Example]) -> Text:
        """Prompts as the processor expands them, and captions as padded labels.

        Samples that are not valid, and those whose caption is left out this time, have no labels.
        """
        samples = [example.sample for example in examples]
        prompts = [expand_prompt(processor, sample.task_prompt) for sample in samples]
        mask = pad_sequence([torch.ones_like(ids) for ids in prompts], batch_first=True)
        drawn = zip(samples, (example.draw for example in examples), strict=True)
        texts = [self.rule.caption_of(sample, draw.visit) if draw.valid else None for sample, draw in drawn]
        captions = iter(processor.tokenizer([text for text in texts if text is not None] or [""]).input_ids)
        rows = [torch.tensor([IGNORE_INDEX] if text is None else next(captions)) for text in texts]
        labels = pad_sequence(rows, batch_first=True, padding_value=IGNORE_INDEX)
        return Text.of(
            input_ids=pad_sequence(prompts, batch_first=True, padding_value=processor.tokenizer.pad_token_id),
            attention_mask=mask if len({len(ids) for ids in prompts}) > 1 else None,
            labels=labels,
        )
