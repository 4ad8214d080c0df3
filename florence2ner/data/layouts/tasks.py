"""The dataset layout of task folders: captions in folders with the name of their task prompt, such as `<OD>/a.txt`."""

import os
import re
from collections.abc import Sequence
from pathlib import Path, PurePath

from florence2ner.config.options import ReadingOptions
from florence2ner.data.formats import ALL_EXTENSIONS, LeftOut, readable_images
from florence2ner.data.layouts.boxes import Notes
from florence2ner.data.layouts.pairs import caption_files, captions_in, make_samples
from florence2ner.data.samples import Discovery, ImageRef, Refused, Sample
from florence2ner.errors import UserError
from florence2ner.model.answers import answer_fault
from florence2ner.model.tasks import TASKS, doubt_about, find_task

_PROMPT = re.compile("<[^<>]+>")
# Windows has no < and > in names of files.
_PLAIN_NAMES = {token.strip("<>"): token for token in TASKS}

_Files = dict[Path, dict[str, list[Path]]]  # caption files by prompt, by the path of their image without its extension


def matches(root: Path, options: ReadingOptions) -> bool:
    """Whether the dataset's folder, or a folder in it, has one with the name of a task that holds captions.

    A folder with images beside its captions is none: it is kept as usual, and has its name by chance.
    """
    return any(
        _prompt(folder.name) and _holds_captions(folder, options.caption_extension)
        for parent in (root, *_subfolders(root))
        for folder in _subfolders(parent)
    )


def discover(root: Path, options: ReadingOptions, *, folder: Path | None = None) -> Discovery:
    """One sample for each task of each image in `folder`, or the whole dataset; several where it has several captions.

    A task folder is named by its prompt, which for Florence-2's own tasks may stand without < and >. Without that
    folder, the path of a caption is that of its image: `<OD>/sub/a.txt` and `sub/<OD>/a.txt` are both of `sub/a.png`.
    What `caption_extension` and `caption_lines` say holds for each task. Left out and noted are answers that would not
    be read back whole, captions in no task folder, and images in one. A prompt that is not Florence-2's own is noted.
    Captions that can't be read are for the caller to refuse. Raises UserError for a folder whose name can be no prompt,
    and the extension of images.
    """
    within = folder or root
    notes, left_out, refused = Notes(), LeftOut(), Refused()
    files, task_folders = _files_by_image(root, within, options.caption_extension, left_out, notes)
    prompts = dict.fromkeys(prompt for of_image in files.values() for prompt in of_image)
    doubts = [doubt for prompt in prompts if (doubt := _doubt_about(prompt))]
    samples: list[Sample] = []
    without_caption: list[Path] = []
    used: set[Path] = set()
    for image in readable_images(within, left_out):
        if _task_folder(image.relative_to(root)) in task_folders:
            notes.add(
                "image-in-task-folder",
                "images lie in task folders and are left out (move them to where these folders are)",
                image,
            )
            continue
        of_image = files.get(image.with_suffix(""), {})
        used.update(path for paths in of_image.values() for path in paths)
        texts = {prompt: captions_in(paths, options.caption_lines, refused) for prompt, paths in of_image.items()}
        sound = {prompt: _sound(prompt, captions, of_image[prompt], notes) for prompt, captions in texts.items()}
        for prompt, captions in sound.items():
            samples += make_samples(ImageRef.below(root, image), prompt, captions, options.caption_lines)
        if not any(texts.values()):
            without_caption.append(image)
        elif missing := [prompt for prompt in prompts if not texts.get(prompt)]:
            for prompt in missing:
                notes.add("task-missing", f"images have captions, but none for {prompt}", image)
    paths = (path for of_image in files.values() for paths in of_image.values() for path in paths)
    return Discovery(
        tuple(samples),
        tuple(without_caption),
        tuple(path for path in paths if path not in used),
        left_out,
        refused=refused,
        notes=tuple(doubts),
        faults=notes.faults(),
    )


# --- folders ----------------------------------------------------------------------------------------------------------


def _prompt(name: str) -> str | None:
    """The prompt that a folder is named by; None where it is no task folder."""
    return name if _PROMPT.fullmatch(name) else _PLAIN_NAMES.get(name)


def _subfolders(folder: Path) -> list[Path]:
    try:
        with os.scandir(folder) as entries:
            return [Path(entry.path) for entry in entries if os.path.isdir(entry) and not entry.name.startswith(".")]
    except OSError:
        return []


def _holds_captions(folder: Path, extensions: Sequence[str]) -> bool:
    """Whether the first folder with captions, in a folder and those below, has no images beside them."""
    wanted = tuple(extension.lower() for extension in extensions)
    for _, below, names in os.walk(folder):
        below.sort()  # the order in which they are walked through
        if any(name.lower().endswith(wanted) for name in names):
            return not any(os.path.splitext(name)[1].lower() in ALL_EXTENSIONS for name in names)
    return False


def _task_folder(path: PurePath) -> PurePath | None:
    """The uppermost folder on a path, which counts from the dataset on, that has the name of a task folder."""
    parts = path.parts[:-1]
    return next((PurePath(*parts[: end + 1]) for end, name in enumerate(parts) if _prompt(name)), None)


def _files_by_image(
    root: Path, within: Path, extensions: Sequence[str], left_out: LeftOut, notes: Notes
) -> tuple[_Files, set[PurePath]]:
    """The caption files whose images belong into `within`, and the task folders that hold captions."""
    files: _Files = {}
    folders: set[PurePath] = set()
    for of_stem in caption_files(root, extensions, left_out).values():
        for stem, path in of_stem.items():
            place = stem.relative_to(root)
            folder = _task_folder(place)
            if folder is None:
                if path.is_relative_to(within):
                    notes.add("caption-in-no-task", "captions are in no task folder and are left out", path)
                continue
            folders.add(folder)
            image = root / folder.parent / place.relative_to(folder)
            if image.is_relative_to(within):
                prompt = _prompt(folder.name)
                assert prompt is not None
                files.setdefault(image, {}).setdefault(prompt, []).append(path)
    return files, folders


# --- captions ---------------------------------------------------------------------------------------------------------


def _doubt_about(prompt: str) -> str | None:
    try:
        return doubt_about(prompt)
    except UserError as error:
        raise UserError(f"the folder {prompt} can't name a task ({error}): rename it") from None


def _sound(prompt: str, captions: Sequence[str], paths: Sequence[Path], notes: Notes) -> list[str]:
    """The captions without faulty answers, which are noted."""
    task = find_task(prompt)
    sound = []
    for caption in captions:
        if fault := answer_fault(task, caption):
            notes.add(
                "faulty-answer",
                f"answers to {prompt} have a fault and are left out",
                f"{', '.join(map(str, paths))} ({fault})",
            )
        else:
            sound.append(caption)
    return sound
