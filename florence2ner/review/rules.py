"""Changes of many captions at once, as rules from text to text: find and replace, add a tag, remove a tag."""

import re
from collections.abc import Callable
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field

from florence2ner.errors import UserError

Rule = Callable[[str], str]  # pure; the same text where there is nothing to change


class _Wish(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class Replacement(_Wish):
    """Replace words wherever they stand."""

    do: Literal["replace"]
    find: str = Field(min_length=1, max_length=10_000)
    replace: str = Field(max_length=10_000)
    regex: bool = False  # `find` is a regular expression of Python's, and `replace` may have its groups: \1
    match_case: bool = True
    whole_words: bool = False

    @property
    def words(self) -> str:
        """What is done, for the user."""
        return f"replace {_short(self.find)} with {_short(self.replace)}"

    def rule(self) -> Rule:
        """The rule. Raises UserError for a regular expression that is none."""
        pattern = self.find if self.regex else re.escape(self.find)
        if self.whole_words:
            pattern = rf"(?<!\w)(?:{pattern})(?!\w)"
        try:
            compiled = re.compile(pattern, 0 if self.match_case else re.IGNORECASE)
            template = self.replace if self.regex else self.replace.replace("\\", r"\\")
            re.sub(f"{pattern}|", template, "")  # unknown groups show only where a text is replaced
        except (re.error, IndexError) as error:
            raise UserError(f"the regular expression can't be read: {error}") from None
        return lambda text: compiled.sub(template, text).strip()


class AddTag(_Wish):
    """Add a tag to captions that don't have it."""

    do: Literal["add"]
    tag: str = Field(min_length=1, max_length=1000)
    first: bool = False  # in front of the others

    @property
    def words(self) -> str:
        """What is done, for the user."""
        return f"add the tag {_short(self.tag)}"

    def rule(self) -> Rule:
        """The rule. Raises UserError for a blank tag."""
        tag = _checked(self.tag)

        def add(text: str) -> str:
            if tag in map(str.strip, text.split(",")):
                return text
            whole = text.rstrip(",").rstrip()
            if not whole:
                return tag
            return f"{tag}, {whole}" if self.first else f"{whole}, {tag}"

        return add


class RemoveTag(_Wish):
    """Remove a tag from captions that have it."""

    do: Literal["remove"]
    tag: str = Field(min_length=1, max_length=1000)

    @property
    def words(self) -> str:
        """What is done, for the user."""
        return f"remove the tag {_short(self.tag)}"

    def rule(self) -> Rule:
        """The rule. Raises UserError for a blank tag."""
        tag = _checked(self.tag)

        def remove(text: str) -> str:
            tags = text.split(",")
            kept = [other for other in tags if other.strip() != tag]
            return text if len(kept) == len(tags) else ",".join(kept).strip()

        return remove


Wish = Annotated[Replacement | AddTag | RemoveTag, Field(discriminator="do")]


def _checked(tag: str) -> str:
    tag = tag.strip()
    if not tag or "," in tag:
        raise UserError("a tag is words without a comma: give one tag at a time")
    return tag


def _short(text: str) -> str:
    line = " ".join(text.split())
    return f"“{line if len(line) <= 40 else line[:39] + '…'}”"
