"""Vectors of the texts of users, in slices, with those that were read lately kept. Knows no users and no index.

Belongs to the thread of its batcher.
"""

from collections.abc import Iterable

from adcascade.serving.byte_cache import ByteBudgetCache
from adcascade.serving.slices import Slices, by_cost
from adcascade.vectors.encoder import CHARS_PER_TOKEN, SlicedEncoder, TextEncoder, Vectors, estimated_tokens

# Tokens that are read together: one long text, some tens of milliseconds on two cores. Where they are more than a few,
# other calls go between the layers of the encoder.
_SLICE_TOKENS, _LAYER_TOKENS = 256, 64


class TextVectors:
    """An encoder, and the vectors that it made lately.

    Args:
        cache_bytes: For vectors of texts that were encoded lately; 0 keeps none.

    Attributes:
        kept: Vector of each text that was encoded lately.
    """

    def __init__(self, encoder: TextEncoder, cache_bytes: int) -> None:
        self._encoder = encoder
        self.kept: ByteBudgetCache[Vectors] = ByteBudgetCache(cache_bytes, lambda vector: vector.nbytes)
        self._max_tokens = encoder.max_chars // CHARS_PER_TOKEN

    def tokens_to_read(self, texts: Iterable[str]) -> int:
        """About how many tokens have to be read for the vectors of texts. May be called in any thread."""
        return sum(self._tokens(text) for text in set(texts) if text not in self.kept)

    def of(self, texts: list[str]) -> Slices[dict[str, Vectors]]:
        """Vector of each text, float32 [dimension], remembering the last ones used."""
        kept = {text: self.kept.get(text) for text in texts}
        found = {text: vector for text, vector in kept.items() if vector is not None}
        fresh = sorted((text for text in kept if text not in found), key=len)  # so that few tokens are padding
        for part in by_cost(fresh, self._tokens, _SLICE_TOKENS):
            vectors = yield from self._read(part)
            for text, vector in zip(part, vectors, strict=True):
                found[text] = vector.copy()  # a row of the part would keep all of it
                self.kept.put(text, found[text])
            yield
        return found

    def _read(self, texts: list[str]) -> Slices[Vectors]:
        """A layer at a time where it takes so long that others would wait for it."""
        if sum(map(self._tokens, texts)) > _LAYER_TOKENS and isinstance(self._encoder, SlicedEncoder):
            return (yield from self._encoder.encode_in_slices(texts))
        return self._encoder.encode(texts)

    def _tokens(self, text: str) -> int:
        return estimated_tokens(text, self._max_tokens)
