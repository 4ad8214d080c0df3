"""The one exception for what the user can mend: `cli.py` shows it as a single line and exits with 2."""

import difflib
from collections.abc import Iterable


class UserError(ValueError):
    """A mistake the user can mend. The message is one line that names the thing and the fix."""


def did_you_mean(word: str, known: Iterable[str]) -> str:
    """' Did you mean ...?' for the known word nearest to `word`, or '' when none is near."""
    near = difflib.get_close_matches(word, list(known), n=1, cutoff=0.5)
    return f" Did you mean {near[0]}?" if near else ""
