"""What the layouts with boxes share: boxes cut to their picture and turned with it, and notes of what can't be used."""

from pathlib import Path

from florence2ner.data.samples import Fault

Box = tuple[float, float, float, float]  # x1 y1 x2 y2
Size = tuple[float, float]  # width, height

TASK_PROMPT = "<OD>"  # what the boxes of such a dataset answer

_ROUNDING = 1e-3  # share of the side by which boxes may reach over an edge unmentioned: one location of the model


class Notes:
    """Counts what is left out or changed, by kind, and keeps the names."""

    def __init__(self) -> None:
        self._names: dict[tuple[str, str], list[str]] = {}

    def add(self, kind: str, what: str, name: object) -> None:
        """Count one more of a kind, which `what` says after the number, as "boxes are empty and are left out"."""
        self._names.setdefault((kind, what), []).append(str(name))

    def faults(self) -> tuple[Fault, ...]:
        """One for each kind, in the order in which they came up."""
        return tuple(Fault(kind, what, tuple(names)) for (kind, what), names in self._names.items())


def label_places(root: Path, image: Path) -> list[Path]:
    """Where the label file of an image may be, without its .txt; the likelier first.

    Beside the image, or where its path below `root` has `labels` for the last `images`.
    """
    stem = image.relative_to(root).with_suffix("")
    parts = [*stem.parts]
    places = [root / stem]
    if "images" in parts[:-1]:
        parts[len(parts) - 2 - parts[-2::-1].index("images")] = "labels"
        places.insert(0, root.joinpath(*parts))
    return places


def fit(box: Box, size: Size, name: str, notes: Notes) -> Box | None:
    """The part of a box that lies in its picture of `size`, in the same unit; None where it is empty or outside.

    What is left out, or cut by more than the rounding of the annotation tool, is noted under `name`.
    """
    x1, y1, x2, y2 = box
    width, height = size
    if not (x1 < x2 and y1 < y2):
        notes.add("empty-box", "boxes are empty and are left out", name)
        return None
    inside = max(x1, 0.0), max(y1, 0.0), min(x2, width), min(y2, height)
    if not (inside[0] < inside[2] and inside[1] < inside[3]):
        notes.add("box-outside", "boxes lie outside of their pictures and are left out", name)
        return None
    if max(-x1 / width, -y1 / height, x2 / width - 1, y2 / height - 1) > _ROUNDING:
        notes.add("box-cut", "boxes reach over the edges of their pictures and are cut there", name)
    return inside


def quarter_turn(box: Box, size: Size, orientation: int) -> Box:
    """A box of the stored picture of `size`, in the upright one, for the EXIF orientations that swap the sides: 5 to 8.

    Same unit; the upright picture has `size` with its sides swapped.
    """
    x1, y1, x2, y2 = box
    width, height = size
    match orientation:
        case 5:  # mirrored at the diagonal from the top left
            return y1, x1, y2, x2
        case 6:  # to be turned clockwise
            return height - y2, x1, height - y1, x2
        case 7:  # mirrored at the other diagonal
            return height - y2, width - x2, height - y1, width - x1
        case 8:  # to be turned anticlockwise
            return y1, width - x2, y2, width - x1
    raise AssertionError(f"orientation {orientation} swaps no sides")
