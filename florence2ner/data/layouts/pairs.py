"""The layout of kohya_ss and OneTrainer: an image and, beside it, a .txt of the same name."""

import glob
from dataclasses import dataclass
from pathlib import Path

from florence2ner.data.formats import CAPTION_EXTENSION, list_files, readable_images
from florence2ner.data.samples import Sample
from florence2ner.display import name_some
from florence2ner.errors import UserError


@dataclass(frozen=True)
class Discovery:
    """The captioned images of a folder, in sorted order, and what was found but can't be used."""

    samples: tuple[Sample, ...]
    images_without_caption: tuple[Path, ...] = ()
    captions_without_image: tuple[Path, ...] = ()
    unreadable_folders: tuple[Path, ...] = ()

    def report(self) -> list[str]:
        """A line for each kind of file that is left out, with its number and a few names."""
        left_out = {
            "images have no caption": self.images_without_caption,
            "captions have no image": self.captions_without_image,
            "folders can't be read": self.unreadable_folders,
        }
        return [
            f"{len(paths)} {what} and are left out: {name_some(paths)}" for what, paths in left_out.items() if paths
        ]


def discover_samples(root: Path, task_prompt: str) -> Discovery:
    """Pair every image below `root` with the .txt of the same stem beside it. An empty caption counts as none."""
    captions = {path.with_suffix(""): path for path in list_files(root, {CAPTION_EXTENSION})}
    samples, without_caption, used = [], [], set()
    unreadable: list[Path] = []
    for image in readable_images(root, unreadable):
        path = captions.get(image.with_suffix(""))
        caption = read_caption(path) if path else ""
        used.add(path)
        if caption:
            samples.append(Sample(image, task_prompt, caption))
        else:
            without_caption.append(image)
    without_image = [path for path in captions.values() if path not in used]
    return Discovery(tuple(samples), tuple(without_caption), tuple(without_image), tuple(unreadable))


def read_captions(root: Path) -> list[str]:
    """Every caption below `root`, with or without an image. Raises UserError when there is none."""
    if not root.is_dir():
        raise UserError(f"there is no folder {root}")
    captions = [caption for path in list_files(root, {CAPTION_EXTENSION}) if (caption := read_caption(path))]
    if not captions:
        raise UserError(f"no caption ({CAPTION_EXTENSION}) in {root}")
    return captions


def read_caption(path: Path) -> str:
    try:
        if path.exists() and not path.is_file():  # reading a pipe would wait for ever
            raise UserError(f"the caption {path} is not a regular file")
        return path.read_text(encoding="utf-8-sig").strip()
    except UnicodeDecodeError:
        raise UserError(f"the caption {path} is not UTF-8 text: save it as UTF-8") from None
    except OSError as error:
        raise UserError(f"the caption {path} can't be read: {error.strerror}") from None


def caption_of(image: Path) -> str:
    """The caption beside an image, whatever the case of its extension."""
    usual = image.with_suffix(CAPTION_EXTENSION)
    # Looking for .TXT and .Txt means listing the folder: only where there is no .txt.
    others = () if usual.is_file() else image.parent.glob(f"{glob.escape(image.stem)}.*")
    for path in (usual, *others):
        if path.suffix.lower() == CAPTION_EXTENSION and path.is_file() and image.is_file():
            return read_caption(path)
    raise UserError(f"{image} or its caption is gone, but the run that is resumed used it: bring it back")
