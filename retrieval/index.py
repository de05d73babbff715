"""Maximum inner product search over a loaded index version; the one place that chooses CPU or GPU.

Knows no text and no users. Belongs to one thread at a time.
"""

import logging

import numpy as np

from adcascade.catalog.schedule import Eligibility
from adcascade.serving.errors import StartupError
from adcascade.vectors.encoder import Vectors
from adcascade.vectors.faiss_index import Rows, gpu_count, import_faiss, to_gpu
from index_builder.artifact import IndexVersion
from retrieval.filtered_search import FilteredSearch

log = logging.getLogger(__name__)


class AdIndex:
    """A searchable index version.

    Args:
        loaded: The index version.
        device: "auto" takes the GPU where FAISS sees one, "cpu", or "cuda".

    Raises:
        StartupError: A GPU was asked for and FAISS has none, or has no GPU form of this index.

    Example:
        >>> from pathlib import Path
        >>> from adcascade.vectors.encoder import load_encoder
        >>> from index_builder.artifact import load_version, open_store
        >>> from retrieval.index import AdIndex
        >>> store = open_store(Path("data/index"))
        >>> index = AdIndex(load_version(store, store.current()), device="cpu")
        >>> encoder = load_encoder(index.loaded.manifest.encoder_name)
        >>> similarities, rows = index.search(encoder.encode(["trail running shoes", "a good espresso"]), k=3)
        >>> similarities.shape, rows.shape
        ((2, 3), (2, 3))
        >>> index.loaded.catalog.ads(rows[0, :1])[0].title
        'Trail running shoes for muddy mountain paths'
    """

    def __init__(self, loaded: IndexVersion, device: str = "auto") -> None:
        self.loaded = loaded
        self._faiss_index = loaded.faiss_index
        self.device = "cpu"
        if device not in ("auto", "cpu", "cuda"):
            raise StartupError(f"device must be auto, cpu or cuda, not {device!r}")
        if device != "cpu":
            self._move_to_gpu(required=device == "cuda")
        self._search = FilteredSearch(self._faiss_index, loaded.searched_vectors)

    def _move_to_gpu(self, *, required: bool) -> None:
        faiss = import_faiss()
        if not gpu_count(faiss):
            if required:
                raise StartupError(
                    "device cuda was asked for, but this FAISS sees no GPU: pip install 'adcascade[gpu]'"
                )
            return
        try:
            self._faiss_index = to_gpu(self._faiss_index)
        except RuntimeError as error:
            if required:
                raise StartupError(f"FAISS has no GPU form of the index {self.loaded.manifest.factory!r}") from error
            log.warning("FAISS has no GPU form of %s; searching on the CPU", self.loaded.manifest.factory)
            return
        self.device = "cuda"

    @property
    def dimension(self) -> int:
        """Numbers per vector."""
        return self.loaded.manifest.dimension

    def search(self, vectors: Vectors, k: int, eligible: Eligibility | None = None) -> tuple[Vectors, Rows]:
        """The `k` nearest ads of each vector, best first.

        Args:
            vectors: float32 [vectors, dimension].
            k: At most the number of eligible ads is returned.
            eligible: The ads to search among; all if None.

        Returns:
            Similarities float32 and rows of the catalog int64, both [vectors, min(k, eligible ads)]; row -1 where an
            approximate index that searches all ads found fewer.
        """
        among = eligible or self.loaded.catalog.schedule.everything
        return self._search.search(np.ascontiguousarray(vectors, np.float32), k, among)
