"""The average of weights: that of a plain loop, in place while it is looked at, and saved whole."""

import pytest
import torch
from torch import nn

from florence2ner.optim.average import WeightAverage


def train(model: nn.Module, average: WeightAverage | None, updates: int) -> list[torch.Tensor]:
    """Take some steps; returns the weights after each of them."""
    optimizer = torch.optim.SGD((p for p in model.parameters() if p.requires_grad), lr=0.5)
    seen = []
    for _ in range(updates):
        loss = model(torch.randn(4, 3, dtype=model.weight.dtype)).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        if average:
            average.update()
        seen.append(model.weight.detach().clone())
    return seen


def linear(dtype: torch.dtype = torch.float32) -> nn.Linear:
    torch.manual_seed(0)
    model = nn.Linear(3, 2)
    model.bias.requires_grad_(False)
    return model.to(dtype)


@pytest.mark.parametrize("decay", [0.9, 0.5])
def test_it_is_the_average_of_a_plain_loop(decay: float) -> None:
    model = linear()
    average = WeightAverage(model.named_parameters(), decay)
    assert torch.equal(average.values["weight"], model.weight)
    seen = train(model, average, 40)
    expected = seen[0]
    for number, weights in enumerate(seen[1:], 2):
        kept = min(decay, 1 - number ** (-2 / 3))
        expected = kept * expected + (1 - kept) * weights
    assert average.values.keys() == {"weight"}, "what is frozen is left out"
    torch.testing.assert_close(average.values["weight"], expected)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_it_takes_the_place_of_the_weights_for_a_while(dtype: torch.dtype) -> None:
    model = linear(dtype)
    average = WeightAverage(model.named_parameters(), 0.9)
    train(model, average, 5)
    before, mean = model.weight.detach().clone(), average.values["weight"].clone()

    def fail() -> None:
        with average.in_place():
            assert torch.equal(model.weight, mean.to(dtype))
            assert not torch.equal(model.weight, before)
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fail()
    assert torch.equal(model.weight, before)
    assert torch.equal(average.values["weight"], mean)
    assert model.weight.requires_grad


def test_weights_in_bfloat16_are_averaged_in_float32() -> None:
    model = linear(torch.bfloat16)
    average = WeightAverage(model.named_parameters(), 0.999)
    with torch.no_grad():
        for _ in range(300):
            average.update()
            model.weight.add_(0.01)
    assert average.values["weight"].dtype == torch.float32
    assert not torch.equal(average.values["weight"], average.values["weight"].bfloat16().float())


def test_it_goes_on_from_what_was_saved() -> None:
    model = linear()
    average = WeightAverage(model.named_parameters(), 0.9)
    train(model, average, 5)
    other = WeightAverage(model.named_parameters(), 0.9)
    other.load_state_dict({name: value.clone() for name, value in average.state_dict().items()})
    for one in (average, other):
        with torch.no_grad():
            model.weight.fill_(1.0)
        one.update()
    assert torch.equal(average.values["weight"], other.values["weight"])
    with pytest.raises(AssertionError):
        other.load_state_dict({})
