"""split.json: which images a run trains on, which it holds out, and what images and captions were when it began."""

import hashlib
import json
import os
import re
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Self

from florence2ner.data.samples import Sample
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
        samples = (*split.train, *split.eval)
        return cls(
            {sample.image.key: digests.get(sample.image.key) or _bytes(sample) for sample in samples},
            {sample.image.key: _digest(sample) for sample in samples},
        )

    def changed_captions(self, split: Split) -> list[str]:
        """Keys of the images whose caption is another one now."""
        samples = (*split.train, *split.eval)
        return [key for sample in samples if self.captions.get(key := sample.image.key, "") != _digest(sample)]

    def changed_images(self, split: Split, digests: Mapping[str, str]) -> list[str]:
        """Keys of the images that are others now; `digests` as in `of`. Those that can't be compared are left out."""
        changed = []
        for sample in (*split.train, *split.eval):
            before = self.images.get(sample.image.key)
            now = _bytes(sample) if isinstance(before, int) else digests.get(sample.image.key)
            if before is not None and now is not None and before != now:
                changed.append(sample.image.key)
        return changed


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


def read_split(
    path: Path, read_sample: Callable[[str], Sample], *, unreadable: Collection[str] = ()
) -> tuple[Split, Contents]:
    """The split that a run wrote to `path`, and what its images and captions were then.

    `read_sample` returns the sample for an image's key, without captions where there is none any more. Images that the
    run found to be `unreadable`, by their keys, may be gone. Raises UserError when another one is gone or its caption,
    when the file is not a split, and what `read_sample` raises.
    """
    record = _read(path)
    gone: list[Path] = []

    def read(keys: Sequence[str]) -> tuple[Sample, ...]:
        samples = []
        for key in keys:
            sample = read_sample(key)
            if key in unreadable:  # it was not trained on, and will not be
                sample = sample if sample.captions else replace(sample, captions=("",))
            elif not (sample.captions and sample.image.path.is_file()):
                gone.append(sample.image.path)
            samples.append(sample)
        return tuple(samples)

    split = Split(read(record[_TRAIN]), read(record[_EVAL]))
    if gone:
        raise UserError(
            f"{len(gone)} images or their captions are gone, but the run that is resumed uses them: {name_some(gone)}; "
            "bring them back, or start a new run"
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


def _digest(sample: Sample) -> str:
    return hashlib.blake2b("\0".join(sample.captions).encode(), digest_size=8).hexdigest()
