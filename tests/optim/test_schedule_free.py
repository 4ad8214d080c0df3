"""The weights to evaluate and export: an average where the optimizer makes one, else those that are trained."""

import pytest
import torch
from torch import nn

from florence2ner.optim.optimizers import build_optimizer
from florence2ner.optim.schedule_free import averaged_weights, averages


def test_most_optimizers_have_the_weights_that_they_train() -> None:
    model = nn.Linear(2, 2)
    optimizer = build_optimizer(model, learning_rate=1.0, weight_decay=0.0)
    assert not averages(optimizer)
    before = model.weight.detach().clone()
    with averaged_weights(optimizer):
        assert torch.equal(model.weight, before)


def test_a_schedule_free_one_has_the_average_of_its_steps_and_trains_on_to_the_bit() -> None:
    """Of plain SGD without momentum, the average after n updates is the mean of the n points (Defazio et al. 2024)."""
    model = nn.Linear(1, 3, bias=False)
    optimizer = build_optimizer(
        model, learning_rate=0.1, weight_decay=0.0, name="schedulefree_sgd", settings={"momentum": 0.9}
    )
    assert averages(optimizer)
    optimizer.train()  # type: ignore[attr-defined]
    point, points = model.weight.detach().clone(), []
    for number in range(4):
        model.weight.grad = torch.full_like(model.weight, float(number + 1))
        optimizer.step()
        point = point - 0.1 * (number + 1)
        points.append(point)
    trained = model.weight.detach().clone()
    with averaged_weights(optimizer):
        torch.testing.assert_close(model.weight.detach(), torch.stack(points).mean(dim=0))
    assert torch.equal(model.weight, trained)
    with pytest.raises(KeyError), averaged_weights(optimizer):
        raise KeyError
    assert torch.equal(model.weight, trained)
    optimizer.step()  # which it refuses to do unless it trains
