"""What a model's tokenizer makes of the captions: how long they are, and what it can't write well. Imports torch."""

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import torch

from florence2ner.config.options import TooLong
from florence2ner.data.captions import count_tokens, fit_captions
from florence2ner.data.split import Split
from florence2ner.engine.run_files import find_model
from florence2ner.errors import UserError
from florence2ner.inspection.dataset import Caption
from florence2ner.inspection.findings import Example, Figure, Finding, Histogram, bins_of
from florence2ner.model.checkpoints.loading import load_processor, quiet_transformers
from florence2ner.model.vision import bytes_of_encoding

_AT_A_TIME = 1000  # captions
_BINS = 8  # up to the limit, all of the same width
_WHAT_BECOMES_OF_THEM: dict[TooLong, str] = {
    "skip": "training leaves them out: shorten them, or let --too-long truncate cut them",
    "truncate": "training cuts them after a word, or after a box",
    "refuse": "training refuses them: shorten them, or choose --too-long skip or truncate",
}


@dataclass(frozen=True)
class Measured:
    """The captions as a tokenizer reads them, and what the model takes."""

    findings: tuple[Finding, ...]
    histograms: tuple[Histogram, ...]
    figure: Figure  # tokens of the longest caption, <s> and </s> included, and the most that the model can write
    image_bytes: int  # of the encoding of one image, in bfloat16
    split: Split | None  # without what is too long, as training has it; None where it refuses the dataset


@quiet_transformers()
def measure(captions: Sequence[Caption], split: Split | None, model_name: str, too_long: TooLong) -> Measured:
    """Measure captions with the tokenizer of a model; its weights are not loaded.

    `model_name` is a directory, a hub id or a run. Raises UserError where there is no such model.
    """
    processor, config = load_processor(find_model(model_name))
    tokenizer, limit = processor.tokenizer, int(config.text_config.max_position_embeddings)
    lengths: list[int] = []
    for start in range(0, len(captions), _AT_A_TIME):
        some = captions[start : start + _AT_A_TIME]
        lengths += count_tokens([caption.text for caption in some], tokenizer)
    over = [(caption, length) for caption, length in zip(captions, lengths, strict=True) if length > limit]
    fitting, refused = split, False
    if split and over:
        try:
            parts = (fit_captions(samples, tokenizer, limit, too_long).samples for samples in (split.train, split.eval))
            fitting = Split(*parts)
        except UserError:
            fitting, refused = None, True
    findings = (
        Finding(
            "too-long",
            "breaks" if refused else "hurts",
            f"[caption is|captions are] longer than the {limit} tokens that the model can write",
            _WHAT_BECOMES_OF_THEM[too_long],
            tuple(Example(caption.image.key, f"{length} tokens", (caption.image,)) for caption, length in over),
        ),
        *_characters(captions, tokenizer),
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
    return Measured(findings, (histogram,) if lengths else (), figure, image_bytes, fitting)


def _characters(captions: Sequence[Caption], tokenizer: Any) -> list[Finding]:
    """Characters that the tokenizer doesn't know, or has no token for: it spells their bytes."""
    using: defaultdict[str, list[Caption]] = defaultdict(list)
    for caption in captions:
        for char in {*caption.text}:
            using[char].append(caption)
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


def _character(char: str, captions: Sequence[Caption], tokens: int = 0) -> Example:
    spelled = f"{tokens} tokens, " if tokens else ""
    return Example(
        f"{char} (U+{ord(char):04X})", f"{spelled}in {len(captions)} captions, such as {captions[0].image.key}"
    )
