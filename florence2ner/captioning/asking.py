"""Asking a model about images: for captioning, and for evaluations, since a caption is evaluated as it is made."""

from collections.abc import Callable
from contextlib import suppress

from torch import Tensor

from florence2ner.config.options import GenerationOptions
from florence2ner.engine.memory import AdaptiveBatch
from florence2ner.errors import UserError
from florence2ner.model.captioner import Captioner
from florence2ner.model.generation import Generated, generate, replace_flagged, second_try
from florence2ner.model.inputs import Embeddings


class Asker:
    """Asks once, and once more with other settings where an answer looks wrong and `options.retry` says so."""

    def __init__(
        self, captioner: Captioner, options: GenerationOptions, *, batch_size: int, notify: Callable[[str], None]
    ) -> None:
        """`notify` is told when memory doesn't suffice for `batch_size` second tries at once."""
        self._captioner = captioner
        self._options = options
        self._second_batch = AdaptiveBatch(batch_size, notify)  # more beams, more memory

    def ask(
        self, images: Embeddings, input_ids: Tensor, attention_mask: Tensor | None, *, may_be_empty: bool = False
    ) -> list[Generated]:
        """The model's answers to B prompts, input_ids (B, N) with their mask, about B images."""
        first = generate(self._captioner, images, input_ids, attention_mask, self._options)
        if not self._options.retry:
            return first
        decoding = second_try(self._options)

        def again(rows: list[int]) -> list[Generated]:
            def ask(part: slice) -> list[Generated]:
                chosen = rows[part]
                mask = None if attention_mask is None else attention_mask[chosen]
                return generate(self._captioner, Embeddings(images.values[chosen]), input_ids[chosen], mask, decoding)

            with suppress(UserError):  # memory doesn't suffice even for one: the first answers stay
                return self._second_batch.run(ask, len(rows))
            return []

        return replace_flagged(first, again, may_be_empty=may_be_empty)
