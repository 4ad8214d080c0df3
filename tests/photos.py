"""Real photographs at the size that cameras and phones give, made from scikit-image's."""

from pathlib import Path

from PIL import Image
from skimage import data

SUBJECTS = {
    "astronaut": "a smiling astronaut in an orange suit in front of a flag and a model of the shuttle",
    "coffee": "a cup of coffee on a saucer with a spoon on a wooden table",
    "chelsea": "a tabby cat looking to the right",
    "rocket": "a rocket on its launch pad at dusk",
}
SIZE = (1280, 960)


def make_photos(folder: Path, count: int) -> None:
    """Write `count` captioned JPEGs of 1280x960: different crops of four photographs."""
    folder.mkdir(parents=True)
    for number in range(count):
        name, caption = list(SUBJECTS.items())[number % len(SUBJECTS)]
        photo = Image.fromarray(getattr(data, name)())
        inset = 4 * (number // len(SUBJECTS))
        photo = photo.crop((inset, inset, photo.width - inset, photo.height - inset))
        photo.resize(SIZE, Image.Resampling.LANCZOS).save(folder / f"{name}-{number}.jpg", quality=92)
        (folder / f"{name}-{number}.txt").write_text(caption + "\n", encoding="utf-8")
