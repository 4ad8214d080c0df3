"""Edits the text of a caption: opening words, line breaks, template, trigger word. Pure functions on strings."""

import os.path
import re
import string
from dataclasses import dataclass
from pathlib import Path

from florence2ner.errors import UserError, did_you_mean
from florence2ner.files import as_utf8

_FIELDS = ("caption", "stem", "folder")

# Openings that only say "this is a picture". Most training scripts strip "The image shows"; the others are what
# Florence-2 and other captioners write instead. A described medium ("a black and white photo of") is content and stays,
# and so does a caption that is not a sentence ("a photo of a dog"), since people train on those.
_OPENING = re.compile(
    r"""
    \s*
    (?:
        # The image (clearly) shows (that)
        (?:the|this)[ ](?:(?:provided|given|attached)[ ])?PICTURE[ ](?:[a-z]+ly[ ])?
        (?:shows|depicts|features|displays|captures|showcases|presents|portrays|illustrates|contains|includes)
        (?::|[ ]that\b)?
    |   # The image is (a photograph) of, This is a picture of; The image is | a black and white photograph
        (?:(?:the|this)[ ]PICTURE|this)[ ](?:is|appears[ ]to[ ]be|seems[ ]to[ ]be)
        (?:[ ](?:an?[ ]PICTURE[ ])?of | (?=[ ]an?[ ](?!bit\b|little\b)(?:[\w-]+[ ]){0,5}?MEDIUM\b))
    |   # In this image(,) we can (clearly) see (that), In the image, there is
        in[ ](?:the|this)[ ]PICTURE,?[ ]
        (?:
            (?:we|you|i|one)[ ](?:can[ ]|could[ ])?(?:also[ ]|[a-z]+ly[ ])?(?:see|observe|find)(?:[ ]that\b)?
        |   there[ ](?:is|are)
        )
    |   # In the image, | a man stands
        in[ ](?:the|this)[ ]PICTURE,
    )
    [ ](?!\s|(?:and|or|but|not|of|off|which|that|where|prominently)\b)
    """.replace("[ ]", r"\s+")
    .replace("PICTURE", "(?:image|picture|photo|photograph)")
    .replace(
        "MEDIUM",
        "(?:photo|photograph|picture|image|painting|drawing|illustration|sketch|screenshot|poster|portrait|collage|"
        "close-up|cartoon|comic|render|rendering|artwork|logo|map|diagram|graphic|cover|advertisement|selfie|still)",
    ),
    re.VERBOSE | re.IGNORECASE,
)


def strip_opening(caption: str) -> str:
    """The caption without an opening that carries no content: "The image shows a dog." -> "A dog."

    The rest starts with a capital if the caption did. The caption is unchanged when no word would remain.
    """
    opening = _OPENING.match(caption)
    rest = caption[opening.end() :] if opening else ""
    if opening is None or not re.search(r"\w", rest):
        return caption
    first_word = re.match(r"\w+", rest)
    if opening[0].lstrip()[0].isupper() and first_word and first_word[0].islower():  # leaves "iPhone" as it is
        return rest[0].upper() + rest[1:]
    return rest


def join_lines(text: str) -> str:
    """The text on one line, with single spaces in place of line breaks."""
    return " ".join(line.strip() for line in text.splitlines() if line.strip())


@dataclass(frozen=True)
class TextStyle:
    """Edits generated captions before they are written. By default nothing is changed.

    The steps are, in this order:
    - `strip_opening` and `single_line`, see `strip_opening` and `join_lines`;
    - `template`, with {caption}, {stem} (the image's file name without extension), {folder} (the name of its folder),
      and {{ and }} for braces;
    - `trigger_word` and a comma in front, unless the text begins with it;
    - `prefix` and `suffix`, added as they are.
    The constructor raises UserError for a template that can't be filled in or lacks {caption}, and for a blank trigger
    word.
    """

    prefix: str = ""
    suffix: str = ""
    trigger_word: str | None = None
    strip_opening: bool = False
    single_line: bool = False
    template: str | None = None

    def __post_init__(self) -> None:
        if self.template is not None:
            fields = [field for _, field in _parse_template(self.template)]
            if "caption" not in fields:
                raise UserError(f"template {self.template!r} has no {{caption}}: without it, captions are lost")
        if self.trigger_word is not None and not self.trigger_word.strip():
            raise UserError("trigger_word is blank: leave it out for none")

    def apply(self, caption: str, image: Path) -> str:
        """The edited caption of `image`. Of the image only the path is used."""
        text = strip_opening(caption) if self.strip_opening else caption
        text = join_lines(text) if self.single_line else text
        if self.template is not None:
            folder = Path(os.path.abspath(image)).parent.name
            values = {"caption": text, "stem": as_utf8(image.stem), "folder": as_utf8(folder), None: ""}
            text = "".join(literal + values[field] for literal, field in _parse_template(self.template))
        if self.trigger_word is not None:
            text = _lead_with(self.trigger_word.strip(), text)
        return self.prefix + text + self.suffix


def _parse_template(template: str) -> list[tuple[str, str | None]]:
    """Pairs of literal text and the field after it (None at the end).

    Raises UserError for anything but plain fields, such as {caption.upper} or {caption!r}.
    """
    known = [f"{{{field}}}" for field in _FIELDS]
    try:
        parts = list(string.Formatter().parse(template))
    except ValueError as error:
        raise UserError(f"template {template!r} can't be read: {error}; write {{{{ and }}}} for braces") from error
    for _, field, spec, conversion in parts:
        if field is not None and (field not in _FIELDS or spec or conversion):
            written = "{" + field + (f"!{conversion}" if conversion else "") + (f":{spec}" if spec else "") + "}"
            raise UserError(
                f"template {template!r} has {written}.{did_you_mean(written, known)} It may have {', '.join(known)}; "
                "write {{ and }} for braces"
            )
    return [(literal, field) for literal, field, _, _ in parts]


def _lead_with(trigger: str, text: str) -> str:
    if re.match(rf"\s*{re.escape(trigger)}(?!\w)", text, re.IGNORECASE):
        return text
    return f"{trigger}, {text}" if text.strip() else trigger
