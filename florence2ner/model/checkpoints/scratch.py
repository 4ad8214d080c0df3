"""Makes new Florence-2 models with random weights: a tiny one that learns on a CPU, and Microsoft's sizes."""

from collections.abc import Iterable
from itertools import chain
from pathlib import Path
from typing import Any, Literal, NamedTuple

import torch
from tokenizers import ByteLevelBPETokenizer
from tokenizers import Tokenizer as RustTokenizer
from tokenizers.processors import RobertaProcessing
from torch import nn
from transformers import (
    BartConfig,
    Florence2Config,
    Florence2ForConditionalGeneration,
    Florence2Processor,
    PreTrainedTokenizerFast,
)

from florence2ner.files import new_folder
from florence2ner.model.checkpoints.loading import quiet_transformers, save_model
from florence2ner.model.checkpoints.processing import (
    build_generation_config,
    build_processor,
    build_tokenizer,
)
from florence2ner.model.tasks import TASK_TOKENS

Preset = Literal["tiny", "base", "large"]


class _Size(NamedTuple):
    image_size: int  # side in pixels
    bpe_size: int  # largest BPE vocabulary, with its five special tokens but without the task tokens
    vocab_size: int | None  # rows of the embedding; None: as many as there are tokens
    vision: dict[str, Any]  # fields of the vision config
    text: dict[str, Any]  # fields of the BartConfig


def _text(d_model: int, layers: int, heads: int, positions: int) -> dict[str, Any]:
    sizes: dict[str, Any] = {"d_model": d_model, "max_position_embeddings": positions}
    for side in ("encoder", "decoder"):
        sizes |= {f"{side}_layers": layers, f"{side}_attention_heads": heads, f"{side}_ffn_dim": 4 * d_model}
    return sizes


def _real(widths: tuple[int, ...], text: dict[str, Any]) -> _Size:
    heads = tuple(width // 32 for width in widths)
    vision = {"embed_dim": widths, "num_heads": heads, "num_groups": heads, "projection_dim": text["d_model"]}
    dropout = {"dropout": 0.1, "attention_dropout": 0.1, "activation_dropout": 0.1}
    return _Size(768, 50265, 50265 + len(TASK_TOKENS), vision, text | dropout)


_SIZES: dict[Preset, _Size] = {
    # 64 x 64 pixels, a feature map of 4 x 4; small enough to learn drawn shapes in a minute on two cores.
    "tiny": _Size(
        64,
        400,
        None,
        {
            "patch_stride": (4, 2, 2, 1),
            "embed_dim": (32, 64, 96, 128),
            "num_heads": (2, 4, 6, 8),
            "num_groups": (2, 4, 6, 8),
            "depths": (1, 1, 1, 1),
            "window_size": 4,
            "drop_path_rate": 0.0,
            "projection_dim": 128,
        },
        _text(128, 2, 4, 128)
        | {"encoder_ffn_dim": 256, "decoder_ffn_dim": 256, "dropout": 0.0, "attention_dropout": 0.0}
        | {"activation_dropout": 0.0},
    ),
    # The sizes of microsoft/Florence-2-base and -large.
    "base": _real((128, 256, 512, 1024), _text(768, 6, 12, 1024)),
    "large": _real((256, 512, 1024, 2048), _text(1024, 12, 16, 4096)),
}


@quiet_transformers()
def init_model(directory: Path, *, preset: Preset, captions: Iterable[str], seed: int) -> None:
    """Write a new model with random weights, see `build_model`, to `directory`, in the native layout.

    Raises UserError as `new_folder` does.
    """
    with new_folder(directory) as unfinished:
        model, processor = build_model(preset, captions, seed=seed)
        save_model(model, processor, unfinished)


def build_model(
    preset: Preset, captions: Iterable[str], *, seed: int
) -> tuple[Florence2ForConditionalGeneration, Florence2Processor]:
    """A Florence-2 of the preset's size with random weights, and a processor with a BPE trained on `captions`.

    "base" and "large" have as many embedding rows as Microsoft's, even where the captions yield fewer tokens. Seeds
    torch's global generator with `seed`.
    """
    processor, config = describe_model(preset, captions)
    torch.manual_seed(seed)
    model = Florence2ForConditionalGeneration(config)
    _init_fan_in(model)
    model.generation_config = build_generation_config(config.image_token_id)
    return model, processor


def describe_model(preset: Preset, captions: Iterable[str]) -> tuple[Florence2Processor, Florence2Config]:
    """The processor and the architecture of a model that `build_model` would make."""
    size = _SIZES[preset]
    tokenizer = _train_tokenizer(captions, size)
    config = Florence2Config(
        vision_config=size.vision,
        text_config=BartConfig(vocab_size=size.vocab_size or len(tokenizer), **size.text).to_dict(),
        image_token_id=tokenizer.convert_tokens_to_ids("<image>"),
        bos_token_id=0,
        pad_token_id=1,
        eos_token_id=2,
    )
    return build_processor(tokenizer, image_size=size.image_size, image_seq_length=_features_per_image(size)), config


# What the processor expands the caption tasks to. The BPE is trained on them too: otherwise prompts, whose words the
# captions may lack, would be spelt letter by letter.
_PROMPTS = (
    "What does the image describe?",
    "Describe in detail what is shown in the image.",
    "Describe with a paragraph what is shown in the image.",
)
_PROMPT_WEIGHT = 100  # how often each is repeated, so that its merges come before rare ones of the captions


def _train_tokenizer(captions: Iterable[str], size: _Size) -> PreTrainedTokenizerFast:
    """A byte-level BPE with BART's layout: four special tokens first, `<mask>` last, and <s> ... </s> around a text."""
    bpe = ByteLevelBPETokenizer()
    bpe.train_from_iterator(
        chain(captions, _PROMPTS * _PROMPT_WEIGHT),
        vocab_size=size.bpe_size - 1,
        special_tokens=["<s>", "<pad>", "</s>", "<unk>"],
        show_progress=False,
    )
    backend = RustTokenizer.from_str(bpe.to_str())
    backend.add_special_tokens(["<mask>"])
    backend.post_processor = RobertaProcessing(("</s>", 2), ("<s>", 0), add_prefix_space=False)
    return build_tokenizer(backend, model_max_length=size.text["max_position_embeddings"])


def _features_per_image(size: _Size) -> int:
    """Embeddings per image, 1 + (side of the feature map) ** 2: the mean over the map, then one per position."""
    side = size.image_size
    for stride in size.vision.get("patch_stride", (4, 2, 2, 2)):
        side //= stride
    return 1 + side**2


def _init_fan_in(model: nn.Module) -> None:
    """Xavier for Linear, Kaiming for Conv2d. With transformers' std of 0.02, the image has next to no effect."""
    for module in model.modules():
        if isinstance(module, nn.Linear):
            nn.init.xavier_uniform_(module.weight)
        elif isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight)
        else:
            continue
        if module.bias is not None:
            nn.init.zeros_(module.bias)
