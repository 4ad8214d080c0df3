"""Reads the guide, the Markdown pages beside this file, for `florence2ner guide TOPIC`."""

from pathlib import Path

from florence2ner.errors import UserError, did_you_mean

_PAGES = Path(__file__).parent
# The order in which a newcomer would read the pages; those not named here come last.
_ORDER = (
    *(
        "training",
        "inspect",
        "resume",
        "evaluation",
        "captioning",
        "report",
        "review",
        "tracking",
        "lora",
        "optimizers",
        "memory",
        "checkpoints",
        "scaling",
        "speed",
    ),
    *("settings", "house"),
)


def topics() -> dict[str, str]:
    """Each topic and the sentence that sums it up: the first line of its page below the title."""
    names = sorted((path.stem for path in _PAGES.glob("*.md")), key=lambda name: (*_ORDER, name).index(name))
    return {name: read_page(name).splitlines()[2] for name in names}


def read_page(topic: str) -> str:
    """The Markdown of a page. Raises UserError for an unknown topic."""
    path = _PAGES / f"{topic}.md"
    names = [page.stem for page in _PAGES.glob("*.md")]
    if topic not in names:
        raise UserError(f"the guide has no topic {topic!r}.{did_you_mean(topic, names)} florence2ner guide lists them")
    return path.read_text(encoding="utf-8")
