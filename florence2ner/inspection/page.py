"""An inspection as an HTML page in one file, with pictures of the worst cases. It loads nothing and runs no script."""

import re
from collections.abc import Iterable, Iterator
from html import escape
from pathlib import Path

from florence2ner.data.pictures import ImageError
from florence2ner.data.samples import ImageRef
from florence2ner.inspection.findings import SEVERITIES, Example, Finding, Histogram, Inspection, Severity, plain
from florence2ner.inspection.tables import NAMES, verdict
from florence2ner.report.page import base_style, skeleton
from florence2ner.report.thumbnails import thumbnail

_TILES: dict[Severity, str] = {"breaks": "break training", "hurts": "hurt it", "note": "to know of"}
_STYLE = Path(__file__).with_name("page.css")
_THUMBNAIL = 240  # pixels of the longer side
_FRAMES = 8  # pictures, or groups of them, shown of a finding
_IN_A_FRAME = 4  # pictures shown of a group
_BUDGET = 3_000_000  # bytes of all pictures together, as they are in the page
_LISTED = 60  # examples and commands listed of a finding
_LONGEST = 240  # characters of a name or detail


def build_page(found: Inspection, *, max_pixels: int) -> str:
    """The page as text, below 5 MB. Images of more than `max_pixels` pixels are not shown."""
    thumbnails = _Thumbnails(max_pixels)
    name = ", ".join(Path(root).name or root for root in found.roots)
    counts = {severity: sum(finding.severity == severity for finding in found.findings) for severity in SEVERITIES}
    worst = next((severity for severity in SEVERITIES[:2] if counts[severity]), "fine")
    tiles = "".join(
        f'<li class="{severity if counts[severity] else "none"}"><b>{counts[severity]}</b> {_TILES[severity]}</li>'
        for severity in SEVERITIES
    )
    findings = "".join(_finding(finding, thumbnails) for finding in found.findings)
    if not findings:
        findings = '<p class="nothing">Nothing was found that is wrong with this dataset.</p>'
    histograms = "".join(map(_histogram, found.histograms))
    figures = "".join(
        f"<div><dt>{_text(key)}</dt><dd>{_text(value)}</dd></div>"
        for key, value in ((figure.name, figure.words) for figure in found.figures)
    )
    lines = [*(_text(note, 1000) for note in found.notes), *map(_sentence, found.unchecked)]
    unchecked = "".join(f'<p class="unchecked">{line}</p>' for line in lines)
    roots = [*map(_text, found.roots), *(f"{_text(root)} (evaluated on)" for root in found.eval_roots)]
    body = f"""<header class="top">
<p class="tool">florence2ner inspect</p>
<h1>{_text(name)}</h1>
<p class="path">{"<br>".join(roots)}</p>
<p class="verdict {worst}">{_text(verdict(found).capitalize())}.</p>
<ul class="tiles">{tiles}</ul>
</header>
<main>
<section aria-label="Findings">
<h2>Findings</h2>
{findings}{unchecked}
</section>
<section aria-label="Figures">
<h2>Figures</h2>
<dl>{figures}</dl>
</section>
<section aria-label="Histograms">
<h2>Histograms</h2>
<div class="histograms">{histograms}</div>
</section>
</main>"""
    # A bar's width is a class: an attribute with a style would need a policy that allows any.
    widths = "".join(f".w{percent} {{ width: {percent}%; }}\n" for percent in range(101))
    own = _STYLE.read_text(encoding="utf-8")
    return skeleton(title=f"{plain(name)}: inspection of a dataset", style=base_style() + own + widths, body=body)


def _text(text: str, limit: int = _LONGEST) -> str:
    return escape(plain(text, limit))


def _sentence(text: str) -> str:
    """Text of our own as a sentence, with what stands between backticks as code."""
    return re.sub(
        r"`(.+?)`", r"<code>\1</code>", escape(text[0].upper() + text[1:] + ("" if text[-1] in ".?" else "."))
    )


def _finding(finding: Finding, thumbnails: "_Thumbnails") -> str:
    frames = list(_frames(finding.examples, thumbnails))
    pictures = f'<ul class="frames">{"".join(frames)}</ul>' if frames else ""
    rows = [] if len(frames) == finding.count else [_example(example) for example in finding.examples]
    return f"""<article class="finding {finding.severity}">
<p class="badge">{NAMES[finding.severity]}</p>
<h3><b>{finding.count}</b> {_text(finding.headline)}</h3>
<p class="advice">{_sentence(finding.advice)}</p>
{pictures}
{_list("All of them", rows, is_open=not frames)}
{_list("Commands that mend it", [f"<code>{_text(fix, 1000)}</code>" for fix in dict.fromkeys(finding.fixes)])}
</article>
"""


def _example(example: Example) -> str:
    detail = f' <span class="detail">{_text(example.detail)}</span>' if example.detail else ""
    return f"<span>{_text(example.name)}</span>{detail}"


def _list(title: str, rows: list[str], *, is_open: bool = False) -> str:
    """Rows to fold out, the first of them only where there are many."""
    if not rows:
        return ""
    more = f'<li class="more">and {len(rows) - _LISTED} more, which --json lists</li>' if len(rows) > _LISTED else ""
    items = "".join(f"<li>{row}</li>" for row in rows[:_LISTED])
    opened = " open" if is_open and len(rows) <= _FRAMES else ""
    return f"<details{opened}><summary>{title} ({len(rows)})</summary><ul>{items}{more}</ul></details>"


def _frames(examples: Iterable[Example], thumbnails: "_Thumbnails") -> Iterator[str]:
    """The first examples that have pictures which can be shown, each with all of its pictures side by side."""
    shown = 0
    for example in examples:
        if shown == _FRAMES or not example.images:
            return
        pictures = "".join(thumbnails.of(image) for image in example.images[:_IN_A_FRAME])
        if pictures:
            shown += 1
            caption = f"{_text(example.name)}<br><span>{_text(example.detail)}</span>"
            yield f"<li><figure><div>{pictures}</div><figcaption>{caption}</figcaption></figure></li>"


def _histogram(histogram: Histogram) -> str:
    most = max(number for _, number in histogram.bins) or 1
    rows = []
    for position, (label, number) in enumerate(histogram.bins):
        beyond = " beyond" if histogram.beyond is not None and position >= histogram.beyond and number else ""
        percent = -(-100 * number // most)  # rounded up, so that one of many is seen
        bar = f'<span class="bar{beyond} w{percent}"></span>'
        rows.append(f'<tr><th scope="row">{_text(label)}</th><td class="track">{bar}</td><td>{number}</td></tr>')
    title = f"{_text(histogram.title)} <span>in {_text(histogram.unit)}</span>"
    return f"<table><caption>{title}</caption>{''.join(rows)}</table>"


class _Thumbnails:
    """Makes small pictures for the page, until they have used up its budget."""

    def __init__(self, max_pixels: int) -> None:
        self._max_pixels = max_pixels
        self._left = _BUDGET

    def of(self, image: ImageRef) -> str:
        """An <img> with the picture in it; nothing where it can't be read, or the budget is used up."""
        if self._left <= 0:
            return ""
        try:
            source = thumbnail(image, side=_THUMBNAIL, max_pixels=self._max_pixels)
        except ImageError:
            return ""
        self._left -= len(source)
        return f'<img alt="{_text(image.key)}" src="{source}">'
