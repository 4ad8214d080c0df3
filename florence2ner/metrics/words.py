"""Words as CIDEr-D, ROUGE and the measures of diversity count them: runs of letters and digits of any script."""

import re
from collections import Counter
from collections.abc import Sequence

_WORD = re.compile(r"[^\W_]+")


def words(text: str) -> list[str]:
    """The words of a text in lower case, without punctuation. In plain ASCII, as rouge-score's tokenizer has them."""
    return _WORD.findall(text.lower())


def ngrams(tokens: Sequence[str], n: int) -> Counter[tuple[str, ...]]:
    """How often each n-gram occurs."""
    return Counter(zip(*(tokens[start:] for start in range(n)), strict=False))
