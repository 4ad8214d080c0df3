"""The two things Florence-2 does for us: the loss of given captions, and captions."""

from __future__ import annotations

from typing import Self

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import nn
from transformers import Florence2ForConditionalGeneration, Florence2Processor
from transformers.models.florence2.modeling_florence2 import shift_tokens_right


class Captioner(nn.Module):
    """A Florence-2 with its pixel normalisation. Its `forward` is the loss, so that DDP and autocast wrap all of it."""

    image_mean: torch.Tensor
    image_std: torch.Tensor

    def __init__(self, model: Florence2ForConditionalGeneration, processor: Florence2Processor) -> None:
        super().__init__()
        self.model = model
        self.processor = processor
        image_processor = processor.image_processor
        self.pixel_range: float = 1 / image_processor.rescale_factor  # 255
        for name in ("image_mean", "image_std"):
            values = torch.tensor(getattr(image_processor, name)).view(1, 3, 1, 1)
            self.register_buffer(name, values, persistent=False)

    def train(self, mode: bool = True) -> Self:
        """Switch to training, except for what is frozen: that stays in evaluation mode (no dropout, no DropPath)."""
        super().train(mode)
        for part in (
            self.model.model.vision_tower,
            self.model.model.multi_modal_projector,
            self.model.model.language_model,
        ):
            if not any(parameter.requires_grad for parameter in part.parameters()):
                part.eval()
        return self

    def normalise(self, pixels: torch.Tensor) -> torch.Tensor:
        """uint8 (B, 3, H, W) -> normalised float32 of the same shape, to the bit what the processor computes."""
        return (pixels.float() / self.pixel_range - self.image_mean) / self.image_std

    def forward(
        self, pixel_values: torch.Tensor, input_ids: torch.Tensor, attention_mask: torch.Tensor, labels: torch.Tensor
    ) -> torch.Tensor:
        """Cross-entropy of each label token in nats, 0 where labels are -100: (B, L) float32.

        pixel_values uint8 (B, 3, H, W), input_ids and attention_mask (B, N), labels (B, L). Nothing is averaged here:
        only the caller knows how many tokens the whole update holds.
        """
        config = self.model.config.text_config
        logits = self.model(
            pixel_values=self.normalise(pixel_values),
            input_ids=input_ids,
            attention_mask=attention_mask,
            decoder_input_ids=shift_tokens_right(labels, config.pad_token_id, config.decoder_start_token_id),
            use_cache=False,
        ).logits  # (B, L, vocabulary)
        return F.cross_entropy(rearrange(logits.float(), "b l v -> b v l"), labels, reduction="none")

    @torch.no_grad()
    def generate(
        self,
        pixel_values: torch.Tensor,
        input_ids: torch.Tensor,
        attention_mask: torch.Tensor,
        *,
        num_beams: int,
        max_new_tokens: int,
    ) -> list[str]:
        """A caption for each image: B texts, without special tokens.

        `max_new_tokens` is cut to what the decoder's position table holds. n-gram blocking and the forced first and
        last token are the checkpoint's own.
        """
        longest = self.model.config.text_config.max_position_embeddings - 1
        ids: torch.Tensor = self.model.generate(
            pixel_values=self.normalise(pixel_values),
            input_ids=input_ids,
            attention_mask=attention_mask,
            num_beams=num_beams,
            do_sample=False,
            max_new_tokens=min(max_new_tokens, longest),
            suppress_tokens=[self.model.config.image_token_id],
        )
        texts: list[str] = self.processor.batch_decode(ids, skip_special_tokens=True)
        return [text.strip() for text in texts]
