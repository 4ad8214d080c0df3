"""Varies the images that are trained on: colour, a slight turn and crop, mirrored where no caption names a side."""

import math
import re
from dataclasses import dataclass

from PIL import Image
from torchvision.transforms import InterpolationMode
from torchvision.transforms.v2 import functional

from florence2ner.config.options import MAX_PIXELS
from florence2ner.data.chance import chance
from florence2ner.data.images import Picture, to_pixels
from florence2ner.data.pictures import load_image
from florence2ner.data.samples import Sample
from florence2ner.model.tasks import find_task

_COLOUR = 0.2  # brightness, contrast and saturation change by up to this share
_MOST_TURNED = 5.0  # degrees
_LOST_TO_TURNING = 0.12  # at most, as a share of a side: long pictures are turned less
_SMALLEST_CROP = 0.9  # share of each side that is left
_BLENDED = 2  # pixels of a side that turning has blended with what is outside
_SMALLEST = 32  # pixels of a side below which a picture keeps its shape

_SIDE = re.compile(r"(?<![^\W\d_])(?:top|bottom|upper|lower|mid|far)?(?:left|right)", re.IGNORECASE)


def names_side(sample: Sample) -> bool:
    """Whether a caption names left or right, in English; what only sounds so, such as "rightly", counts as well."""
    return any(_SIDE.search(text) for text in (sample.task_prompt, *sample.captions))


def may_move(sample: Sample) -> bool:
    """Whether the picture may be turned and cropped: not where the answer has places in it, or is the text in it."""
    task = find_task(sample.task_prompt)
    texts = (sample.task_prompt, *sample.captions)
    return not (task.is_structured or "OCR" in task.token or any("<loc_" in text for text in texts))


@dataclass(frozen=True)
class Augmentation:
    """How images are varied; a pure function of the seed, the image and the number of the visit (see `Draw`)."""

    seed: int
    sided: frozenset[str] = frozenset()  # keys of images that are never mirrored, whatever the sample's captions say

    def load(self, sample: Sample, visit: int, size: tuple[int, int], *, max_pixels: int = MAX_PIXELS) -> Picture:
        """Decode a sample's image in full, vary it and resize it to `size` (height, width). Raises ImageError.

        The hue stays, as captions name colours.
        """
        image = load_image(sample.image, max_pixels=max_pixels)
        width_and_height = image.size
        if may_move(sample) and min(image.size) >= _SMALLEST:
            image = self._moved(image, sample, visit)
        small = image.resize(size[::-1], Image.Resampling.BICUBIC)
        for change in (functional.adjust_brightness, functional.adjust_contrast, functional.adjust_saturation):
            factor = 1 + _COLOUR * self._between(-1, 1, change.__name__, sample, visit)
            small = change(small, factor)  # of a Pillow image, as of a tensor it would depend on the number of threads
        return Picture(to_pixels(small, size), width_and_height)

    def _moved(self, image: Image.Image, sample: Sample, visit: int) -> Image.Image:
        """The picture turned, cropped to a part that is all picture, and mirrored or not."""
        width, height = image.size
        aspect = max(width, height) / min(width, height)
        most = min(_MOST_TURNED, math.degrees(math.asin(min(1.0, _LOST_TO_TURNING / aspect))))
        angle = self._between(-most, most, "angle", sample, visit)
        turned = functional.rotate(image, angle, interpolation=InterpolationMode.BILINEAR)
        # The largest upright rectangle of the same shape that lies within the turned picture.
        inner = 1 / (math.cos(math.radians(angle)) + aspect * math.sin(math.radians(abs(angle))))
        share = self._between(_SMALLEST_CROP, 1, "crop", sample, visit)
        box = []
        for side, name in ((height, "top"), (width, "left")):
            room = max(1, int(inner * side) - _BLENDED)
            length = max(1, round(share * room))
            place = self._between(0, 1, name, sample, visit)
            box.append(((side - room) // 2 + round(place * (room - length)), length))
        (top, cropped_height), (left, cropped_width) = box
        cropped = functional.crop(turned, top, left, cropped_height, cropped_width)
        fixed = sample.image.key in self.sided or names_side(sample)
        mirrored = not fixed and self._between(0, 1, "mirror", sample, visit) < 0.5
        moved: Image.Image = functional.horizontal_flip(cropped) if mirrored else cropped
        return moved

    def _between(self, low: float, high: float, what: str, sample: Sample, visit: int) -> float:
        """What is drawn for an image at a visit: the same for all of its captions and tasks."""
        return low + (high - low) * chance(self.seed, f"augment {what}", visit, sample.image.key)
