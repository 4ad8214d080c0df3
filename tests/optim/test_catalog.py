"""The optimizers by name: what is listed, what is refused in one line, and settings in words."""

from typing import Any

import pytest

from florence2ner.errors import UserError
from florence2ner.optim import catalog as module
from florence2ner.optim.catalog import REFUSED, catalog, describe_optimizers, find_optimizer, parse_settings


def test_every_name_of_timm_is_offered_or_refused() -> None:
    from timm.optim import list_optimizers

    known = {name for name in list_optimizers() if not name.startswith("bnb")}
    assert known == {*REFUSED, *(name for name, entry in catalog().items() if entry.module is None)}


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("adamww", "there is no optimizer 'adamww'. Did you mean adamw? florence2ner train --list-optimizers lists"),
        ("optimi_adamv", "there is no optimizer 'optimi_adamv'. Did you mean optimi_adam? florence2ner"),
        ("adahessian", "optimizer adahessian can't be used: it needs second derivatives, which this loop doesn't"),
        ("kron", "optimizer kron can't be used: it draws random numbers, others in each process"),
        ("fusedadam", "optimizer fusedadam can't be used: it needs NVIDIA's apex, which has to be built"),
    ],
)
def test_a_name_that_can_not_be_used_is_refused_in_one_line(name: str, message: str) -> None:
    with pytest.raises(UserError) as error:
        find_optimizer(name)
    assert str(error.value).startswith(message)
    assert "\n" not in str(error.value)


def test_one_that_is_not_installed_names_the_command_that_installs_it(monkeypatch: pytest.MonkeyPatch) -> None:
    assert all(entry.missing is None for entry in catalog().values()), "the tests need all of them"
    monkeypatch.setitem(module._OTHERS, "came", ("came_pytorch_of_nobody", "CAME", "as it is"))
    monkeypatch.setitem(module._DISTRIBUTIONS, "came_pytorch_of_nobody", "came-pytorch")
    with pytest.raises(UserError, match=r"^optimizer came needs a package that is not installed: pip install came-py"):
        find_optimizer("came")
    *rest, last = describe_optimizers()
    assert last.split() == ["came", "as", "it", "is;", "needs:", "pip", "install", "came-pytorch"]
    assert [line.split()[0] for line in rest] == [name for name in catalog() if name != "came"]
    assert all(len(line.split()) > 1 for line in rest)


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        ((), {}),
        (("betas=0.9,0.95", "eps=1e-6"), {"betas": (0.9, 0.95), "eps": 1e-6}),
        (("momentum=0.95", "decouple_lr=true"), {"momentum": 0.95, "decouple_lr": True}),
    ],
)
def test_settings_are_read_from_words(words: tuple[str, ...], expected: dict[str, Any]) -> None:
    assert parse_settings(words) == expected


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("lr=1",), r"'lr=1' is no key=value of betas, eps, momentum, decouple_lr, such as betas=0.9,0.95"),
        (("eps",), r"'eps' is no key=value of"),
        (("eps=1", "eps=2"), "eps is given twice"),
        (("betas=much",), "'betas=much' has no value that betas can have"),
        (("decouple_lr=1",), "'decouple_lr=1' has no value that decouple_lr can have"),
    ],
)
def test_words_that_are_no_settings_are_refused(words: tuple[str, ...], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        parse_settings(words)
