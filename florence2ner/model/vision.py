"""The half of a Florence-2 that sees: from pixels to features, and on to what the language model reads."""

from typing import Any

import torch
from torch import Tensor, nn
from transformers import Florence2ForConditionalGeneration

from florence2ner.model.inputs import Embeddings, Encoded, Features, Images, PartlyEncoded, Pixels


class VisionEncoder(nn.Module):
    """Pixel normalisation, vision tower and projector of a model.

    It has no weights of its own: tower and projector stay in the model, so that they are saved under their own names.
    """

    image_mean: Tensor
    image_std: Tensor

    def __init__(self, model: Florence2ForConditionalGeneration, image_processor: Any) -> None:
        super().__init__()
        self._model = [model]  # a list, so that the model is not a part of this module
        self._offloaded: list[nn.Module] = []  # likewise the tower, while it is away
        self._image_processor = image_processor
        self._pixel_range: float = 1 / image_processor.rescale_factor  # 255
        for name in ("image_mean", "image_std"):
            values = torch.tensor(getattr(image_processor, name)).view(1, 3, 1, 1)
            self.register_buffer(name, values, persistent=False)

    @property
    def tower(self) -> nn.Module:
        """The vision tower; an identity while it is offloaded."""
        return self._inner.vision_tower  # type: ignore[no-any-return]

    @property
    def projector(self) -> nn.Module:
        """From the tower's features to the language model's embeddings."""
        return self._inner.multi_modal_projector  # type: ignore[no-any-return]

    @property
    def _inner(self) -> Any:
        return self._model[0].model

    @property
    def encoded_type(self) -> type[Features] | type[Embeddings]:
        """What `encode` gives: embeddings where the projector is frozen too."""
        return Features if _is_trained(self.projector) else Embeddings

    def normalise(self, pixels: Tensor) -> Tensor:
        """uint8 (B, 3, H, W) -> normalised float32 of the same shape, to the bit what the processor computes."""
        return (pixels.float() / self._pixel_range - self.image_mean) / self.image_std

    def features(self, pixels: Pixels) -> Features:
        """What the vision tower makes of pixels.

        A CPU takes the images one at a time: its cache holds what one needs, and a batch gains nothing else there.
        """
        self.restore()  # a cached feature may be lost while training goes on
        tower, values = self.tower, pixels.values
        pieces = torch.split(values, 1) if values.device.type == "cpu" else (values,)
        inputs = (self.normalise(piece).contiguous(memory_format=torch.channels_last) for piece in pieces)
        with torch.set_grad_enabled(_is_trained(tower) and torch.is_grad_enabled()):
            return Features(torch.cat([tower(normalised).last_hidden_state for normalised in inputs]))

    def embed(self, images: Images) -> Embeddings:
        """Images in any form -> what the language model reads."""
        images = self.resolve(images)
        if isinstance(images, Pixels):
            images = self.features(images)
        return Embeddings(self.projector(images.values)) if isinstance(images, Features) else images

    def encode(self, pixels: Pixels) -> Encoded:
        """Pixels -> all that no training changes: features, or embeddings where the projector is frozen too."""
        return self.features(pixels) if self.encoded_type is Features else self.embed(pixels)

    def resolve(self, images: Images) -> Pixels | Features | Embeddings:
        """One form for all rows: where some are encoded already, the others are encoded now."""
        if not isinstance(images, PartlyEncoded):
            return images
        encoded = images.encoded
        with torch.no_grad():  # the tower is frozen, or nothing would be encoded already
            fresh = self.encode(images.pixels).values.to(encoded.values.dtype)
        known, new = iter(encoded.values), iter(fresh)
        return type(encoded)(torch.stack([next(known if is_known else new) for is_known in images.is_encoded]))

    def weights(self) -> dict[str, Tensor]:
        """All weights that `encode` uses, by name."""
        parts = {"vision_tower": self.tower}
        if self.encoded_type is Embeddings:
            parts["multi_modal_projector"] = self.projector
        return {f"{part}.{name}": t for part, module in parts.items() for name, t in module.state_dict().items()}

    def facts(self) -> tuple[object, ...]:
        """How pixels are prepared, and what the architecture is besides its weights."""
        size = self._image_processor.size["height"], self._image_processor.size["width"]
        normalisation = self._pixel_range, self.image_mean.tolist(), self.image_std.tolist()
        return size, normalisation, self._model[0].config.vision_config.to_json_string()

    def encoded_bytes(self, dtype: torch.dtype) -> int:
        """About how many bytes `encode` makes of one image."""
        config = self._model[0].config
        width = max(config.vision_config.embed_dim[-1], config.text_config.d_model)
        return int((self._image_processor.image_seq_length + 1) * width * dtype.itemsize)

    def offload(self) -> None:
        """Move the vision tower, which is frozen and no longer needed, off the device."""
        self._offloaded = [self.tower.to("cpu")]
        self._inner.vision_tower = nn.Identity()
        if torch.cuda.is_available():
            torch.cuda.empty_cache()

    def restore(self) -> bool:
        """Bring the vision tower back, if it is offloaded. Returns whether it was."""
        if not self._offloaded:
            return False
        self._inner.vision_tower = self._offloaded.pop().to(self.image_mean.device)
        return True


def _is_trained(module: nn.Module) -> bool:
    return any(parameter.requires_grad for parameter in module.parameters())
