"""What a model's tokenizer makes of the captions: how long they are, and what it can't write well. Imports torch."""

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import torch

from florence2ner.data.captions import count_tokens
from florence2ner.engine.run_files import find_model
from florence2ner.inspection.findings import Example, Figure, Finding, Histogram, bins_of
from florence2ner.inspection.folder import Item
from florence2ner.model.checkpoints.loading import load_processor
from florence2ner.model.vision import bytes_of_encoding

_AT_A_TIME = 1000  # captions
_BINS = 8  # up to the limit, all of the same width


@dataclass(frozen=True)
class Measured:
    """The captions as a tokenizer reads them, and what the model takes."""

    findings: tuple[Finding, ...]
    histograms: tuple[Histogram, ...]
    figure: Figure  # tokens of the longest caption, <s> and </s> included, and the most that the model can write
    image_bytes: int  # of the encoding of one image, in bfloat16


def measure(items: Sequence[Item], model_name: str) -> Measured:
    """Measure captions with the tokenizer of a model; its weights are not loaded.

    `model_name` is a directory, a hub id or a run. Raises UserError where there is no such model.
    """
    processor, config = load_processor(find_model(model_name))
    tokenizer, limit = processor.tokenizer, int(config.text_config.max_position_embeddings)
    lengths: list[int] = []
    for start in range(0, len(items), _AT_A_TIME):
        some = items[start : start + _AT_A_TIME]
        lengths += count_tokens([item.caption for item in some], tokenizer)
    too_long = [(item, length) for item, length in zip(items, lengths, strict=True) if length > limit]
    findings = (
        Finding(
            "too-long",
            "breaks" if too_long and len(too_long) == len(items) else "hurts",
            f"[caption is|captions are] longer than the {limit} tokens that the model can write",
            "training leaves them out: shorten them",
            tuple(Example(item.image.key, f"{length} tokens", (item.image,)) for item, length in too_long),
        ),
        *_characters(items, tokenizer),
    )
    width = max(1, limit // _BINS)
    edges = [width * (number + 1) for number in range(_BINS - 1)] + [limit + 1]
    labels = [f"{low} to {high - 1}" for low, high in pairwise([0, *edges])]
    bins = bins_of(lengths, edges, [*labels, f"over {limit}"])
    image_bytes = bytes_of_encoding(config, processor.image_processor.image_seq_length, torch.bfloat16.itemsize)
    longest = max(lengths, default=0)
    figure = Figure(
        "longest caption",
        f"{longest} tokens; the model can write {limit}",
        {"longest_caption_tokens": longest, "limit_tokens": limit},
    )
    histogram = Histogram("Caption length", "tokens", bins, beyond=_BINS)
    return Measured(findings, (histogram,) if lengths else (), figure, image_bytes)


def _characters(items: Sequence[Item], tokenizer: Any) -> list[Finding]:
    """Characters that the tokenizer doesn't know, or has no token for: it spells their bytes."""
    using: defaultdict[str, list[Item]] = defaultdict(list)
    for item in items:
        for char in {*item.caption}:
            using[char].append(item)
    chars = sorted(using)
    ids = dict(zip(chars, tokenizer(chars, add_special_tokens=False).input_ids, strict=True)) if chars else {}
    unknown = [char for char in chars if tokenizer.unk_token_id in ids[char] or not (ids[char] or char.isspace())]
    spelled = [char for char in chars if len(ids[char]) > 1 and char not in unknown]
    return [
        Finding(
            "unknown-character",
            "hurts",
            "[character is|characters are] unknown to the tokenizer",
            "the model can't write them: replace them",
            tuple(_character(char, using[char]) for char in unknown),
        ),
        Finding(
            "spelled-character",
            "note",
            "[character takes|characters take] the tokenizer several tokens, byte by byte",
            "the model can write them, but learns them slowly: are typographic signs and emoji meant?",
            tuple(_character(char, using[char], len(ids[char])) for char in spelled),
        ),
    ]


def _character(char: str, items: Sequence[Item], tokens: int = 0) -> Example:
    spelled = f"{tokens} tokens, " if tokens else ""
    return Example(f"{char} (U+{ord(char):04X})", f"{spelled}in {len(items)} captions, such as {items[0].image.key}")
