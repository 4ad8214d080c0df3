"""An inspection in the terminal: what was found, the gravest first, then figures and histograms."""

from typing import TextIO

from rich.console import Console
from rich.table import Table
from rich.text import Text

from florence2ner.inspection.findings import Finding, Histogram, Inspection, Severity, plain

NAMES: dict[Severity, str] = {"breaks": "breaks training", "hurts": "hurts", "note": "note"}
_STYLES: dict[Severity, str] = {"breaks": "bold red", "hurts": "yellow", "note": "cyan"}
_SHOWN = 3  # examples of a finding
_WIDTH = 90  # characters of an example
_BAR = 30  # characters of the longest bar


def print_inspection(found: Inspection, stream: TextIO) -> None:
    """Print an inspection. Names and captions can do the terminal no harm."""
    console = Console(file=stream, emoji=False, highlight=False)
    if found.findings:
        table = Table("", "found", "what to do", title=f"Findings in {found.name}", show_lines=True)
        for finding in found.findings:
            name = Text(NAMES[finding.severity], style=_STYLES[finding.severity])
            table.add_row(name, _what(finding), Text(finding.advice))
        console.print(table)
    else:
        console.print(f"nothing found that is wrong with {found.name}", markup=False)
    for histogram in found.histograms:
        console.print(_histogram(histogram))
    figures = Table(title="Figures", show_header=False)
    for figure in found.figures:
        figures.add_row(figure.name, Text(figure.words))
    console.print(figures)
    for line in (*found.notes, *found.unchecked):
        console.print(f"note: {line}", markup=False)
    console.print(verdict(found), style=_STYLES["breaks"] if found.breaks else "bold", markup=False)


def verdict(found: Inspection) -> str:
    """One sentence about the whole."""
    if found.breaks:
        return "training would refuse this dataset"
    hurts = sum(finding.severity == "hurts" for finding in found.findings)
    if not hurts:
        return "training would start"
    return f"training would start; {hurts} {'kind of fault hurts' if hurts == 1 else 'kinds of fault hurt'} it"


def _what(finding: Finding) -> Text:
    text = Text(f"{finding.count} {finding.headline}")
    for example in finding.examples[:_SHOWN]:
        text.append(f"\n  {plain(f'{example.name}  {example.detail}'.strip(), _WIDTH)}", style="dim")
    if finding.count > _SHOWN and len(finding.examples) > _SHOWN:
        text.append(f"\n  and {finding.count - _SHOWN} more", style="dim")
    return text


def _histogram(histogram: Histogram) -> Table:
    table = Table(title=f"{histogram.title} in {histogram.unit}", show_header=False, box=None)
    most = max(number for _, number in histogram.bins)
    for position, (label, number) in enumerate(histogram.bins):
        beyond = histogram.beyond is not None and position >= histogram.beyond
        bar = "█" * max(bool(number), round(_BAR * number / most)) if most else ""
        table.add_row(Text(label, justify="right"), Text(bar, style="red" if beyond else "blue"), str(number))
    return table
