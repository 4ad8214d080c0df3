"""Two models on the same images: counted by hand, with an interval that is the bootstrap's."""

from dataclasses import replace

import pytest

from florence2ner import UserError
from florence2ner.evaluation.compare import compare
from florence2ner.evaluation.rows import Row
from florence2ner.metrics.bootstrap import intervals
from florence2ner.metrics.table import METRICS, measure, parts_of
from tests.metrics.pairs import made_pairs


def rows_of(predictions: list[str], references: list[list[str]]) -> list[Row]:
    return [
        Row(
            image=f"{number}.png",
            task_prompt="<CAPTION>",
            references=tuple(texts),
            nats=float(10 + number % 7),
            tokens=10,
            prediction=text,
        )
        for number, (text, texts) in enumerate(zip(predictions, references, strict=True))
    ]


def test_the_better_model_wins_where_it_is_better() -> None:
    predictions, references = made_pairs()
    poor = rows_of(predictions, references)
    good = [replace(row, nats=row.nats - 1, prediction=row.references[0]) for row in poor]
    found = compare(poor, good[::-1])
    assert [row.name for row in found.before] == [row.name for row in found.after]
    exact = found.of("eval/exact_match")
    assert exact is not None
    right = sum(row.prediction.strip() in [text.strip() for text in row.references] for row in poor if row.prediction)
    assert (exact.wins, exact.losses, exact.ties) == (200 - right, 0, right)
    assert (exact.before, exact.after) == (right / 200, 1.0)
    assert exact.is_better
    assert not exact.is_worse
    loss = found.of("eval/loss")
    assert loss is not None
    assert (loss.wins, loss.losses, loss.ties) == (200, 0, 0)
    assert loss.change == pytest.approx(-0.1)
    assert loss.is_better

    cider = found.of("eval/cider")
    assert cider is not None
    observed = [[row.observed() for row in rows] for rows in (poor, good)]
    assert (cider.before, cider.after) == tuple(measure(seen, ["eval/cider"])["eval/cider"] for seen in observed)
    assert (
        cider.interval == intervals(METRICS["eval/cider"], *(parts_of(METRICS["eval/cider"], s) for s in observed))[1]
    )
    low, high = cider.interval
    assert str(cider) == f"CIDEr-D {cider.before:.4f} -> {cider.after:.4f}, {cider.change:+.3f} [{low:.3f}, {high:.3f}]"
    assert (
        str(exact)
        == f"exact match {right / 200:.1%} -> 100.0%, {100 - right / 2:+.1f} ["
        + ", ".join(f"{100 * limit:.1f}" for limit in exact.interval)
        + "]"
    )

    back = compare(good, poor).of("eval/cider")
    assert back is not None
    assert back.is_worse
    assert (back.wins, back.losses) == (cider.losses, cider.wins)


def test_few_images_leave_a_doubt() -> None:
    poor = rows_of(*made_pairs(20))[:4]
    loss = compare(poor, [replace(row, nats=row.nats - 1) for row in poor]).of("eval/loss")
    assert loss is not None
    assert (loss.interval, loss.wins) == (None, 4)
    assert not loss.is_better
    assert str(loss) == f"loss {loss.before:.4f} -> {loss.after:.4f}, {loss.change:+.3f}"


def test_the_largest_differences_come_first() -> None:
    texts = ["a red star", "a blue circle", "a green square"]
    before = rows_of(["a red star", "a blue star", "nothing"], [[text] for text in texts])
    after = rows_of(texts, [[text] for text in texts])
    found = compare(before, after)
    assert found.largest("eval/cider", 5) == [2, 1]
    assert found.largest("eval/cider", 1) == [2]


def test_only_what_both_have_is_compared() -> None:
    predictions, references = made_pairs(20)
    before, after = rows_of(predictions, references)[:15], rows_of(predictions, references)[5:]
    after[0] = replace(after[0], prediction=None)
    found = compare(before, after, ["eval/exact_match"])
    assert [row.image for row in found.after] == [f"{number}.png" for number in range(5, 15)]
    exact, loss = found.of("eval/exact_match"), found.of("eval/loss")
    assert exact is not None
    assert loss is not None
    assert exact.ties == 9, "no caption is counted that only one model has written"
    assert loss.ties == 10
    assert not exact.is_better
    assert not exact.is_worse
    assert found.of("eval/cider") is None, "it was not asked for"
    with pytest.raises(UserError, match="no image in common"):
        compare(before[:5], after)
