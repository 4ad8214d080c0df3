"""split.json: which images a run trains on, which it holds out, and what images and captions were when it began."""

import hashlib
import json
import os
import re
from collections import deque
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Self

from florence2ner.config.roots import Root, absolute_shard
from florence2ner.data.samples import Discovery, ImageRef, Sample
from florence2ner.data.split import Lists, Split
from florence2ner.display import name_some
from florence2ner.errors import UserError

SPLIT_FILE = "split.json"
# Keys of the file.
_ROOTS, _TRAIN, _EVAL, _WEIGHTS = "dataset_path", "train", "eval", "weights"
_IMAGES, _CAPTIONS, _SHARDS = "images", "captions", "shards"


@dataclass(frozen=True)
class Contents:
    """What the images and captions of a run were, by the images' keys.

    Of an image the digest where the feature cache has computed it, else the size of the file in bytes (None: it could
    not be read); of a caption a digest.
    """

    images: Mapping[str, str | int | None]
    captions: Mapping[str, str]

    @classmethod
    def of(cls, split: Split, digests: Mapping[str, str]) -> Self:
        """What they are now. `digests` are those of the feature cache, by key; there need not be any."""
        samples = split.samples
        return cls(
            {sample.image.key: digests.get(sample.image.key) or sample.image.size() for sample in samples},
            {key: _digest(captions) for key, captions in _captions(split).items()},
        )

    def changed_captions(self, split: Split) -> list[str]:
        """Keys of the images whose captions are others now; that of an image that is gone counts for nothing."""
        now = {key: captions for key, captions in _captions(split).items() if any(captions)}
        return [key for key, captions in now.items() if self.captions.get(key) != _digest(captions)]

    def changed_images(self, split: Split, digests: Mapping[str, str]) -> list[str]:
        """Keys of the images that are others now; `digests` as in `of`. Those that can't be compared are left out."""
        changed: dict[str, None] = {}
        for sample in split.samples:
            before = self.images.get(sample.image.key)
            now = sample.image.size() if isinstance(before, int) else digests.get(sample.image.key)
            if before is not None and now is not None and before != now:
                changed[sample.image.key] = None
        return list(changed)


def split_to_json(split: Split, roots: Sequence[Root], contents: Contents, shards: Sequence[str] = ()) -> str:
    """The content of split.json: the roots, keys and weights of what is trained on and held out, and `contents`.

    Of tar shards that are trained on it has the `shards` alone, in their order.
    """
    weights = [sample.weight for sample in split.train]
    record = {
        _ROOTS: {root.name: absolute_shard(root.shards) if root.shards else str(root.path.resolve()) for root in roots},
        _TRAIN: [sample.image.key for sample in split.train],
        _EVAL: [sample.image.key for sample in split.eval],
        _WEIGHTS: [] if set(weights) == {1.0} else weights,  # of what is trained on; none where each counts once
        _IMAGES: contents.images,
        _CAPTIONS: contents.captions,
        _SHARDS: list(shards),
    }
    text = json.dumps(record, indent=1, ensure_ascii=False) + "\n"
    # Python has lone surrogates for bytes of a file name that are not UTF-8; a UTF-8 file can hold them only escaped.
    return re.sub("[\ud800-\udfff]", lambda byte: f"\\u{ord(byte[0]):04x}", text)


