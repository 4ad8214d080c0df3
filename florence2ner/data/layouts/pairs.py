"""The dataset layout of kohya_ss and OneTrainer: an image and, beside it, a text file with its caption."""

import glob
from pathlib import Path

from florence2ner.data.formats import (
    CAPTION_EXTENSION,
    CAPTION_EXTENSIONS,
    LeftOut,
    check_caption_extension,
    list_files,
    readable_images,
)
from florence2ner.data.samples import Discovery, ImageRef, Sample, check_utf8
from florence2ner.errors import UserError
from florence2ner.files import read_regular


def discover_samples(
    root: Path, task_prompt: str, *, folder: Path | None = None, extension: str = CAPTION_EXTENSION
) -> Discovery:
    """Pair every image of the dataset in `root` with the caption file of the same stem beside it.

    Caption files have `extension`, in upper or lower case; an empty one counts as none. `folder` below `root` restricts
    the search to that folder; keys stay relative to `root`. Captions that are not UTF-8 are for the caller to refuse,
    with `check_utf8`. Raises UserError for a caption that can't be read, and for the extension of images.
    """
    check_caption_extension(extension)
    within = folder or root
    left_out = LeftOut()
    not_utf8: list[Path] = []
    files = list_files(within, {extension.lower()}, left_out)
    captions = {path.with_name(path.name[: -len(extension)]): path for path in files}
    samples, without_caption, used = [], [], set()
    for image in readable_images(within, left_out):
        path = captions.get(image.with_suffix(""))
        caption = _read_caption(path, not_utf8) if path else ""
        used.add(path)
        if caption:
            samples.append(Sample(ImageRef.below(root, image), task_prompt, (caption,)))
        else:
            without_caption.append(image)
    without_image = [path for path in captions.values() if path not in used]
    return Discovery(
        tuple(samples), tuple(without_caption), tuple(without_image), left_out=left_out, not_utf8=tuple(not_utf8)
    )


def no_captions(folder: Path, found: Discovery, extension: str) -> UserError:
    """The error for a folder in which nothing with a caption was found; it says where captions may be instead."""
    return UserError(
        f"no image with a caption in {folder}: each image needs a {extension} of the same name beside it "
        f"({len(found.images_without_caption)} images without a caption were found){_other_captions(folder, extension)}"
    )


def read_sample(
    root: Path, key: str, task_prompt: str, not_utf8: list[Path], *, extension: str = CAPTION_EXTENSION
) -> Sample:
    """The sample with this key, with its caption as it is now, for a run that is resumed: without any if that is gone.

    The image may be gone too. A caption file that isn't UTF-8 is added to `not_utf8`. Raises UserError for one that
    can't be read.
    """
    image = root / key
    usual = image.with_name(image.stem + extension)
    # Finding .TXT or .Txt takes a listing of the folder, which is slow: only where there is no .txt.
    others = () if usual.is_file() else image.parent.glob(f"{glob.escape(image.stem)}.*")
    for path in (usual, *others):
        is_caption = path.name[len(image.stem) :].lower() == extension.lower()
        if is_caption and path.is_file():
            return Sample(ImageRef(key, image), task_prompt, (_read_caption(path, not_utf8),))
    return Sample(ImageRef(key, image), task_prompt)


def read_captions(root: Path, *, extension: str = CAPTION_EXTENSION, left_out: LeftOut | None = None) -> list[str]:
    """Every caption below `root`, with or without an image. What is passed over is added to `left_out`.

    Raises UserError for none, for any that can't be read or are not UTF-8, and for the extension of images.
    """
    check_caption_extension(extension)
    if not root.is_dir():
        raise UserError(f"there is no folder {root}")
    not_utf8: list[Path] = []
    files = list_files(root, {extension.lower()}, left_out)
    captions = [caption for path in files if (caption := _read_caption(path, not_utf8))]
    check_utf8(not_utf8)
    if not captions:
        raise UserError(f"no caption ({extension}) in {root}{_other_captions(root, extension)}")
    return captions


def _other_captions(folder: Path, extension: str) -> str:
    """A clause about caption files in a folder that have another extension, and the option that reads them."""
    for other in CAPTION_EXTENSIONS:
        if other != extension.lower() and (files := list_files(folder, {other})):
            return f"; {len(files)} captions are in {other} files: --caption-extension {other} reads them"
    return ""


def _read_caption(path: Path, not_utf8: list[Path]) -> str:
    """The text of a caption file; "" for one that is not UTF-8, which is added to `not_utf8`."""
    try:
        return read_regular(path).strip()
    except UnicodeDecodeError:
        not_utf8.append(path)
        return ""
    except OSError as error:
        raise UserError(f"the caption {path} can't be read: {error.strerror}") from None
