"""The exponential moving average of the trained weights (EMA), which is often better than the last weights are."""

from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager

import torch
from torch import Tensor, nn

_COUNT = "updates"  # in a saved state, beside the names of parameters


class WeightAverage:
    """An average in float32, by timm's `ModelEmaV3`: after each update it goes a step towards the weights.

    After the first update it is the weights; after update n > 1 it keeps min(`decay`, 1 - n^(-2/3)) of itself, so that
    short runs are averaged over, too. Accelerate saves and restores it by `state_dict` and `load_state_dict`.
    """

    def __init__(self, parameters: Iterable[tuple[str, nn.Parameter]], decay: float) -> None:
        """`parameters` are named ones, on their device; those that aren't trained are left out."""
        from timm.utils import ModelEmaV3  # slow, as in `optimizers.py`

        trained = {name: parameter for name, parameter in parameters if parameter.requires_grad}
        self._names = list(trained)
        self._weights = nn.ParameterList(trained.values())
        self._ema = ModelEmaV3(self._weights, decay=decay, use_warmup=True, dtype=torch.float32)
        self._ema.requires_grad_(False)
        self._updates = 0

    @property
    def values(self) -> dict[str, Tensor]:
        """The average by the parameters' names, float32."""
        return dict(zip(self._names, (value.detach() for value in self._ema.module.parameters()), strict=True))

    def update(self) -> None:
        """Take in the weights as they are after one more update."""
        self._updates += 1
        self._ema.update(self._weights, step=self._updates)

    @contextmanager
    def in_place(self) -> Iterator[None]:
        """A context manager in which the parameters hold the average; afterwards they are as before, to the bit."""
        weights = [weight.detach().clone() for weight in self._weights]
        self._write(self._ema.module.parameters())
        try:
            yield
        finally:
            self._write(weights)

    def state_dict(self) -> dict[str, Tensor]:
        """The average, and the number of updates that it has seen."""
        return {**self.values, _COUNT: torch.tensor(self._updates)}

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Go on from what `state_dict` gave."""
        assert state.keys() == {*self._names, _COUNT}, "a resumed run trains the same weights"
        for name, value in self.values.items():
            value.copy_(state[name])
        self._updates = int(state[_COUNT])

    @torch.no_grad()
    def _write(self, values: Iterable[Tensor]) -> None:
        for weight, value in zip(self._weights, values, strict=True):
            weight.copy_(value)
