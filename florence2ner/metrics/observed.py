"""What metrics are computed from: of each image its loss, and what the model wrote beside what people wrote."""

from dataclasses import dataclass
from typing import Literal, NamedTuple

Kind = Literal["caption", "ocr", "boxes", "other"]


class Box(NamedTuple):
    """A box with its label; corners in any unit, as long as all boxes of an image have the same."""

    label: str
    x1: float
    y1: float
    x2: float
    y2: float


@dataclass(frozen=True, kw_only=True)
class Observed:
    """One image and task of an evaluation. `prediction` is None where nothing was generated."""

    nats: float  # negative log-likelihood, summed over the label tokens of all its references
    tokens: int  # number of these tokens
    references: tuple[str, ...]
    prediction: str | None = None
    kind: Kind = "caption"
    is_loop: bool = False
    is_cut_off: bool = False
    true_boxes: tuple[Box, ...] = ()  # where kind is "boxes"
    predicted_boxes: tuple[Box, ...] = ()
