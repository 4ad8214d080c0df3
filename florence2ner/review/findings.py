"""The findings of `inspect --json` about a folder, as filters of the review page."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from florence2ner.errors import UserError
from florence2ner.files import as_utf8
from florence2ner.inspection.findings import plain


@dataclass(frozen=True)
class FoundKind:
    """One kind of finding: what it is, and what is said about each of its images, by the image's name."""

    kind: str
    title: str
    details: Mapping[str, str]


def load_findings(path: Path, root: Path) -> tuple[FoundKind, ...]:
    """The findings that name images of the folder `root`, in the order of the file.

    The inspection may have been of several folders: then its names of images begin with the end of their folder's path.
    Raises UserError for a file that is none of `inspect --json`, and one about other folders.
    """
    try:
        found: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        roots = [str(text) for text in (*found["dataset_path"], *found["eval_path"])]
        findings = [
            (str(finding["kind"]), str(finding["title"]), list(finding["examples"])) for finding in found["findings"]
        ]
        kinds = [
            FoundKind(
                kind, title, {str(name): str(example["detail"]) for example in cases for name in example["images"]}
            )
            for kind, title, cases in findings
        ]
    except OSError as error:
        raise UserError(f"can't read {path}: {error.strerror}") from None
    except (ValueError, KeyError, TypeError):
        raise UserError(f"{path} doesn't hold findings: make it with florence2ner inspect --json") from None
    here = root.resolve()
    if plain(as_utf8(here)) not in roots:
        raise UserError(f"{path} is about {', '.join(roots)}, not about {root}: inspect that")
    prefixes = [f"{'/'.join(here.parts[-length:]).lstrip('/')}/" for length in range(1, len(here.parts) + 1)]
    if len(set(roots)) == 1:
        prefixes = [""]
    named = [FoundKind(kind.kind, kind.title, _below(kind.details, prefixes)) for kind in kinds]
    return tuple(kind for kind in named if kind.details)


def _kind(finding: Mapping[str, Any]) -> FoundKind:
    details = {str(name): str(example["detail"]) for example in finding["examples"] for name in example["images"]}
    return FoundKind(str(finding["kind"]), str(finding["title"]), details)


def _below(details: Mapping[str, str], prefixes: list[str]) -> dict[str, str]:
    """Those details whose names begin with one of the prefixes, by the rest of the name."""
    return {
        name.removeprefix(prefix): detail
        for name, detail in details.items()
        for prefix in prefixes
        if name.startswith(prefix)
    }
