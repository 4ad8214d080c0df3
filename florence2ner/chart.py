"""Draws one curve: as text for a terminal, in braille characters or in a line, and as a picture."""

import math
from collections.abc import Sequence

from PIL import Image, ImageDraw, ImageFont

_DOTS = ((0x01, 0x08), (0x02, 0x10), (0x04, 0x20), (0x40, 0x80))  # of a braille character, by row and column
_BLANK = 0x2800
_BLOCKS = "▁▂▃▄▅▆▇█"
_MARGIN, _FONT_SIZE, _BLUE, _GREY = 60, 22, "#2b6cb0", "#888888"


def in_text(values: Sequence[float], *, width: int, height: int) -> list[str]:
    """A curve from 0 to its highest value as `height` lines of `width` characters, each two dots wide and four high.

    `values` are not negative.
    """
    columns, rows = 2 * width, 4 * height
    cells = [[_BLANK] * width for _ in range(height)]
    before: int | None = None
    for column, level in enumerate(_levels(values, columns, rows)):
        # Up or down to the level beside it, so that a steep curve has no holes.
        ends = (level,) if before is None else (level, before + (level > before) - (level < before))
        for dot in range(min(ends), max(ends) + 1):
            row = rows - 1 - dot
            cells[row // 4][column // 2] |= _DOTS[row % 4][column % 2]
        before = level
    return ["".join(map(chr, line)) for line in cells]


def in_a_line(values: Sequence[float], *, width: int) -> str:
    """The last `width` values as blocks of eight heights, from the lowest of them to the highest (a sparkline).

    A value that is not finite is a gap.
    """
    shown = values[-width:]
    finite = [value for value in shown if math.isfinite(value)]
    low, high = (min(finite), max(finite)) if finite else (0.0, 0.0)
    scale = (len(_BLOCKS) - 1) / ((high - low) or 1.0)
    return "".join(_BLOCKS[round((value - low) * scale)] if math.isfinite(value) else " " for value in shown)


def as_picture(values: Sequence[float], *, title: str, top: str, width: int = 1200, height: int = 500) -> Image.Image:
    """The same curve as a picture of `width` x `height` pixels; `top` is written beside its highest value."""
    picture = Image.new("RGB", (width, height), "white")
    draw, font = ImageDraw.Draw(picture), ImageFont.load_default(_FONT_SIZE)
    right, bottom = width - _MARGIN, height - _MARGIN
    for y in (_MARGIN, bottom):
        draw.line((_MARGIN, y, right, y), fill=_GREY)
    levels = _levels(values, right - _MARGIN, bottom - _MARGIN)
    draw.line([(_MARGIN + x, bottom - level) for x, level in enumerate(levels)], fill=_BLUE, width=3)
    draw.text((_MARGIN, _MARGIN - 6), f"{top}   {title}", font=font, fill="black", anchor="ls")
    draw.text((_MARGIN, bottom + 6), "0", font=font, fill="black", anchor="la")
    draw.text((right, bottom + 6), f"{len(values)} updates", font=font, fill="black", anchor="ra")
    return picture


def _levels(values: Sequence[float], columns: int, rows: int) -> list[int]:
    """The height of the curve in each column, from 0 to `rows` - 1; between two values it is a line."""
    scale = (rows - 1) / (max(values) or 1.0)
    levels = []
    for column in range(columns):
        place = column * (len(values) - 1) / max(1, columns - 1)
        before = int(place)
        after = min(before + 1, len(values) - 1)
        levels.append(round(scale * (values[before] + (place - before) * (values[after] - values[before]))))
    return levels
