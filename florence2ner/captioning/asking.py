"""Asks a model about images, with a second attempt where an answer looks wrong; used by caption, eval and train."""

from collections.abc import Callable, Sequence
from contextlib import suppress

from torch import Tensor

from florence2ner.config.options import GenerationOptions
from florence2ner.engine.memory import AdaptiveBatch
from florence2ner.errors import UserError
from florence2ner.model.captioner import Captioner
from florence2ner.model.generation import Generated, generate, replace_flagged, second_try, seed_of
from florence2ner.model.inputs import Embeddings


class Asker:
    """Generates answers, and with `options.retry` a second time, with other settings, those that look wrong.

    Captioning and evaluation share it, so that what is evaluated is what captioning would write.
    """

    def __init__(
        self,
        captioner: Captioner,
        options: GenerationOptions,
        *,
        seed: int,
        batch_size: int,
        notify: Callable[[str], None],
    ) -> None:
        """`seed` is that of sampling.

        `notify` gets a message when memory doesn't suffice for `batch_size` second attempts at once.
        """
        self._captioner = captioner
        self._options = options
        self._seed = seed
        self._second_batch = AdaptiveBatch(batch_size, notify)  # of its own, as second attempts may take more beams

    def ask(
        self,
        images: Embeddings,
        input_ids: Tensor,
        attention_mask: Tensor | None,
        *,
        names: Sequence[str],
        may_be_empty: bool = False,
    ) -> list[Generated]:
        """The model's answers about B images, from prompts `input_ids` (B, N) with their `attention_mask` (B, N).

        `names` are those of the images' files, on which depends what is drawn where there is a temperature.
        """
        seeds = [seed_of(self._seed, name) for name in names]
        first = generate(self._captioner, images, input_ids, attention_mask, self._options, seeds=seeds)
        if not self._options.retry:
            return first
        decoding = second_try(self._options)

        def again(rows: list[int]) -> list[Generated]:
            def ask(part: slice) -> list[Generated]:
                chosen = rows[part]
                mask = None if attention_mask is None else attention_mask[chosen]
                return generate(self._captioner, Embeddings(images.values[chosen]), input_ids[chosen], mask, decoding)

            with suppress(UserError):  # memory doesn't suffice even for one image: keep the first answers
                return self._second_batch.run(ask, len(rows))
            return []

        return replace_flagged(first, again, may_be_empty=may_be_empty)
