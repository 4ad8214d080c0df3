"""How captions are varied from visit to visit: pure, with every tag where it may be, as often as asked for."""

from collections import Counter
from pathlib import Path

from hypothesis import given
from hypothesis import strategies as st

from florence2ner.data.samples import ImageRef, Sample
from florence2ner.data.tags import CaptionRule

TAGS = st.lists(st.text("abcdef ", min_size=1, max_size=6).filter(str.strip), min_size=1, max_size=12)


def sample(caption: str, name: str = "a.png", task: str = "<CAPTION>") -> Sample:
    return Sample(ImageRef(name, Path(name)), task, (caption,))


@given(
    tags=TAGS,
    keep=st.integers(0, 4),
    dropout=st.sampled_from([0.0, 0.3, 0.9]),
    shuffle=st.booleans(),
    separator=st.sampled_from([",", ";", " | "]),
    visit=st.integers(0, 100),
)
def test_tags_are_shuffled_and_left_out_but_never_invented(
    tags: list[str], keep: int, dropout: float, shuffle: bool, separator: str, visit: int
) -> None:
    rule = CaptionRule(7, shuffle, keep, dropout, separator)
    caption = separator.join(tags)
    varied = rule.caption_of(sample(caption), visit)
    assert varied == CaptionRule(7, shuffle, keep, dropout, separator).caption_of(sample(caption), visit)
    assert varied
    assert rule.caption_of(sample(caption), None) == caption, "evaluation compares with the caption as it is"
    if not shuffle and not dropout:
        assert varied == caption
        return
    stripped, kept = [tag.strip() for tag in tags], [tag.strip() for tag in varied.split(separator)]
    assert not Counter(kept) - Counter(stripped)
    assert kept[:keep] == stripped[:keep]
    if not dropout:
        assert sorted(kept) == sorted(stripped)
    if not shuffle:
        rest = iter(stripped)
        assert all(tag in rest for tag in kept), "in their order"


def test_each_visit_varies_anew_and_shares_are_as_asked() -> None:
    tags = [f"tag{n}" for n in range(10)]
    rule = CaptionRule(1, shuffle=True, keep=1, tag_dropout=0.2, caption_dropout=0.1)
    images = [sample(", ".join(tags), f"{n}.png") for n in range(400)]
    first, second = ([rule.caption_of(image, visit) for image in images] for visit in (0, 1))
    assert sum(one == other for one, other in zip(first, second, strict=True)) < 20
    written = [caption for caption in first + second if caption is not None]
    assert 0.07 < 1 - len(written) / 800 < 0.13
    assert all(caption.startswith("tag0, ") for caption in written)
    left = sum(len(caption.split(", ")) - 1 for caption in written) / (9 * len(written))
    assert 0.78 < left < 0.82
    places = Counter(caption.split(", ")[1] for caption in written)
    assert all(0.07 < places[tag] / len(written) < 0.16 for tag in tags[1:]), "any tag comes first alike"


def test_answers_with_boxes_stay_as_they_are_but_may_be_left_out() -> None:
    answer = "car, red<loc_1><loc_2><loc_3><loc_4>bus<loc_5><loc_6><loc_7><loc_8>"
    rule = CaptionRule(1, shuffle=True, tag_dropout=0.9, caption_dropout=0.5)
    assert {rule.caption_of(sample(answer, task="<OD>"), visit) for visit in range(20)} == {answer, None}


def test_a_caption_keeps_one_tag_at_least() -> None:
    rule = CaptionRule(1, tag_dropout=0.99)
    drawn = {rule.caption_of(sample("a, b"), visit) for visit in range(50)}
    assert "a" in drawn
    assert "" not in drawn
