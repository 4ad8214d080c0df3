"""What `train` refuses a dataset for, and what its layout leaves out or changes: in the words that `train` logs."""

from collections.abc import Iterable
from pathlib import Path

from florence2ner.data.formats import ALL_EXTENSIONS
from florence2ner.data.samples import ImageRef
from florence2ner.data.split import COPY_OF_EVAL
from florence2ner.inspection.dataset import Dataset
from florence2ner.inspection.findings import Example, Finding, Severity, plain, shell_word

# How grave the faults of layouts are, and what to do. Of others there is only to say that they hurt.
_ADVICE: dict[str, tuple[Severity, str]] = {
    "empty-box": ("hurts", "draw them anew, or delete them"),
    "box-outside": ("hurts", "are they of another picture, or in another unit? Draw them anew, or delete them"),
    "box-cut": ("note", "fine for a few; many may be of another picture, or in another unit"),
    "crowd": ("note", "a box around many objects at once is no answer about one"),
    "missing-image": ("hurts", "fetch them, or take their rows out"),
    "not-measured": ("hurts", "fetch them again, or take them out"),
    "other-shape": ("hurts", "were they cropped after their boxes had been drawn? Put the originals back"),
    "turned": (
        "hurts",
        "nobody knows whether their boxes are turned, too: save them upright, and annotate them again",
    ),
    "unreadable-labels": ("hurts", "mend the line that is named"),
    "illegible-text": ("note", "what nobody can read is no answer"),
    "unusable-text": ("hurts", "write what is there, without signs such as <loc_1>"),
    "image-in-task-folder": ("hurts", "a folder with the name of a task is for captions only"),
    "task-missing": ("note", "fine where it is meant: the model learns that task from the other images"),
    "caption-in-no-task": ("hurts", "move them into the folder of their task"),
    "faulty-answer": ("hurts", "mend them: `florence2ner guide training` shows how answers are written"),
    "row-without-image": ("hurts", "fetch the images, or take their rows out"),
    "not-accepted": ("note", "`florence2ner review` shows them, for you to accept or to mend"),
    "near-duplicate-of-eval": ("hurts", "the evaluation would flatter a model that was trained on them; take them out"),
}


def fault_findings(dataset: Dataset) -> list[Finding]:
    """What keeps training from starting, and each kind of fault of a layout. Copies are told by their images."""
    found = dataset.found
    return [
        Finding(
            "refused",
            "breaks",
            "[reason|reasons] for `train` to refuse the dataset",
            "mend what is named",
            tuple(Example(_short(dataset, reason)) for reason in dataset.refusals),
        ),
        *_unreadable_captions(dataset),
        *(
            Finding(fault.kind, *_severity(fault.kind, fault.what), tuple(_examples(dataset, fault.names)))
            for fault in found.faults
            if fault.kind != COPY_OF_EVAL
        ),
        Finding(
            "in-no-list",
            "note",
            "[image is|images are] on neither side of the given split",
            "training leaves them out",
            tuple(Example(dataset.name_of(path)) for path in found.images_in_no_list),
        ),
    ]


def _severity(kind: str, what: str) -> tuple[Severity, str, str]:
    severity, advice = _ADVICE.get(kind, ("hurts", "mend them"))
    return severity, what, advice


def _examples(dataset: Dataset, names: Iterable[str]) -> Iterable[Example]:
    images = {str(item.image): item.image for item in dataset.items}
    for name in names:
        yield Example(_short(dataset, name), images=_picture(name, images))


def _short(dataset: Dataset, text: str) -> str:
    """A name or a message with the files of the dataset as the keys of images call them."""
    for root in dataset.roots:
        if root.path != Path():
            text = text.replace(f"{root.path}/", f"{root.name}/" if root.name else "")
    return text


def _picture(name: str, images: dict[str, ImageRef]) -> tuple[ImageRef, ...]:
    """The image that a fault is about: its name is the image's path, or ends or begins with it."""
    for path in (name, name.rpartition(" of ")[2], name.rpartition(" (")[0]):
        if path in images:
            return (images[path],)
        if Path(path).suffix.lower() in ALL_EXTENSIONS and Path(path).is_file():
            return (ImageRef.at(Path(path)),)
    return ()


def _unreadable_captions(dataset: Dataset) -> list[Finding]:
    refused, fixes = dataset.found.refused, []
    for path in refused.not_utf8:
        old, new = shell_word(path), shell_word(path.with_name(path.name + ".utf8"))
        fixes.append(f"iconv -f {_encoding_of(path)} -t UTF-8 -- {old} > {new} && mv -- {new} {old}")
    return [
        Finding(
            "not-utf8",
            "breaks",
            "[caption is|captions are] not UTF-8 text",
            "training refuses them; convert them from their encoding, which nobody can be sure of: read the result",
            tuple(Example(dataset.name_of(path), _first_line(path)) for path in refused.not_utf8),
            tuple(fixes),
        ),
        Finding(
            "unreadable-caption",
            "breaks",
            "[caption|captions] can't be read",
            "training refuses them: give yourself the right to read them",
            tuple(Example(dataset.name_of(path), reason) for path, reason in refused.unreadable.items()),
        ),
    ]


def _encoding_of(path: Path) -> str:
    """The encoding that a byte order mark tells, else the most usual one of Windows."""
    with path.open("rb") as file:
        start = file.read(2)
    return "UTF-16" if start in (b"\xff\xfe", b"\xfe\xff") else "WINDOWS-1252"


def _first_line(path: Path) -> str:
    """The beginning of a file, its bytes beyond ASCII escaped."""
    with path.open("rb") as file:
        return plain(file.read(60).decode("ascii", "backslashreplace"))
