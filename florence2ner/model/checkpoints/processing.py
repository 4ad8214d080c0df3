"""What every Florence-2 processor and generation config must hold, whichever way the model came about.

The facts are Microsoft's (processing_florence2.py of microsoft/Florence-2-large, post_processor_config of the same
file), the form is that of transformers' native `Florence2Processor`.
"""

import json
from functools import lru_cache

from PIL import Image
from tokenizers import AddedToken
from tokenizers import Tokenizer as RustTokenizer
from torch import Tensor
from transformers import CLIPImageProcessorPil, Florence2Processor, GenerationConfig, PreTrainedTokenizerFast

from florence2ner.model.answers import BANNED_PHRASES

IMAGE_TOKEN = "<image>"
IMAGE_MEAN = (0.485, 0.456, 0.406)  # ImageNet
IMAGE_STD = (0.229, 0.224, 0.225)

# In the order in which the original processor adds them: ids 50265..51288 of the real vocabulary. The misspelt
# `desciption` is the original's.
TASK_TOKENS = (
    *("<od>", "</od>", "<ocr>", "</ocr>"),
    *(f"<loc_{bin_}>" for bin_ in range(1000)),
    *("<cap>", "</cap>", "<ncap>", "</ncap>", "<dcap>", "</dcap>", "<grounding>", "</grounding>", "<seg>", "</seg>"),
    *("<sep>", "<region_cap>", "</region_cap>", "<region_to_desciption>", "</region_to_desciption>"),
    *("<proposal>", "</proposal>", "<poly>", "</poly>", "<and>"),
)

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

    `<image>` stands for an image's features in the prompt and needs an id with an embedding row, but a row of its own
    would enter the softmax and change every loss and logit. Florence-2 never uses `<mask>`, so `<image>` takes its id:
    the vocabulary stays exactly the original's. Adding task tokens that are already there changes nothing.
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
    """A native processor: squashes to `image_size` squared (bicubic), expands `<CAPTION>` and the other task prompts.

    `image_seq_length` is the number of features the model makes of one image: 1 + (map side) ** 2, where the vision
    tower divides the side by the product of its patch strides (768 pixels give 577).
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
    """The original's generation defaults in full; native configs drop half of them and would decode greedily.

    `overrides` replace single values (a checkpoint's own). `<image>` can never be generated.
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
    """(N,) ids of a task prompt; the processor expands the task's words and the image's placeholders. Read only."""
    inputs = processor(images=Image.new("RGB", (8, 8)), text=prompt, return_tensors="pt")
    ids: Tensor = inputs.input_ids[0]
    return ids
