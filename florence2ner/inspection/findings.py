"""What an inspection finds: findings with examples and the commands that mend them, figures, and histograms."""

import re
import shlex
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from florence2ner.data.samples import ImageRef
from florence2ner.files import as_utf8

# "breaks": training refuses the dataset; "hurts": it leaves something out or learns worse; "note": worth knowing.
Severity = Literal["breaks", "hurts", "note"]
SEVERITIES: tuple[Severity, ...] = ("breaks", "hurts", "note")


@dataclass(frozen=True)
class Example:
    """One case of a finding: a name, what there is to say about it, and the images to show."""

    name: str
    detail: str = ""
    images: tuple[ImageRef, ...] = ()


@dataclass(frozen=True)
class Finding:
    """One kind of fault, with all of its cases."""

    kind: str  # stable, for programs that read the JSON
    severity: Severity
    title: str  # as in "[caption is|captions are] empty": for one case, for several
    advice: str
    examples: tuple[Example, ...]  # all of them, or those that could be named
    fixes: tuple[str, ...] = ()  # shell commands
    cases: int | None = None  # where there are more than examples

    @property
    def count(self) -> int:
        """The number of cases."""
        return len(self.examples) if self.cases is None else self.cases

    @property
    def headline(self) -> str:
        """What was found, without its number: "captions are empty"."""
        return re.sub(r"\[(.*?)\|(.*?)\]", r"\1" if self.count == 1 else r"\2", self.title, count=1)


@dataclass(frozen=True)
class Histogram:
    """How often a value falls into each of a row of bins."""

    title: str
    unit: str
    bins: tuple[tuple[str, int], ...]  # label, number
    beyond: int | None = None  # the first bin that is beyond a limit, if any


@dataclass(frozen=True)
class Figure:
    """What there is to say about a dataset: in words, and as numbers for programs, whose names give the unit."""

    name: str
    words: str
    numbers: dict[str, float]


@dataclass(frozen=True)
class Inspection:
    """The result of an inspection."""

    roots: tuple[str, ...]
    findings: tuple[Finding, ...]  # the gravest first
    figures: tuple[Figure, ...]  # what there is
    histograms: tuple[Histogram, ...] = ()
    unchecked: tuple[str, ...] = ()  # lines about what was not looked at, and how to have it
    notes: tuple[str, ...] = ()  # lines about how the dataset is read, as `train` logs them
    eval_roots: tuple[str, ...] = ()  # those of an eval_path

    @property
    def name(self) -> str:
        """All roots in one line."""
        return ", ".join((*self.roots, *self.eval_roots))

    @property
    def breaks(self) -> bool:
        """Whether training would refuse the dataset."""
        return any(finding.severity == "breaks" for finding in self.findings)


def in_order(findings: Sequence[Finding]) -> tuple[Finding, ...]:
    """Those findings that have cases, the gravest first; of the same severity, the most frequent."""
    found = [finding for finding in findings if finding.count]
    return tuple(sorted(found, key=lambda finding: (SEVERITIES.index(finding.severity), -finding.count)))


def plain(text: str, limit: int | None = None) -> str:
    """Text of a dataset in one line that can do a terminal no harm: control characters as \\x1b and the like.

    With `limit`, at most that many characters.
    """
    line = "".join(char if char.isprintable() else f"\\x{ord(char):02x}" for char in as_utf8(" ".join(text.split())))
    return line if limit is None or len(line) <= limit else f"{line[: limit - 1]}…"


def shell_word(path: Path) -> str:
    """A path as one word of a shell command, in plain ASCII where it holds anything that a terminal may act on.

    `$'...'` is read by bash, zsh, ksh and, since POSIX 2024, by sh.
    """
    text = str(path)
    if text.isprintable():
        return shlex.quote(text)
    escaped = (f"\\x{byte:02x}" if byte < 32 or byte > 126 or byte in b"'\\" else chr(byte) for byte in bytes(path))
    # A hexadecimal escape ends after two digits in bash, but not in every shell: a following digit stands in its own.
    return "".join(f"$'{char}'" if char.startswith("\\x") else shlex.quote(char) for char in escaped)


def bins_of(values: Sequence[float], edges: Sequence[float], labels: Sequence[str]) -> tuple[tuple[str, int], ...]:
    """The number of values below each of the sorted `edges`, and of those beyond the last, with their labels."""
    assert len(labels) == len(edges) + 1
    counts = [0] * len(labels)
    for value in values:
        counts[sum(value >= edge for edge in edges)] += 1
    return tuple(zip(labels, counts, strict=True))
