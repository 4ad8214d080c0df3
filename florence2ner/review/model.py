"""The model that the review page asks for other captions. Imports torch."""

from functools import partial

import torch

from florence2ner.captioning.asking import Asker
from florence2ner.config.commands import ReviewConfig
from florence2ner.data.images import load_pixels
from florence2ner.data.loader import image_size_of
from florence2ner.data.samples import ImageRef
from florence2ner.display import Display
from florence2ner.engine.run_files import find_model
from florence2ner.engine.runtime import autocast_dtype, make_accelerator
from florence2ner.files import as_utf8
from florence2ner.model.build import load_captioner
from florence2ner.model.checkpoints.loading import quiet_transformers, width_of
from florence2ner.model.checkpoints.processing import expand_prompt
from florence2ner.model.inputs import Embeddings, Pixels
from florence2ner.model.tasks import find_task, prompt_of
from florence2ner.review.ask import Question


class Model:
    """A captioner that answers one question after another; of one image, it is encoded once."""

    @quiet_transformers()
    def __init__(self, config: ReviewConfig) -> None:
        """Load the model. Raises UserError as `load_model` does."""
        assert config.model_name is not None
        self._config = config
        self._accelerator = make_accelerator(
            "auto", seed=config.seed, width=partial(width_of, find_model(config.model_name))
        )
        self._captioner = load_captioner(
            find_model(config.model_name),
            device=self._accelerator.device,
            dtype=autocast_dtype(self._accelerator),
        )
        self._warn = Display(is_main=True).warn
        self._encoded: tuple[str | None, Embeddings] | None = None

    def answer(self, image: ImageRef, question: Question, seed: int) -> tuple[str, tuple[str, ...]]:
        """The answer as it would be written, and the flags of what looks wrong with it. Raises ImageError."""
        task = find_task(question.task)
        options = self._config.model_copy(update={"num_beams": question.beams, "temperature": question.temperature})
        with torch.no_grad(), self._accelerator.autocast():
            embedded = self._embed(image)
            ids = expand_prompt(self._captioner.processor, prompt_of(task)).to(embedded.values.device)[None]
            asker = Asker(self._captioner, options, seed=seed, batch_size=1, notify=self._warn)
            names = [as_utf8(image.path.name)]
            (text,) = asker.ask(embedded, ids, None, names=names, may_be_empty=task.may_be_empty)
        return text.text, text.flags(may_be_empty=task.may_be_empty)

    def _embed(self, image: ImageRef) -> Embeddings:
        stamp = image.stamp()
        if self._encoded is None or stamp is None or self._encoded[0] != stamp:
            size = image_size_of(self._captioner.processor)
            picture = load_pixels(image, size, max_pixels=self._config.max_pixels)
            pixels = Pixels(picture.pixels[None]).to(self._accelerator.device)
            self._encoded = stamp, self._captioner.vision.embed(pixels)
        return self._encoded[1]
