"""The exceptions that end a command with a line, and the word that was meant."""

import pytest

from florence2ner.errors import Interrupted, InUse, UserError, did_you_mean


@pytest.mark.parametrize(
    ("word", "expected"),
    [
        ("trian", " Did you mean train?"),
        ("evla", " Did you mean eval?"),
        ("captoin", " Did you mean caption?"),
        ("zzz", ""),
    ],
)
def test_the_nearest_known_word_is_named_and_a_far_one_is_not(word: str, expected: str) -> None:
    assert did_you_mean(word, iter(("caption", "eval", "train"))) == expected


def test_an_interruption_carries_its_message_and_its_signal() -> None:
    error = Interrupted("stopped by signal 15", signal=15)
    assert (str(error), error.signal) == ("stopped by signal 15", 15)
    assert not isinstance(error, UserError), "its exit code is another"


def test_a_user_error_is_a_value_error() -> None:
    for kind in (UserError, InUse):
        with pytest.raises(ValueError, match="no such folder"):
            raise kind("no such folder")
