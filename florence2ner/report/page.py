"""The skeleton of a report: one HTML file that loads nothing, runs no script but its own, and takes all else for text.

The script and the style stand in the page and are allowed by their hashes alone. What is shown comes as JSON, of which
the script makes the page; it only ever sets text, never markup.
"""

import base64
import hashlib
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from html import escape
from pathlib import Path
from typing import Any

from florence2ner.display import printable

Block = Mapping[str, Any]  # a part of a page, as page.js reads it; "block" names its kind

_SCRIPTS = ("base.js", "charts.js", "scores.js", "gallery.js", "timeline.js", "page.js")
_HERE = Path(__file__).parent
_PICTURES_AT_ONCE = 64  # that the page reads together, when it comes to show one of them
# Inside <script> only `</script` and `<!--` mean something to HTML; the others are for whatever else reads it.
_MOST_TEXT = 16_000_000  # bytes of all that is not a picture
_LONGEST = 8000  # characters of a text, where there is too much of it
_UNSAFE = {"<": "\\u003c", ">": "\\u003e", "&": "\\u0026", "\u2028": "\\u2028", "\u2029": "\\u2029"}


@dataclass(frozen=True, kw_only=True)
class Page:
    """What a report says, from the top down."""

    tool: str  # the command that made it
    title: str
    lead: Sequence[str] = ()  # sentences below the title, that which matters most first
    notes: Sequence[str] = ()  # what the reader should know, such as what is left out
    blocks: Sequence[Block] = ()
    pictures: Sequence[str] = ()  # data: URIs, which blocks name by their index
    facts: Mapping[str, str] = field(default_factory=dict)  # figures in tiles at the top


def base_style() -> str:
    """The style that all pages share: colours, letters, the top."""
    return _read("base.css")


def skeleton(*, title: str, style: str, body: str, data: str = "", script: str = "") -> str:
    """A whole document. `body` and `data` are HTML, safe already; without `script`, the page can run none at all."""
    policy = f"default-src 'none'; img-src data:; style-src '{_hash(style)}'; base-uri 'none'; form-action 'none'"
    if script:
        policy += f"; script-src '{_hash(script)}'"
    run = f"<script>{script}</script>\n" if script else ""
    return f"""<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="color-scheme" content="light dark">
<meta http-equiv="Content-Security-Policy" content="{policy}">
<title>{escape(title)}</title>
<style>{style}</style>
</head>
<body>
{body}
{data}{run}</body>
</html>
"""


def build_page(page: Page) -> str:
    """The report as text."""
    lead = "".join(f'<p class="lead">{_text(line)}</p>' for line in page.lead)
    tiles = "".join(f"<li><b>{_text(value)}</b> {_text(name)}</li>" for name, value in page.facts.items())
    notes = "".join(f'<p class="aside">{_text(line)}</p>' for line in page.notes)
    body = f"""<header class="top">
<p class="tool">{_text(page.tool)}</p>
<h1>{_text(page.title)}</h1>
{lead}
{f'<ul class="tiles">{tiles}</ul>' if tiles else ""}
{notes}
</header>
<main id="main"></main>
<noscript><p class="top">This report needs JavaScript; its own is in this file, and it loads nothing.</p></noscript>"""
    parts = [_data(page)]
    for number, start in enumerate(range(0, len(page.pictures), _PICTURES_AT_ONCE)):
        parts.append(_json(f"pictures-{number}", page.pictures[start : start + _PICTURES_AT_ONCE]))
    script = '(() => {\n"use strict";\n' + "".join(map(_read, _SCRIPTS)) + "})();\n"
    title = f"{page.title}: {page.tool}"
    return skeleton(
        title=printable(title), style=base_style() + _read("page.css"), body=body, data="".join(parts), script=script
    )


def _read(name: str) -> str:
    return (_HERE / name).read_text(encoding="utf-8")


def _hash(text: str) -> str:
    """Text as the policy of a page names it."""
    return f"sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}"


def _text(text: str) -> str:
    return escape(printable(text))


def _data(page: Page) -> str:
    """The blocks as the script reads them; where they would be too large, with long texts cut."""
    value = _finite({"blocks": page.blocks, "pictures": len(page.pictures), "at_once": _PICTURES_AT_ONCE})
    text, longest = _json("data", value), _LONGEST
    while len(text.encode()) > _MOST_TEXT and longest > 50:
        text, longest = _json("data", _cut(value, longest)), longest // 2
    return text


def _cut(value: Any, longest: int) -> Any:
    """The value with texts of at most `longest` characters, and an ellipsis where there were more."""
    if isinstance(value, str):
        return value if len(value) <= longest else f"{value[:longest]}…"
    if isinstance(value, dict):
        return {key: _cut(part, longest) for key, part in value.items()}
    return [_cut(part, longest) for part in value] if isinstance(value, list) else value


def _json(name: str, value: object) -> str:
    """An element with data for the script."""
    # A lone surrogate, of a file name that is no UTF-8, becomes its own escape sequence, which JSON knows too.
    text = printable(json.dumps(value, ensure_ascii=False, separators=(",", ":"), allow_nan=False))
    for char, escaped in _UNSAFE.items():
        text = text.replace(char, escaped)
    return f'<script type="application/json" id="{name}">{text}</script>\n'


def _finite(value: Any) -> Any:
    """The value with None for numbers that JSON lacks."""
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {key: _finite(part) for key, part in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(part) for part in value]
    return value
