"""Builds the tokenizer, processor and generation config that every Florence-2 needs, converted or new.

The values are Microsoft's (processing_florence2.py of microsoft/Florence-2-large), in the form that transformers'
native `Florence2Processor` takes.
"""

import json
from functools import lru_cache

from PIL import Image
from tokenizers import AddedToken
from tokenizers import Tokenizer as RustTokenizer
from torch import Tensor
from transformers import CLIPImageProcessorPil, Florence2Processor, GenerationConfig, PreTrainedTokenizerFast

from florence2ner.model.answers import BANNED_PHRASES
from florence2ner.model.tasks import TASK_TOKENS

IMAGE_TOKEN = "<image>"
IMAGE_MEAN = (0.485, 0.456, 0.406)  # ImageNet
IMAGE_STD = (0.229, 0.224, 0.225)

POST_PROCESSOR_CONFIG = {
    "ocr": {"pattern": r"(.+?)" + r"<loc_(\d+)>" * 8, "area_threshold": 0.0},
    "phrase_grounding": {"banned_grounding_tokens": list(BANNED_PHRASES)},
    "pure_text": {},
    "description_with_bboxes": {},
    "description_with_polygons": {},
    "polygons": {},
    "bboxes": {},
    "description_with_bboxes_or_polygons": {},
}


def build_tokenizer(backend: RustTokenizer, *, model_max_length: int) -> PreTrainedTokenizerFast:
    """A Florence-2 tokenizer over a BART vocabulary: the task tokens appended, `<mask>` renamed to `<image>`.

    `<image>` is the prompt's placeholder for an image embedding and needs an id with an embedding row, but an
    additional row would enter the softmax and change every loss. Florence-2 never uses `<mask>`, so `<image>` takes its
    id, and the vocabulary keeps the original's size and ids. Task tokens that are there already are not added again.
    """
    state = json.loads(backend.to_str())
    vocab = state["model"]["vocab"]
    if "<mask>" in vocab:
        vocab[IMAGE_TOKEN] = vocab.pop("<mask>")
    for token in state["added_tokens"]:
        if token["content"] == "<mask>":
            token |= {"content": IMAGE_TOKEN, "lstrip": False}
    backend = RustTokenizer.from_str(json.dumps(state))
    backend.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in TASK_TOKENS])
    return PreTrainedTokenizerFast(
        tokenizer_object=backend,
        bos_token="<s>",
        eos_token="</s>",
        pad_token="<pad>",
        unk_token="<unk>",
        cls_token="<s>",
        sep_token="</s>",
        extra_special_tokens={"image_token": IMAGE_TOKEN},
        model_max_length=model_max_length,
    )


def build_processor(
    tokenizer: PreTrainedTokenizerFast, *, image_size: int, image_seq_length: int
) -> Florence2Processor:
    """A native processor: resizes images to `image_size` x `image_size` pixels (bicubic) and expands task prompts.

    `image_seq_length` is the number of embeddings per image: 1 + (side of the vision tower's feature map) ** 2, where
    the side is that of the image divided by the product of the patch strides (768 pixels give 577).
    """
    size = {"height": image_size, "width": image_size}
    image_processor = CLIPImageProcessorPil(
        size=size,
        crop_size=size,
        resample=3,
        do_center_crop=False,
        do_convert_rgb=True,
        image_mean=list(IMAGE_MEAN),
        image_std=list(IMAGE_STD),
        image_seq_length=image_seq_length,
    )
    return Florence2Processor(image_processor, tokenizer, post_processor_config=POST_PROCESSOR_CONFIG)


def build_generation_config(image_token_id: int, **overrides: object) -> GenerationConfig:
    """The original's generation defaults in full; converted native configs lack half of them and would decode greedily.

    `overrides` replace single values, such as a checkpoint's own. `<image>` is never generated.
    """
    defaults = {
        "num_beams": 3,
        "early_stopping": True,
        "no_repeat_ngram_size": 3,
        "forced_bos_token_id": 0,
        "forced_eos_token_id": 2,
        "decoder_start_token_id": 2,
        "bos_token_id": 0,
        "pad_token_id": 1,
        "eos_token_id": 2,
        "suppress_tokens": [image_token_id],
    }
    return GenerationConfig(**(defaults | overrides))


@lru_cache(maxsize=64)
def expand_prompt(processor: Florence2Processor, prompt: str) -> Tensor:
    """The ids (N,) of a task prompt: an <image> token per image embedding, then the task token expanded to words.

    The tensor is cached and shared between callers: don't write to it.
    """
    inputs = processor(images=Image.new("RGB", (8, 8)), text=prompt, return_tensors="pt")
    ids: Tensor = inputs.input_ids[0]
    return ids
