"""The dataset layout of kohya_ss and OneTrainer: an image and, beside it, text files with its captions."""

import os
from collections.abc import Sequence
from pathlib import Path

from florence2ner.config.options import CaptionLines
from florence2ner.data.accepted import Accepted
from florence2ner.data.formats import (
    ALL_EXTENSIONS,
    CAPTION_EXTENSION,
    CAPTION_EXTENSIONS,
    LeftOut,
    can_be_decoded,
    check_caption_extension,
    list_files,
    walk_files,
)
from florence2ner.data.samples import Discovery, Fault, ImageRef, Refused, Sample
from florence2ner.errors import UserError
from florence2ner.files import read_regular

NOT_ACCEPTED = "not-accepted"  # kind of a fault


def discover_samples(
    root: Path,
    task_prompt: str,
    *,
    folder: Path | None = None,
    extensions: Sequence[str] = (CAPTION_EXTENSION,),
    lines: CaptionLines = "whole",
    only_accepted: bool = False,
) -> Discovery:
    """Pair every image of the dataset in `root` with the caption files of the same stem beside it.

    Caption files have one of the `extensions`, in upper or lower case. Each is one caption as a whole, or with `lines`
    each of its lines is one; blank ones count as none. Of an image with several captions, each makes a sample; "first"
    leaves all but the first out, and with "random" one sample holds them all. `folder` below `root` restricts the
    search to that folder; keys stay relative to `root`. Captions that can't be read are for the caller to refuse. With
    `only_accepted`, caption files that were not accepted in a review, or are not what they were then, are left out.
    Raises UserError for the extension of images, and where nothing was accepted.
    """
    _check_extensions(extensions)
    left_out, refused = LeftOut(), Refused()
    accepted, not_accepted = Accepted(root) if only_accepted else None, dict[Path, None]()
    samples: list[Sample] = []
    without_caption: list[Path] = []
    without_image: list[Path] = []
    endings = {extension.lower() for extension in extensions}
    for place, names in walk_files(folder or root, ALL_EXTENSIONS | endings, left_out):
        captions = by_stem(names, extensions)
        unused = {name for of_stem in captions for name in of_stem.values()}
        for name in names:
            stem, ending = os.path.splitext(name)
            if ending.lower() not in ALL_EXTENSIONS:
                continue
            files = [of_stem[stem] for of_stem in captions if stem in of_stem]
            unused.difference_update(files)
            image, paths = place / name, [place / file for file in files]
            if not can_be_decoded(name):
                left_out.packaged.append(image)
                continue
            if accepted and (others := [path for path in paths if not _is_accepted(path, accepted)]):
                not_accepted |= dict.fromkeys(others)
                paths = [path for path in paths if path not in others]
            texts = captions_in(paths, lines, refused)
            if not texts and (paths or not files):
                without_caption.append(image)
            samples += make_samples(ImageRef.below(root, image), task_prompt, texts, lines)
        without_image += (place / name for name in sorted(unused))
    missed = tuple(map(str, not_accepted))
    if accepted and not samples:
        raise UserError(
            f"no caption in {folder or root} was accepted: accept some in `florence2ner review {root}`, or leave out "
            "--only-accepted"
        )
    return Discovery(
        tuple(samples),
        tuple(without_caption),
        tuple(without_image),
        left_out=left_out,
        refused=refused,
        faults=(Fault(NOT_ACCEPTED, "captions were not accepted and are left out", missed),) if missed else (),
    )


def no_captions(folder: Path, found: Discovery, extensions: Sequence[str]) -> UserError:
    """The error for a folder in which nothing with a caption was found; it says where captions may be instead."""
    left_out = found.left_out.report()
    return UserError(
        f"no image with a caption in {folder}: each image needs a {' or '.join(extensions)} of the same name beside it "
        f"({'; '.join([f'{len(found.images_without_caption)} images without a caption were found', *left_out])})"
        f"{_other_captions(folder, extensions)}"
    )


