"""A Florence-2 wrapped for training and captioning: its forward pass is the loss of given captions."""

from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any, Self

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint
from transformers import Florence2ForConditionalGeneration, Florence2Processor
from transformers.models.florence2.modeling_florence2 import shift_tokens_right

from florence2ner.model.inputs import Embeddings, Images, Text
from florence2ner.model.kernels.lookup import look_up
from florence2ner.model.kernels.precision import FrozenWeights, TrainedWeights
from florence2ner.model.vision import VisionEncoder

LOGITS_AT_ONCE = 2**24  # 64 MB in float32; a few times that with what is computed from them


class Captioner(nn.Module):
    """A Florence-2 with its pixel normalisation, made ready for use by `build.build_captioner`.

    `forward` computes the loss, so that DDP and autocast cover all of the computation.
    """

    label_smoothing: float = 0.0  # share of each label that is spread over the vocabulary, in training mode only

    def __init__(self, model: Florence2ForConditionalGeneration, processor: Florence2Processor) -> None:
        super().__init__()
        self.model = model
        self.processor = processor
        self.vision = VisionEncoder(model, processor.image_processor)
        self.frozen_weights = FrozenWeights()
        self.trained_weights = TrainedWeights()

    @property
    def longest_caption(self) -> int:
        """The most tokens that a caption can have, <s> and </s> included: the decoder's number of positions."""
        return int(self.model.config.text_config.max_position_embeddings)

    @property
    def frozen_parts(self) -> list[nn.Module]:
        """The parts of which nothing is trained: of vision tower, projector, language model and its head."""
        language = self.model.model.language_model, self.model.lm_head
        parts = (self.vision.tower, self.vision.projector, *language)
        return [part for part in parts if not any(parameter.requires_grad for parameter in part.parameters())]

    def train(self, mode: bool = True) -> Self:
        """Switch to training mode, except for frozen parts: they stay in evaluation mode (no dropout, no DropPath)."""
        super().train(mode)
        for part in self.frozen_parts:
            part.eval()
        return self

    @contextmanager
    def as_loaded(self) -> Iterator[None]:
        """A context manager for saving and loading: the vision tower is on the device, every weight in its own dtype.

        Afterwards the tower is offloaded again, if it was, and frozen weights are in autocast's dtype again.
        """
        was_offloaded = self.vision.restore()
        try:
            with self.frozen_weights.in_full():
                yield
        finally:
            if was_offloaded:
                self.vision.offload()

    def forward(self, images: Images, text: Text) -> Tensor:
        """Cross-entropy of each label token in nats, (B, L) float32; 0 where the label is IGNORE_INDEX.

        In training mode it is that of smoothed labels, as torch's `cross_entropy` defines them.

        Logits are computed only at positions with a label, to save memory and time. Nothing is averaged here: only the
        caller knows the number of label tokens of the whole update.
        """
        config, labels = self.model.config.text_config, text.labels
        language = self.model.model.language_model
        embedded = self.vision.embed(images)
        prompts = text.input_ids[:, embedded.values.shape[1] :]
        written = shift_tokens_right(labels, config.pad_token_id, config.decoder_start_token_id)
        looked_up = self._look_up(torch.cat([prompts, written], dim=1))
        asked, captions = torch.split(looked_up, [prompts.shape[1], written.shape[1]], dim=1)
        encoded = language.encoder(
            inputs_embeds=_behind(embedded, asked), attention_mask=text.attention_mask
        ).last_hidden_state
        hidden = language.decoder(
            inputs_embeds=captions,
            encoder_hidden_states=encoded,
            encoder_attention_mask=text.attention_mask,
            use_cache=False,
        ).last_hidden_state
        targets = labels.flatten()[text.label_positions]
        losses = self._losses(hidden.flatten(0, 1)[text.label_positions], targets)
        row, column = text.label_positions // labels.shape[1], text.label_positions % labels.shape[1]
        return losses.new_zeros(labels.shape).index_put((row, column), losses)

    def _losses(self, hidden: Tensor, targets: Tensor) -> Tensor:
        """The losses of `targets` (T,) after the decoder's states `hidden` (T, d_model): (T,) float32.

        Logits of a large vocabulary are what takes most memory in a small model. Those of many tokens are computed in
        chunks, and once more in the backward pass: they never exist at once.
        """
        chunk = max(1, LOGITS_AT_ONCE // self.model.config.text_config.vocab_size)
        if len(targets) <= chunk:
            return self._losses_of_chunk(hidden, targets)
        compute = partial(checkpoint, use_reentrant=False, preserve_rng_state=False)  # there is no dropout in it
        parts = zip(torch.split(hidden, chunk), torch.split(targets, chunk), strict=True)
        return torch.cat([compute(self._losses_of_chunk, *part) for part in parts])

    def _losses_of_chunk(self, hidden: Tensor, targets: Tensor) -> Tensor:
        smoothing = self.label_smoothing if self.training else 0.0
        logits = self.model.lm_head(hidden)  # (T, vocabulary)
        return F.cross_entropy(logits.float(), targets, reduction="none", label_smoothing=smoothing)

    def merge(self, images: Embeddings, input_ids: Tensor) -> Tensor:
        """Embed prompts `input_ids` (B, N), the <image> tokens replaced by image embeddings: (B, N, d_model).

        These come first, as `expand_prompt` makes them. So this concatenates, where transformers looks for them with
        masked_scatter, and in its backward has the host wait for the device.
        """
        return _behind(images, self._look_up(input_ids[:, images.values.shape[1] :]))

    def _look_up(self, ids: Tensor) -> Tensor:
        """Embed tokens `ids` (B, N): (B, N, d_model).

        Where the head is tied to the table, its gradient takes that of the lookups, on a CPU: a GPU would add them up
        in another order each time, and fills tables in no time.
        """
        table: Any = self.model.get_input_embeddings()
        if table.weight.is_cpu and table.weight is self.model.lm_head.weight:
            words: Tensor = look_up(ids, table.weight, table.padding_idx) * table.embed_scale
        else:
            words = table(ids)
        return words


def _behind(images: Embeddings, words: Tensor) -> Tensor:
    return torch.cat([images.values.to(words.dtype), words], dim=1)
