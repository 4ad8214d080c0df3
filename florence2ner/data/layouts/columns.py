"""What the layouts with rows and columns share: the usual names, captions in a cell, and samples of what was read."""

from collections.abc import Collection, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

from florence2ner.config.options import ReadingOptions
from florence2ner.data.samples import ImageRef, Sample
from florence2ner.errors import UserError, did_you_mean

Kind = Literal["image", "caption", "prompt"]

# Columns that are looked for where the settings name none, the surest first.
USUAL: Mapping[Kind, Sequence[str]] = {
    "image": ("file_name", "image", "image_path", "path", "filename", "file"),
    "caption": ("text", "caption", "captions", "suffix"),
    "prompt": ("prefix", "prompt", "task_prompt", "task"),
}


def asked_column(kind: Kind, options: ReadingOptions) -> str | None:
    """The column that the settings name for images, captions or prompts; None where they name none."""
    return {"image": options.image_column, "caption": options.caption_column, "prompt": options.prompt_column}[kind]


def find_column(kind: Kind, options: ReadingOptions, columns: Collection[str]) -> str:
    """The column that the settings name, else the first of the usual ones that is among `columns`; "" for none."""
    return asked_column(kind, options) or next((name for name in USUAL[kind] if name in columns), "")


def check_asked(options: ReadingOptions, columns: Collection[str], place: str) -> None:
    """Raise UserError where a column that the settings name is not among the `columns` of the table at `place`."""
    for kind in USUAL:
        name = asked_column(kind, options)
        if name and name not in columns:
            near = did_you_mean(name, columns)
            raise UserError(f"{place} has no column {name} ({kind}_column).{near} It has {', '.join(columns)}")


def captions_in(cell: Any, column: str, options: ReadingOptions, place: str) -> list[str]:
    """The captions in a cell. Raises UserError for anything but text, a list of texts, or nothing."""
    texts = [cell] if isinstance(cell, str) else cell or []
    if not isinstance(texts, list) or not all(isinstance(text, str) for text in texts):
        raise UserError(f"{place} has no text in the column {column}, but {cell!r}: mend or delete it")
    if options.caption_lines != "whole":
        texts = [line for text in texts for line in text.splitlines()]
    return [text for text in map(str.strip, texts) if text]


def to_samples(
    captions: Mapping[tuple[ImageRef, str], Iterable[str]], options: ReadingOptions
) -> tuple[tuple[Sample, ...], tuple[Path, ...]]:
    """Samples, sorted by their images, of the captions of each image and prompt; and the images without a caption.

    Of several captions of an image, `caption_lines` says which are used, as with caption files.
    """
    samples, empty = [], []
    for (image, prompt), texts in captions.items():
        chosen = list(texts)[:1] if options.caption_lines == "first" else list(texts)
        if not chosen:
            empty.append(image.path)
        kept = [tuple(chosen)] if options.caption_lines == "random" else [(text,) for text in chosen]
        samples += [Sample(image, prompt, some) for some in kept if some]
    return tuple(sorted(samples, key=lambda sample: sample.image.key)), tuple(empty)
