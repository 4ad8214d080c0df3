"""What large folders cost: `python -m tests.benchmarks.scale` prints a table, in Markdown, for 1,000 images and more.

Each figure comes from a process of its own, and its memory is what that took beyond its imports. The images are small
and all different; captions and features are links to a few files, as only their names are looked at.
"""

import argparse
import io
import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryDirectory

import torch
from PIL import Image

from florence2ner import CaptionConfig
from florence2ner.captioning.plan import make_plan
from florence2ner.config.options import ReadingOptions
from florence2ner.config.roots import Root
from florence2ner.data.features import FeatureCache
from florence2ner.data.formats import discover_images
from florence2ner.data.samples import ImageRef
from florence2ner.data.split import SplitRule, discover_split
from tests.programs.splitting import peak_memory

SIZES = (1_000, 10_000, 100_000, 1_000_000)
IN_FOLDER, LINKS = 1000, 50_000  # images in a folder; links to a file, of which file systems allow so many
FINGERPRINT = "0" * 32


def draw(folder: Path, count: int) -> None:
    """Images in folders, each with a caption."""
    drawn = io.BytesIO()
    Image.new("RGB", (8, 8)).save(drawn, "JPEG")
    for number in range(count):
        place = folder / f"{number // IN_FOLDER:04d}"
        if number % IN_FOLDER == 0:
            place.mkdir(parents=True)
        if number % LINKS == 0:
            text = folder.parent / f"caption-{number}"
            text.write_text("a black square\n")
        (place / f"{number}.jpg").write_bytes(drawn.getvalue() + str(number).encode())  # readers ignore what is behind
        os.link(text, place / f"{number}.txt")


def discover(photos: Path) -> None:
    """Find the dataset, and hold out a part."""
    discover_split([Root(photos, ReadingOptions())], rule=SplitRule(seed=1, ratio=0.1))


def resume(photos: Path) -> None:
    """Caption a folder of which every image has a caption."""
    assert not make_plan(CaptionConfig(paths=(photos,)), discover_images([photos])).todo


def identify(photos: Path) -> None:
    """Read images that the feature cache has never seen."""
    _look_up(photos, fresh=True)


def look_up(photos: Path) -> None:
    """Find the features of images that the cache knows."""
    _look_up(photos, fresh=False)


def _look_up(photos: Path, *, fresh: bool) -> None:
    cache = FeatureCache(photos.parent / "features", FINGERPRINT)
    images = [ImageRef.below(photos, path) for path in discover_images([photos])]
    cache.digests |= cache.identify(images)
    missing = cache.missing(images)
    assert len(missing) == (len(images) if fresh else 0)
    for number, image in enumerate(missing):
        if number % LINKS == 0:
            cache.store(image.key, torch.zeros(1))
            source = cache.folder / (digest := cache.digests[image.key])[:2] / digest
        else:
            place = cache.folder / (digest := cache.digests[image.key])[:2]
            place.mkdir(exist_ok=True)
            os.link(source, place / digest)


STEPS: dict[str, Callable[[Path], None]] = {step.__name__: step for step in (discover, resume, identify, look_up)}


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m tests.benchmarks.scale", description=__doc__)
    parser.add_argument("--largest", type=int, default=SIZES[-1], help="leave out what has more images")
    parser.add_argument("--only", nargs=2, metavar=("STEP", "FOLDER"), help="one step, in this process")
    arguments = parser.parse_args()
    if arguments.only:
        name, photos = arguments.only
        before, start = peak_memory(), time.perf_counter()
        STEPS[name](Path(photos))
        print(json.dumps({"seconds": time.perf_counter() - start, "bytes": peak_memory() - before}))
        return
    print("| images | " + " | ".join(f"{name}, s | MB" for name in STEPS) + " |")
    print("|---" * (1 + 2 * len(STEPS)) + "|", flush=True)
    for count in SIZES:
        if count > arguments.largest:
            break
        with TemporaryDirectory() as folder:
            photos = Path(folder, "photos")
            draw(photos, count)
            figures = []
            for name in STEPS:
                command = [sys.executable, "-m", "tests.benchmarks.scale", "--only", name, str(photos)]
                told = json.loads(subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout)
                figures.append(f"{told['seconds']:.2f} | {told['bytes'] / 1e6:.0f}")
            print(f"| {count:,} | " + " | ".join(figures) + " |", flush=True)
            shutil.rmtree(photos)


if __name__ == "__main__":
    main()
