"""split.json: which images a run trains on, which it holds out, and what images and captions were when it began."""

import hashlib
import json
import os
import re
from collections import deque
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

from florence2ner.data.samples import Discovery, ImageRef, Sample, check_utf8
from florence2ner.data.split import Lists, Split
from florence2ner.display import name_some
from florence2ner.errors import UserError

SPLIT_FILE = "split.json"
_ROOT, _TRAIN, _EVAL, _IMAGES, _CAPTIONS = "dataset_path", "train", "eval", "images", "captions"  # keys of the file


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
            {sample.image.key: digests.get(sample.image.key) or _bytes(sample) for sample in samples},
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
            now = _bytes(sample) if isinstance(before, int) else digests.get(sample.image.key)
            if before is not None and now is not None and before != now:
                changed[sample.image.key] = None
        return list(changed)


def split_to_json(split: Split, root: Path, contents: Contents) -> str:
    """The content of split.json: the dataset's folder, the keys of both kinds of images, and `contents`."""
    record = {
        _ROOT: str(root.resolve()),
        _TRAIN: [sample.image.key for sample in split.train],
        _EVAL: [sample.image.key for sample in split.eval],
        _IMAGES: contents.images,
        _CAPTIONS: contents.captions,
    }
    text = json.dumps(record, indent=1, ensure_ascii=False) + "\n"
    # Python has lone surrogates for bytes of a file name that are not UTF-8; a UTF-8 file can hold them only escaped.
    return re.sub("[\ud800-\udfff]", lambda byte: f"\\u{ord(byte[0]):04x}", text)


def read_split(path: Path, root: Path, found: Discovery, *, unreadable: Collection[str] = ()) -> tuple[Split, Contents]:
    """The split that a run wrote to `path`, with what was found of it in `root`, and what it was when the run began.

    Images that the run found to be `unreadable`, by their keys, may be gone. Raises UserError when another one is gone
    or one of its captions, or that is not UTF-8, and when the file is not a split.
    """
    record = _read(path)
    samples: dict[str, deque[Sample]] = {}
    for sample in found.samples:
        samples.setdefault(sample.image.key, deque()).append(sample)
    gone: list[Path] = []

    def read(keys: Sequence[str]) -> tuple[Sample, ...]:
        """The samples of the images in a list, which has each as often as the run has samples of it."""
        read = []
        for key in keys:
            if rest := samples.get(key):
                read.append(rest.popleft())
                continue
            if key not in unreadable:
                gone.append(root / key)
            read.append(Sample(ImageRef(key, root / key), "", ("",)))  # it was not trained on, and will not be
        return tuple(read)

    split = Split(read(record[_TRAIN]), read(record[_EVAL]))
    if gone:
        check_utf8(found.not_utf8)
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


def images_trained_on(path: Path) -> set[Path]:
    """Paths of the images that the run with this split file trained on. Raises UserError when it is not a split."""
    record = _read(path)
    return {Path(record[_ROOT], key) for key in record[_TRAIN]}


def _read(path: Path) -> dict[str, Any]:
    try:
        record: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        if record.keys() >= {_ROOT, _TRAIN, _EVAL, _IMAGES, _CAPTIONS}:
            return record
    except (ValueError, AttributeError):
        pass
    except OSError as error:
        raise UserError(f"{path} can't be read: {error.strerror}") from None
    raise UserError(f"{path} doesn't hold the split of a run, or that of another version: start a new run")


def _bytes(sample: Sample) -> int | None:
    """The size of the image file in bytes; None where there is none."""
    try:
        return os.stat(sample.image.path).st_size
    except OSError:
        return None


def _captions(split: Split) -> dict[str, list[str]]:
    """All captions of each image, by its key."""
    captions: dict[str, list[str]] = {}
    for sample in split.samples:
        captions.setdefault(sample.image.key, []).extend(sample.captions)
    return captions


def _digest(captions: Sequence[str]) -> str:
    return hashlib.blake2b("\0".join(captions).encode(), digest_size=8).hexdigest()
