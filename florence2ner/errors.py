"""The exceptions that end a command without a traceback: `cli.py` shows each as a single line."""

import difflib
from collections.abc import Iterable


class UserError(ValueError):
    """A mistake the user can mend. The message is one line that names the thing and the fix; exit code 2."""


class Interrupted(Exception):
    """A run that stopped at a signal, with everything saved. Exit code 128 + `signal`."""

    def __init__(self, message: str, signal: int) -> None:
        super().__init__(message)
        self.signal = signal


def did_you_mean(word: str, known: Iterable[str]) -> str:
    """' Did you mean ...?' for the known word nearest to `word`, or '' when none is near."""
    near = difflib.get_close_matches(word, list(known), n=1, cutoff=0.5)
    return f" Did you mean {near[0]}?" if near else ""
