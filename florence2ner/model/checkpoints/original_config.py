"""Converts the config.json of Microsoft's original layout to a native config and back.

The original's fields are those of configuration_florence2.py of microsoft/Florence-2-large.
"""

from pathlib import Path
from typing import Any

from huggingface_hub.errors import StrictDataclassError
from transformers import Florence2Config, Florence2ForConditionalGeneration

from florence2ner.errors import UserError
from florence2ner.model.checkpoints.files import one_line, section
from florence2ner.model.checkpoints.processing import build_generation_config

# Fields with the same name and meaning in both configs. (The original's dim_embed, the native embed_dim, is not here.)
_VISION_FIELDS = (
    *("depths", "num_heads", "num_groups", "patch_size", "patch_stride", "patch_padding", "patch_prenorm"),
    *("window_size", "drop_path_rate", "projection_dim"),
)
_TEXT_FIELDS = (
    *("vocab_size", "d_model", "max_position_embeddings", "activation_function", "scale_embedding", "init_std"),
    *("encoder_layers", "encoder_ffn_dim", "encoder_attention_heads", "encoder_layerdrop"),
    *("decoder_layers", "decoder_ffn_dim", "decoder_attention_heads", "decoder_layerdrop"),
    *("dropout", "attention_dropout", "activation_dropout", "classifier_dropout"),
    *("pad_token_id", "bos_token_id", "eos_token_id", "decoder_start_token_id", "forced_eos_token_id"),
)
# The original takes its generation settings from text_config and never reads generation_config.json.
GENERATION_FIELDS = (
    *("num_beams", "early_stopping", "no_repeat_ngram_size", "forced_bos_token_id", "forced_eos_token_id"),
    *("decoder_start_token_id", "bos_token_id", "pad_token_id", "eos_token_id"),
)
# The only feature source that the native class has, and the only vision values that the original's code has.
_FEATURE_SOURCE = ["spatial_avg_pool", "temporal_avg_pool"]
_FIXED_IN_ORIGINAL = {"in_channels": 3, "mlp_ratio": 4.0, "qkv_bias": True, "activation_function": "gelu"}
# The prefix of auto_map's values, "repository--file.class", as transformers itself writes them for models with remote
# code. A plain "file.class" would mean a Python file beside the weights, and we write none. Tools that trust remote
# code (taggui) follow the reference; those with their own copy of the code (ComfyUI-Florence2) ignore it.
CODE = "microsoft/Florence-2-large--"


def native_to_original_config(model: Florence2ForConditionalGeneration, *, vocab_size: int) -> dict[str, Any]:
    """The original's config.json for a native model of which the first `vocab_size` embedding rows are kept.

    What the model's generation_config leaves open gets the original's defaults. Raises UserError for a vision tower
    that the original's code can't express, and when the model has fewer rows than `vocab_size`.
    """
    vision: Any = model.config.vision_config
    text: Any = model.config.text_config
    for name, value in _FIXED_IN_ORIGINAL.items():
        if getattr(vision, name) != value:
            raise UserError(f"Microsoft's code knows only {name} = {value}; the model has {getattr(vision, name)}.")
    if vocab_size > text.vocab_size:
        raise UserError(f"The tokenizer has {vocab_size} tokens, but the model only {text.vocab_size}.")
    generation = build_generation_config(model.config.image_token_id).to_dict()
    generation |= {key: value for key, value in model.generation_config.to_dict().items() if value is not None}
    return {
        "_name_or_path": "florence2",
        "architectures": ["Florence2ForConditionalGeneration"],
        "auto_map": {
            "AutoConfig": f"{CODE}configuration_florence2.Florence2Config",
            "AutoModelForCausalLM": f"{CODE}modeling_florence2.Florence2ForConditionalGeneration",
        },
        **{name: getattr(text, name) for name in ("bos_token_id", "eos_token_id", "pad_token_id")},
        "ignore_index": -100,
        "is_encoder_decoder": True,
        "model_type": "florence2",
        "projection_dim": vision.projection_dim,
        "text_config": {
            **{name: getattr(text, name) for name in _TEXT_FIELDS},
            **{name: generation[name] for name in GENERATION_FIELDS},
            "vocab_size": vocab_size,
            "num_hidden_layers": text.encoder_layers,
            "is_encoder_decoder": True,
            **dict.fromkeys(("add_bias_logits", "add_final_layer_norm", "normalize_before"), False),
            "classif_dropout": 0.1,
            "gradient_checkpointing": False,
            "label2id": {"LABEL_0": 0, "LABEL_1": 1, "LABEL_2": 2},
        },
        "vision_config": {
            "model_type": "davit",  # the original's code accepts nothing else
            "enable_checkpoint": False,
            "dim_embed": vision.embed_dim,
            **{name: getattr(vision, name) for name in _VISION_FIELDS},
            "visual_temporal_embedding": {"type": "COSINE", "max_temporal_embeddings": vision.max_temporal_embeddings},
            "image_pos_embed": {"type": "learned_abs_2d", "max_pos_embeddings": vision.max_position_embeddings},
            "image_feature_source": _FEATURE_SOURCE,
        },
        "vocab_size": vocab_size,
        "torch_dtype": str(model.dtype).removeprefix("torch."),
        "transformers_version": "4.41.0.dev0",  # as on the hub: the version that this config is in the format of
    }


def original_to_native_config(settings: dict[str, Any], directory: Path) -> Florence2Config:
    """The native config for `settings`, the original's config.json; `directory` is for messages.

    The caller sets `image_token_id` and `tie_word_embeddings`, which depend on tokenizer and weights. Raises UserError
    for what is missing, or what the native classes can't do.
    """
    path = directory / "config.json"
    vision, text = section(settings, "vision_config"), section(settings, "text_config")
    position, temporal = section(vision, "image_pos_embed"), section(vision, "visual_temporal_embedding")
    for name, value, wanted in (
        ("image_pos_embed.type", position.get("type"), "learned_abs_2d"),
        ("visual_temporal_embedding.type", temporal.get("type"), "COSINE"),
        ("image_feature_source", vision.get("image_feature_source"), _FEATURE_SOURCE),
    ):
        if value != wanted:
            raise UserError(f"{path}: vision_config.{name} is {value}; only {wanted} can be converted.")
    try:
        vision_config = {name: vision[name] for name in _VISION_FIELDS} | {
            "embed_dim": vision["dim_embed"],
            "max_position_embeddings": position["max_pos_embeddings"],
            "max_temporal_embeddings": temporal["max_temporal_embeddings"],
        }
        # model_type is overridden, as fine-tunes have "florence2_language", which transformers doesn't know. For fields
        # that are missing, the defaults of the original's class and of BartConfig differ only in vocab_size.
        text_config = {"vocab_size": 51289} | {name: text[name] for name in _TEXT_FIELDS if name in text}
        config = Florence2Config(vision_config=vision_config, text_config=text_config | {"model_type": "bart"})
    except KeyError as error:
        raise UserError(f"{path}: vision_config lacks {error}; copy config.json from the model's source.") from error
    except (TypeError, ValueError, StrictDataclassError) as error:
        raise UserError(f"{path} does not describe a Florence-2: {one_line(error)}") from error
    for name in ("pad_token_id", "bos_token_id", "eos_token_id"):  # wrong at the top level in early hub revisions
        setattr(config, name, getattr(config.text_config, name))
    return config
