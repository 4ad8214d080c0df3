"""Captions an image with plain transformers: `python older_client.py MODEL IMAGE [COPY]`. Imports nothing of ours.

Prints the release of transformers, the ids of the prompt and those of the answer, as JSON, and saves the model and its
processor once more as COPY.
"""

import json
import sys

import torch
import transformers
from PIL import Image
from transformers import AutoProcessor, Florence2ForConditionalGeneration


def main(model_dir: str, image: str, copy: str | None = None) -> None:
    model = Florence2ForConditionalGeneration.from_pretrained(model_dir).eval()
    processor = AutoProcessor.from_pretrained(model_dir)
    inputs = processor(images=Image.open(image).convert("RGB"), text="<CAPTION>", return_tensors="pt")
    with torch.no_grad():
        answer = model.generate(**inputs, max_new_tokens=12, num_beams=3)
    if copy:
        model.save_pretrained(copy)
        processor.save_pretrained(copy)
    print(json.dumps([transformers.__version__, inputs.input_ids.tolist(), answer.tolist()]))


if __name__ == "__main__":
    main(*sys.argv[1:])
