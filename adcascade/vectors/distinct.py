"""Whether an encoder tells texts apart. Knows no encoder and no ads.

One that maps all words to the same few tokens gives many texts one vector; a recall measured against exact search of
the same vectors is 1 all the same.
"""

import logging
import re

import numpy as np

from adcascade.vectors.encoder import Vectors
from adcascade.vectors.errors import BuildError

log = logging.getLogger(__name__)

# Fewer texts say nothing.
_FEWEST = 20
_REFUSED_BELOW, _WARNED_BELOW = 0.5, 0.9
# What encoders read of a text at least; texts that differ later may share a vector.
_WORDS_READ = 100
# Two vectors are the same if no number differs by so much: a text's vector depends a little on its batch.
_GRID = 1e-3


class DistinctVectors:
    """Counts different texts and different vectors, batch by batch; case and punctuation make no difference."""

    def __init__(self) -> None:
        self._texts = self._vectors = 0

    def add(self, texts: list[str], vectors: Vectors) -> None:
        """Counts a batch; row i of `vectors`, float32 [texts, dimension], is of text i."""
        if not texts:
            return
        firsts: dict[str, int] = {}
        for row, text in enumerate(texts):
            firsts.setdefault(" ".join(re.findall(r"\w+", text.casefold())[:_WORDS_READ]), row)
        rounded = np.ascontiguousarray(np.round(vectors[list(firsts.values())] / _GRID).astype(np.int16))
        self._texts += len(firsts)
        self._vectors += len(np.unique(rounded.view(f"V{rounded.strides[0]}")))

    def check(self, encoder: str) -> None:
        """Raises BuildError if the encoder of this name gave hardly any vectors; warns if it gave few."""
        if self._texts < _FEWEST:
            return
        said = f"the encoder {encoder!r} made {self._vectors:,} different vectors of {self._texts:,} different texts"
        if self._vectors < _REFUSED_BELOW * self._texts:
            raise BuildError(
                f"{said}: it does not tell them apart, and a search would find whatever comes first. Choose another "
                "encoder, or mend its tokenizer. Nothing was published"
            )
        if self._vectors < _WARNED_BELOW * self._texts:
            log.warning("%s: ads that share a vector are found in any order", said)
