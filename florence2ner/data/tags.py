"""Which caption a sample is trained on at each visit: one of several, its tags shuffled and some of them left out."""

from dataclasses import dataclass

from florence2ner.data.chance import chance
from florence2ner.data.samples import Sample
from florence2ner.model.tasks import find_task


@dataclass(frozen=True)
class CaptionRule:
    """How captions are varied; a pure function of the seed, the sample and the number of the visit (see `Draw`)."""

    seed: int = 0
    shuffle: bool = False
    keep: int = 0  # tags that stay in front
    tag_dropout: float = 0.0
    separator: str = ","
    caption_dropout: float = 0.0

    def caption_of(self, sample: Sample, visit: int | None) -> str | None:
        """The caption to train on at a visit; None for none. In evaluation (None) it is the first, as it is."""
        caption = sample.caption_at(visit, self.seed)
        if visit is None:
            return caption
        if self.caption_dropout and self._chance("caption dropout", sample, visit) < self.caption_dropout:
            return None
        if not (self.shuffle or self.tag_dropout) or find_task(sample.task_prompt).is_structured:
            return caption
        tags = [tag for tag in map(str.strip, caption.split(self.separator)) if tag]
        numbers = list(range(self.keep, len(tags)))
        if self.tag_dropout:
            numbers = [n for n in numbers if self._chance("tag dropout", sample, visit, n) >= self.tag_dropout]
        if self.shuffle:
            numbers = sorted(numbers, key=lambda n: self._chance("tag", sample, visit, n))
        chosen = tags[: self.keep] + [tags[n] for n in numbers]
        glue = self.separator if self.separator.isspace() else f"{self.separator} "
        return glue.join(chosen or tags[:1])  # a caption never loses all of its tags

    def _chance(self, purpose: str, sample: Sample, visit: int, *parts: object) -> float:
        return chance(self.seed, purpose, visit, *parts, sample.task_prompt, sample.image.key)
