"""The two things Florence-2 does for us: the loss of given captions, and captions."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Self

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import nn
from transformers import Florence2ForConditionalGeneration, Florence2Processor
from transformers.models.florence2.modeling_florence2 import shift_tokens_right

from florence2ner.model.kernels.attention import use_fast_attention
from florence2ner.model.search import search


@dataclass(frozen=True)
class Decoding:
    """How text is generated. None leaves a setting as the checkpoint has it."""

    num_beams: int
    max_new_tokens: int
    temperature: float | None = None  # None: no sampling
    top_p: float | None = None
    top_k: int | None = None
    no_repeat_ngram_size: int | None = None
    repetition_penalty: float | None = None
    length_penalty: float | None = None
    bad_words: tuple[str, ...] = ()


@dataclass(frozen=True)
class Generated:
    """What the model wrote for one image."""

    text: str  # without special tokens
    raw: str  # with them: <s>, </s>, <loc_12> ...
    tokens: int  # up to and with </s>, which is forced upon the last where the limit comes first
    limit: int


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
        use_fast_attention(model)
        # Convolutions are about a third faster that way round, and the rest of the tower as fast.
        model.model.vision_tower.to(memory_format=torch.channels_last)
        self._parked: list[nn.Module] = []  # a list, so that the tower in it is not a part of this module
        self._originals: list[tuple[nn.Parameter, torch.Tensor]] = []  # of what `lower_frozen` has lowered

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

    def vision_features(self, pixel_values: torch.Tensor) -> torch.Tensor:
        """Pixels uint8 (B, 3, H, W) -> what the vision tower makes of them: (B, C, h, w), before the projector.

        A CPU takes them one at a time: its cache holds what one image needs, and a batch gains nothing else there.
        """
        self.unpark_tower()  # a feature may be lost while training goes on
        tower = self.model.model.vision_tower
        pieces = torch.split(pixel_values, 1) if pixel_values.device.type == "cpu" else (pixel_values,)
        inputs = (self.normalise(piece).contiguous(memory_format=torch.channels_last) for piece in pieces)
        trained = any(parameter.requires_grad for parameter in tower.parameters())
        with torch.set_grad_enabled(trained and torch.is_grad_enabled()):
            return torch.cat([tower(pixels).last_hidden_state for pixels in inputs])

    def embed_images(self, images: torch.Tensor) -> torch.Tensor:
        """Images in any form that `encode` takes or gives -> what the language model reads: (B, N, d_model)."""
        if images.dtype == torch.uint8:
            images = self.vision_features(images)
        if images.dim() == 4:
            images = self.model.model.multi_modal_projector(images)
        return images

    def encode(self, pixel_values: torch.Tensor) -> torch.Tensor:
        """Pixels uint8 (B, 3, H, W) -> all that no training changes: features (B, C, h, w), or (B, N, d_model).

        The latter where the projector is frozen too. `forward` and `embed_images` go on from either.
        """
        projector = self.model.model.multi_modal_projector
        trained = any(parameter.requires_grad for parameter in projector.parameters())
        return self.vision_features(pixel_values) if trained else self.embed_images(pixel_values)

    def compile_model(self) -> None:
        """Have torch.compile speed up the vision tower and the language model's encoder; weights keep their names.

        For each batch size anew, but for the tower on a CPU: torch can't make one that serves all. The decoder meets a
        new length with every token that it writes, and would be compiled over and over. Call it on the final device,
        when it is settled what is frozen: on a CPU the compiler takes frozen weights for constants, and gains most so.
        """
        for part in (self.model.model.vision_tower, self.model.model.language_model.encoder):
            frozen = not any(parameter.requires_grad for parameter in part.parameters())
            part.compile(dynamic=False, options={"freezing": frozen and self.image_mean.device.type == "cpu"})

    def fix_weights(self, dtype: torch.dtype | None) -> None:
        """No weight is going to change, and autocast casts to `dtype` (None: it is off)."""
        self.requires_grad_(False)
        if dtype:
            self.lower_frozen(dtype, for_good=True)

    def lower_frozen(self, dtype: torch.dtype, *, for_good: bool = False) -> None:
        """Keep the frozen weights that autocast would cast to `dtype` in every step in that precision.

        The results are the same to the bit. `whole` brings back the originals, which wait on the CPU; `for_good`
        forgets them.
        """
        tables = {module.weight for module in self.modules() if isinstance(module, nn.Embedding)}  # tied: not cast
        for module in self.modules():
            if isinstance(module, nn.Linear | nn.Conv2d):
                for parameter in module.parameters(recurse=False):
                    if not parameter.requires_grad and parameter not in tables:
                        if not for_good:
                            self._originals.append((parameter, parameter.data.cpu()))
                        parameter.data = parameter.data.to(dtype)

    def encoder_weights(self) -> dict[str, torch.Tensor]:
        """All weights that `encode` uses, by name."""
        inner = self.model.model
        parts = {"vision_tower": inner.vision_tower}
        if not any(parameter.requires_grad for parameter in inner.multi_modal_projector.parameters()):
            parts["multi_modal_projector"] = inner.multi_modal_projector
        return {f"{part}.{name}": t for part, module in parts.items() for name, t in module.state_dict().items()}

    def image_facts(self) -> tuple[object, ...]:
        """How pixels are prepared, and what the architecture is besides its weights."""
        image_processor = self.processor.image_processor
        size = image_processor.size["height"], image_processor.size["width"]
        normalisation = self.pixel_range, self.image_mean.tolist(), self.image_std.tolist()
        return size, normalisation, self.model.config.vision_config.to_json_string()

    def feature_bytes(self, dtype: torch.dtype) -> int:
        """About how many bytes `encode` makes of one image."""
        image_processor = self.processor.image_processor
        width = max(self.model.config.vision_config.embed_dim[-1], self.model.config.text_config.d_model)
        return int((image_processor.image_seq_length + 1) * width * dtype.itemsize)

    def park_tower(self) -> None:
        """Take the vision tower, which is frozen and no longer needed, off the device."""
        self._parked = [self.model.model.vision_tower.to("cpu")]
        self.model.model.vision_tower = nn.Identity()
        if torch.cuda.is_available():
            torch.cuda.empty_cache()

    def unpark_tower(self) -> None:
        """Bring the vision tower back, if it is away."""
        if self._parked:
            self.model.model.vision_tower = self._parked.pop().to(self.image_mean.device)

    @contextmanager
    def whole(self) -> Iterator[None]:
        """A `with` in which the model has its tower and all weights in their own precision, for saving and loading."""
        parked = bool(self._parked)
        self.unpark_tower()
        lowered = [parameter.data for parameter, _ in self._originals]
        for parameter, original in self._originals:
            parameter.data = original.to(parameter.device)
        try:
            yield
        finally:
            for (parameter, _), data in zip(self._originals, lowered, strict=True):
                parameter.data = data
            if parked:
                self.park_tower()

    def collect(
        self, pixel_values: torch.Tensor | None, features: torch.Tensor | None, encoded: Sequence[bool]
    ) -> torch.Tensor:
        """One tensor for a batch of which some rows are pixels and others `encoded` already, in the order of the rows.

        Pixels stay pixels where all rows are; otherwise they are encoded now.
        """
        if features is None or pixel_values is None:
            images = pixel_values if features is None else features
            assert images is not None
            return images
        with torch.no_grad():  # the tower is frozen, or nothing would be encoded already
            fresh = self.encode(pixel_values).to(features.dtype)
        known, new = iter(features), iter(fresh)
        return torch.stack([next(known if is_known else new) for is_known in encoded])

    def forward(
        self,
        pixel_values: torch.Tensor | None,
        features: torch.Tensor | None,
        encoded: Sequence[bool],
        input_ids: torch.Tensor,
        attention_mask: torch.Tensor | None,
        labels: torch.Tensor,
        label_positions: torch.Tensor,
    ) -> torch.Tensor:
        """`token_losses` of the images that `collect` puts together."""
        images = self.collect(pixel_values, features, encoded)
        return self.token_losses(images, input_ids, attention_mask, labels, label_positions)

    def token_losses(
        self,
        images: torch.Tensor,
        input_ids: torch.Tensor,
        attention_mask: torch.Tensor | None,
        labels: torch.Tensor,
        label_positions: torch.Tensor,
    ) -> torch.Tensor:
        """Cross-entropy of each label token in nats, 0 where labels are -100: (B, L) float32.

        images are pixels, uint8 (B, 3, H, W), or what `encode` made of them; input_ids and attention_mask (B, N),
        labels (B, L), label_positions (T,) the places of those that count in the flattened labels: logits are made only
        there. Nothing is averaged: only the caller knows how many tokens the whole update holds.
        """
        config = self.model.config.text_config
        hidden = self.model.model(
            inputs_embeds=self._merge(self.embed_images(images), input_ids),
            attention_mask=attention_mask,
            decoder_input_ids=shift_tokens_right(labels, config.pad_token_id, config.decoder_start_token_id),
            use_cache=False,
        ).last_hidden_state
        logits = self.model.lm_head(hidden.flatten(0, 1)[label_positions])  # (T, vocabulary)
        losses = F.cross_entropy(logits.float(), labels.flatten()[label_positions], reduction="none")
        everywhere = losses.new_zeros(labels.numel()).index_put((label_positions,), losses)
        return rearrange(everywhere, "(b l) -> b l", b=len(labels))

    @torch.no_grad()
    def generate(
        self, embedded: torch.Tensor, input_ids: torch.Tensor, attention_mask: torch.Tensor | None, decoding: Decoding
    ) -> list[Generated]:
        """An answer for each image: B of them. `embedded` (B, N, d_model) is from `embed_images`, once for all tasks.

        `max_new_tokens` is cut to what the decoder's position table holds. n-gram blocking and the forced first and
        last token are the checkpoint's own, unless `decoding` says otherwise. <image> can't be generated.
        """
        pad = self.model.config.text_config.pad_token_id
        limit = min(decoding.max_new_tokens, self.model.config.text_config.max_position_embeddings - 1)
        encoder = self.model.model.language_model.encoder
        encoded = encoder(inputs_embeds=self._merge(embedded, input_ids), attention_mask=attention_mask)
        settings = {
            "num_beams": decoding.num_beams,
            "do_sample": decoding.temperature is not None,
            "max_new_tokens": limit,
            "pad_token_id": pad,
            "suppress_tokens": [self.model.config.image_token_id],
            "bad_words_ids": self._ids_of(decoding.bad_words),
        }
        for name in ("temperature", "top_p", "top_k", "no_repeat_ngram_size", "repetition_penalty", "length_penalty"):
            if (value := getattr(decoding, name)) is not None:
                settings[name] = value
        ids: torch.Tensor = self.model.generate(
            encoder_outputs=encoded,
            attention_mask=attention_mask,
            custom_generate=partial(search, encoded=encoded.last_hidden_state, encoded_mask=attention_mask),
            **settings,
        )
        rows = [[i for i in row[1:] if i != pad] for row in ids.tolist()]  # the first is the decoder's start
        texts = self.processor.batch_decode(rows, skip_special_tokens=True)
        raws = self.processor.batch_decode(rows, skip_special_tokens=False)
        return [
            Generated(text.strip(), raw, tokens=len(row), limit=limit)
            for text, raw, row in zip(texts, raws, rows, strict=True)
        ]

    def _merge(self, embedded: torch.Tensor, input_ids: torch.Tensor) -> torch.Tensor:
        """The prompt's embeddings (B, N, d_model) with the images in their places."""
        prompt: torch.Tensor = self.model.get_input_embeddings()(input_ids)
        places = (input_ids == self.model.config.image_token_id).unsqueeze(-1)
        return prompt.masked_scatter(places, embedded.to(prompt.dtype))

    def _ids_of(self, words: Sequence[str]) -> list[list[int]] | None:
        """Token ids of each word, as it stands at the start of a text and inside it."""
        spellings = [spelling for word in words for spelling in (word, f" {word}")]
        ids: list[list[int]] = self.processor.tokenizer(spellings, add_special_tokens=False).input_ids if words else []
        return ids or None
