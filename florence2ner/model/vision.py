"""The vision half of a Florence-2: from pixels to the tower's features to the projector's embeddings."""

import math
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from transformers import Florence2Config, Florence2ForConditionalGeneration

from florence2ner.model.checkpoints.files import one_line
from florence2ner.model.inputs import Embeddings, Encoded, Features, Images, PartlyEncoded, Pixels
from florence2ner.model.kernels.compilation import compiled_beside

_PIXELS_AT_ONCE = 768 * 768  # on a CPU: an image of Florence-2's
_MORE_AT_ONCE = 16  # times as many on a GPU, which they fill
COMPILE_FROM = 500  # such images, from which compiling the tower on a CPU pays for itself, on slow ones and fast ones


class VisionEncoder(nn.Module):
    """Pixel normalisation, vision tower and projector of a model.

    The module owns no weights: tower and projector stay submodules of the model, so that state dicts keep their names.
    """

    image_mean: Tensor
    image_std: Tensor

    def __init__(self, model: Florence2ForConditionalGeneration, image_processor: Any) -> None:
        super().__init__()
        self._model = [model]  # in a list, so that torch does not register the model as a submodule
        self._compiled: Callable[..., Any] | None = None  # what `compiled` runs instead of the tower
        self._offloaded: list[nn.Module] = []  # likewise the tower, while it is offloaded
        self._image_processor = image_processor
        self._pixel_range: float = 1 / image_processor.rescale_factor  # 255
        for name in ("image_mean", "image_std"):
            values = torch.tensor(getattr(image_processor, name)).view(1, 3, 1, 1)
            self.register_buffer(name, values, persistent=False)

    @property
    def tower(self) -> nn.Module:
        """The vision tower; an `nn.Identity` while it is offloaded."""
        return self._inner.vision_tower  # type: ignore[no-any-return]

    @property
    def projector(self) -> nn.Module:
        """The module between the tower's features and the language model's embeddings."""
        return self._inner.multi_modal_projector  # type: ignore[no-any-return]

    @property
    def _size(self) -> tuple[int, int]:
        """Height and width of the images that the tower is made for, in pixels."""
        return self._image_processor.size["height"], self._image_processor.size["width"]

    @property
    def _inner(self) -> Any:
        return self._model[0].model

    @property
    def is_frozen(self) -> bool:
        """Whether nothing in the vision tower is trained."""
        return not _is_trained(self.tower)

    @property
    def encoded_type(self) -> type[Features] | type[Embeddings]:
        """The type that `encode` returns: `Embeddings` where the projector is frozen, else `Features`."""
        return Features if _is_trained(self.projector) else Embeddings

    def normalise(self, pixels: Tensor) -> Tensor:
        """uint8 (B, 3, H, W) -> normalised float32 of the same shape, bit for bit what the image processor computes."""
        return (pixels.float() / self._pixel_range - self.image_mean) / self.image_std

    def features(self, pixels: Pixels) -> Features:
        """Run the vision tower.

        On a CPU large images are encoded one at a time: the activations of one fit its cache, and batching gains
        nothing. Small ones are taken together, up to as many pixels. On a GPU 16 large ones are, by a frozen tower:
        captions can be written for many more at once than could be encoded in its memory.
        """
        self.restore()  # the tower may be offloaded, but a cached feature can be lost during training
        tower, values = self.tower, pixels.values
        run = tower if self._compiled is None else self._compiled  # which has no truth value
        pieces = torch.split(values, self._at_once(values))
        inputs = (self.normalise(piece).contiguous(memory_format=torch.channels_last) for piece in pieces)
        with torch.set_grad_enabled(_is_trained(tower) and torch.is_grad_enabled()):
            return Features(torch.cat([run(normalised).last_hidden_state for normalised in inputs]))

    def _at_once(self, values: Tensor) -> int:
        if not (values.is_cpu or self.is_frozen):  # where it is sharded, it must run as often in each process
            return len(values)
        most = _PIXELS_AT_ONCE if values.is_cpu else _MORE_AT_ONCE * _PIXELS_AT_ONCE
        return max(1, most // values[0, 0].numel())

    @contextmanager
    def compiled(self) -> Iterator[None]:
        """A context manager in which a frozen tower on a CPU runs compiled. Raises what the compiler raises.

        Compiling takes a minute, and makes it 1.2 to 1.5 times as fast, by the processor. Results differ in their last
        bits.
        """
        self.restore()
        self._compiled = compiled_beside(self.tower, self.image_mean.device)
        try:
            self.features(Pixels(torch.zeros(1, 3, *self._size, dtype=torch.uint8)))
            yield
        finally:
            self._compiled = None
            torch.compiler.reset()  # frees the weights, which were compiled in as constants

    @contextmanager
    def compiled_for(self, images: int, *, say: Callable[[str], None], warn: Callable[[str], None]) -> Iterator[None]:
        """A context manager in which a frozen tower runs compiled where that pays: on a CPU, for so many images.

        Where it can't be compiled, `warn` hears why, and it runs as it is. Enter this in the contexts in which the
        images will be encoded (autocast, without gradients): it is compiled for them.
        """
        with ExitStack() as stack:
            if self.image_mean.is_cpu and images * math.prod(self._size) >= COMPILE_FROM * _PIXELS_AT_ONCE:
                say(f"compiling the vision tower for {images} images, which takes about a minute")
                try:
                    stack.enter_context(self.compiled())
                except Exception as error:  # no compiler, no headers, no room for what it writes: it can be anything
                    warn(f"the vision tower can't be compiled here, so it runs without: {one_line(error)}")
            yield

    def embed(self, images: Images) -> Embeddings:
        """Images in any form -> the embeddings that the language model reads."""
        images = self.resolve(images)
        if isinstance(images, Pixels):
            images = self.features(images)
        return Embeddings(self.projector(images.values)) if isinstance(images, Features) else images

    def encode(self, pixels: Pixels) -> Encoded:
        """Apply the frozen part to pixels, for keeping: the tower, and the projector where it is frozen too."""
        return self.features(pixels) if self.encoded_type is Features else self.embed(pixels)

    def resolve(self, images: Images) -> Pixels | Features | Embeddings:
        """Bring all images of a batch into one form: of a `PartlyEncoded`, the pixels are encoded now."""
        if not isinstance(images, PartlyEncoded):
            return images
        encoded = images.encoded
        with torch.no_grad():  # the tower is frozen, or there would be no cached encodings
            fresh = self.encode(images.pixels).values.to(encoded.values.dtype)
        known, new = iter(encoded.values), iter(fresh)
        return type(encoded)(torch.stack([next(known if is_known else new) for is_known in images.is_encoded]))

    def weights(self) -> dict[str, Tensor]:
        """The weights that `encode` depends on, by name."""
        parts = {"vision_tower": self.tower}
        if self.encoded_type is Embeddings:
            parts["multi_modal_projector"] = self.projector
        return {f"{part}.{name}": t for part, module in parts.items() for name, t in module.state_dict().items()}

    def facts(self) -> tuple[object, ...]:
        """What `encode` depends on besides its weights: image size, normalisation and architecture."""
        normalisation = self._pixel_range, self.image_mean.tolist(), self.image_std.tolist()
        return self._size, normalisation, self._model[0].config.vision_config.to_json_string()

    def encoded_bytes(self, dtype: torch.dtype) -> int:
        """An estimate of the bytes that the encoding of one image takes in `dtype`."""
        return bytes_of_encoding(self._model[0].config, self._image_processor.image_seq_length, dtype.itemsize)

    @property
    def is_offloaded(self) -> bool:
        """Whether the vision tower is on the CPU, as nothing needs it."""
        return bool(self._offloaded)

    def offload(self) -> None:
        """Move the vision tower to the CPU, to free the device's memory. Only for a frozen tower."""
        self._offloaded = [self.tower.to("cpu")]
        self._inner.vision_tower = nn.Identity()
        if torch.cuda.is_available():
            torch.cuda.empty_cache()

    def restore(self) -> bool:
        """Move the vision tower back to the device, if it is offloaded. Returns whether it was."""
        if not self._offloaded:
            return False
        self._inner.vision_tower = self._offloaded.pop().to(self.image_mean.device)
        return True


def bytes_of_encoding(config: Florence2Config, image_seq_length: int, itemsize: int) -> int:
    """An estimate of the bytes that the encoding of one image takes, in values of `itemsize` bytes.

    `image_seq_length` is the number of embeddings per image.
    """
    width = max(config.vision_config.embed_dim[-1], config.text_config.d_model)
    return int((image_seq_length + 1) * width * itemsize)


def _is_trained(module: nn.Module) -> bool:
    return any(parameter.requires_grad for parameter in module.parameters())