def read_split(
    path: Path, roots: Sequence[Root], found: Discovery, *, unreadable: Collection[str] = ()
) -> tuple[Split, Contents]:
    """The split that a run wrote to `path`, with what was found of it in `roots`, and what it was when the run began.

    Samples have the weights that they had then, as the order of the data depends on those of all of them.
    Images that the run found to be `unreadable`, by their keys, may be gone. Raises UserError when another one is gone
    or one of its captions, or that is not UTF-8, and when the file is not a split.
    """
    record = _read(path)
    samples: dict[str, deque[Sample]] = {}
    for sample in found.samples:
        samples.setdefault(sample.image.key, deque()).append(sample)
    gone: list[Path] = []
    places = {root.name: root.path for root in roots}

    def read(keys: Sequence[str], weights: Sequence[float]) -> tuple[Sample, ...]:
        """The samples of the images in a list, which has each as often as the run has samples of it."""
        read = []
        for key, weight in zip(keys, weights or [1.0] * len(keys), strict=True):
            if rest := samples.get(key):
                read.append(replace(rest.popleft(), weight=weight))
                continue
            image = _image(key, places)
            if key not in unreadable:
                gone.append(image.path)
            read.append(Sample(image, "", ("",), weight))  # it was not trained on, and will not be
        return tuple(read)

    split = Split(read(record[_TRAIN], record[_WEIGHTS]), read(record[_EVAL], []))
    if gone:
        found.refused.check()
        names = list(dict.fromkeys(gone))
        raise UserError(
            f"{len(names)} images or their captions are gone, but the run that is resumed uses them: "
            f"{name_some(names)}; bring them back, or start a new run"
        )
    return split, Contents(record[_IMAGES], record[_CAPTIONS])


def read_lists(path: Path) -> Lists:
    """Both sides of the split in `path`: that of a run, or one written by hand with the keys "train" and "eval" only.

    Raises UserError when the file holds no lists of images' keys there, or an image is on both sides.
    """
    try:
        record = json.loads(path.read_text(encoding="utf-8"))
        sides = [frozenset(record[side]) for side in (_TRAIN, _EVAL) if isinstance(record[side], list)]
        lists = Lists(*sides)
        if not all(isinstance(key, str) for key in lists.train | lists.eval):
            raise TypeError
    except OSError as error:
        raise UserError(f"the split {path} can't be read: {error.strerror}") from None
    except (ValueError, KeyError, TypeError):
        raise UserError(
            f'the split {path} must be JSON with lists of image paths below the dataset: {{"train": [...], '
            '"eval": [...]}'
        ) from None
    if both := lists.train & lists.eval:
        raise UserError(f"the split {path} has {len(both)} images on both sides: {name_some(sorted(both))}")
    return lists


def read_shards_of_run(path: Path) -> list[str]:
    """The tar shards that the run with this split file trains on. Raises UserError when it is not a split."""
    shards: list[str] = _read(path)[_SHARDS]
    return shards


def images_trained_on(path: Path) -> set[Path]:
    """Paths of the images that the run with this split file trained on, or of the shards that hold them.

    Raises UserError when it is not a split.
    """
    record = _read(path)
    places = {name: Path(place) for name, place in record[_ROOTS].items()}
    images = {Path(os.path.normpath(_image(key, places).path)) for key in record[_TRAIN]}
    return images.union(Path(shard).resolve() for shard in record[_SHARDS])


def _image(key: str, places: Mapping[str, Path]) -> ImageRef:
    """The image with that key in one of the roots, whose paths are in `places` by their names."""
    if "" in places:
        return ImageRef(key, places[""] / key)
    name = max((name for name in places if key.startswith(f"{name}/")), key=len, default="")
    return ImageRef(key.removeprefix(f"{name}/"), places.get(name, Path()) / key.removeprefix(f"{name}/"), name)


def _read(path: Path) -> dict[str, Any]:
    try:
        record: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        if record.keys() >= {_ROOTS, _TRAIN, _EVAL, _WEIGHTS, _IMAGES, _CAPTIONS, _SHARDS}:
            return record
    except (ValueError, AttributeError):
        pass
    except OSError as error:
        raise UserError(f"{path} can't be read: {error.strerror}") from None
    raise UserError(f"{path} doesn't hold the split of a run, or that of another version: start a new run")


def _captions(split: Split) -> dict[str, list[str]]:
    """All captions of each image, by its key."""
    captions: dict[str, list[str]] = {}
    for sample in split.samples:
        captions.setdefault(sample.image.key, []).extend(sample.captions)
    return captions


def _digest(captions: Sequence[str]) -> str:
    return hashlib.blake2b("\0".join(captions).encode(), digest_size=8).hexdigest()
