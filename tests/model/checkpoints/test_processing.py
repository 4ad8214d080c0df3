"""Processor, tokenizer and generation: the ids and texts are the original's, and <image> is never written."""

from pathlib import Path
from typing import Any

import torch
from PIL import Image

from florence2ner import load_model
from florence2ner.model.checkpoints.original import load_original
from tests.model.checkpoints.support import Oracle
from tests.model.support import ORACLE, needs_oracle


@needs_oracle
def test_prompts_and_texts_have_the_originals_ids(oracle: Oracle) -> None:
    image = Image.open(ORACLE / oracle.facts["images"][0]["file"])
    for prompt, expected in oracle.facts["prompt_expansion"].items():
        ids = oracle.processor(images=image, text=prompt, return_tensors="pt")["input_ids"][0].tolist()
        assert ids == [oracle.processor.image_token_id] * 10 + expected["input_ids"], prompt
    assert len(oracle.facts["prompt_expansion"]) == 15
    texts = oracle.facts["tokenization"]
    # <image> is a token here and <mask> is not: these two words, and only these, are cut up differently.
    words = {"<image>": [0, 600, 2], " <mask> a": oracle.processor.tokenizer(" <mask> a")["input_ids"]}
    assert words.keys() <= texts.keys()
    assert {text: oracle.processor.tokenizer(text)["input_ids"] for text in texts} == texts | words


@needs_oracle
def test_captions_are_post_processed_as_by_the_original(oracle: Oracle) -> None:
    compared = 0
    for case in oracle.facts["postprocess"]:
        ((task, wanted),) = case["result"].items()
        if isinstance(wanted, str):
            result = oracle.processor.post_process_generation(case["text"], task=task, image_size=case["image_size_wh"])
            assert result == {task: wanted.strip()}
            compared += 1
    assert compared >= 2


def test_image_is_never_generated(exported: Path) -> None:
    model, processor = load_original(exported)
    image_id = model.config.image_token_id

    def prefer_image(module: torch.nn.Module, inputs: Any, logits: torch.Tensor) -> torch.Tensor:
        return logits.index_fill(-1, torch.tensor([image_id]), 1e4)

    model.lm_head.register_forward_hook(prefer_image)
    inputs = processor(images=Image.new("RGB", (9, 9)), text="<CAPTION>", return_tensors="pt")
    assert image_id not in model.generate(**inputs, max_new_tokens=5)
    model.generation_config.suppress_tokens = None
    assert image_id in model.generate(**inputs, max_new_tokens=5)


def test_image_is_never_a_caption(tiny_model: Path, shapes: Path) -> None:
    model, _ = load_model(tiny_model)
    with torch.no_grad():  # make <image> the likeliest token by far
        model.lm_head.weight[model.config.image_token_id] = 100 * model.lm_head.weight[5]
    pixels = torch.zeros(1, 3, 64, 64)
    ids = torch.tensor([[model.config.image_token_id] * 17 + [0, 2]])
    generated = model.generate(input_ids=ids, pixel_values=pixels, max_new_tokens=12)
    assert model.config.image_token_id not in generated