def read_captions(
    root: Path, *, extensions: Sequence[str] = (CAPTION_EXTENSION,), left_out: LeftOut | None = None
) -> list[str]:
    """The text of every caption file below `root`, with or without an image. What is passed over goes to `left_out`.

    Raises UserError for none, for any that can't be read or are not UTF-8, and for the extension of images.
    """
    if not root.is_dir():
        raise UserError(f"there is no folder {root}")
    refused = Refused()
    files = caption_files(root, extensions, left_out)
    paths = dict.fromkeys(path for of_stem in files.values() for path in of_stem.values())
    captions = [caption for path in paths if (caption := _read_caption(path, refused))]
    refused.check()
    if not captions:
        raise UserError(f"no caption ({', '.join(extensions)}) in {root}{_other_captions(root, extensions)}")
    return captions


def caption_files(folder: Path, extensions: Sequence[str], left_out: LeftOut | None) -> dict[str, dict[Path, Path]]:
    """The caption files below a folder, by extension and by their path without it. What is passed over: `left_out`.

    Raises UserError for the extension of images.
    """
    _check_extensions(extensions)
    folders = walk_files(folder, {extension.lower() for extension in extensions}, left_out)
    files: dict[str, dict[Path, Path]] = {extension: {} for extension in extensions}
    for place, names in folders:
        for of_extension, of_stem in zip(files.values(), by_stem(names, extensions), strict=True):
            of_extension |= {place / stem: place / name for stem, name in of_stem.items()}
    return files


def _check_extensions(extensions: Sequence[str]) -> None:
    for extension in extensions:
        check_caption_extension(extension)


def by_stem(names: Sequence[str], extensions: Sequence[str]) -> list[dict[str, str]]:
    """For each extension the names that have it, by what stands before it."""
    return [
        {name[: -len(extension)]: name for name in names if name.lower().endswith(extension.lower())}
        for extension in extensions
    ]


def _is_accepted(path: Path, accepted: Accepted) -> bool:
    """Whether a caption file was accepted as it is. One that can't be read is not what was accepted."""
    return bool(text := _read_caption(path, Refused())) and accepted.has(path, text)


def captions_in(paths: Sequence[Path], lines: CaptionLines, refused: Refused) -> list[str]:
    """The captions in an image's files, each once. Files that can't be read have none and are added to `refused`."""
    return choose_captions([_read_caption(path, refused) for path in paths], lines)


def choose_captions(texts: Sequence[str], lines: CaptionLines) -> list[str]:
    """The captions in texts without space around them, each once; with `lines` other than "whole", one in each line."""
    if lines != "whole":
        texts = [line.strip() for text in texts for line in text.splitlines()]
    captions = list(dict.fromkeys(filter(None, texts)))
    return captions[:1] if lines == "first" else captions


def make_samples(image: ImageRef, task_prompt: str, captions: Sequence[str], lines: CaptionLines) -> list[Sample]:
    """The samples of an image with these captions: one for each, or with "random" one that holds them all."""
    kept = [tuple(captions)] if lines == "random" else [(caption,) for caption in captions]
    return [Sample(image, task_prompt, some) for some in kept if some]


def _other_captions(folder: Path, extensions: Sequence[str]) -> str:
    """A clause about caption files in a folder that have another extension, and the option that reads them."""
    known = {extension.lower() for extension in extensions}
    for other in CAPTION_EXTENSIONS:
        if other not in known and (files := list_files(folder, {other})):
            return f"; {len(files)} captions are in {other} files: --caption-extension {other} reads them"
    return ""


def _read_caption(path: Path, refused: Refused) -> str:
    """The text of a caption file; "" for one that can't be read, which is added to `refused`."""
    try:
        return read_regular(path).strip()
    except UnicodeDecodeError:
        refused.not_utf8.append(path)
    except OSError as error:
        refused.unreadable[path] = str(error.strerror)
    return ""
