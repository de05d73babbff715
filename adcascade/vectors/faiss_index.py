"""The FAISS index of an index version: which kind, and how it is trained, filled, written and read.

Knows vectors only. On a host with a GPU, training and adding run there and the index comes back in CPU form.
"""

import logging
import math
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from adcascade.vectors.encoder import Vectors
from adcascade.vectors.errors import BuildError

log = logging.getLogger(__name__)

Rows = npt.NDArray[np.int64]
SearchParameters = Mapping[str, int]

KINDS = ("auto", "flat", "hnsw", "hnsw8", "ivf", "compact")
_FLAT_LIMIT = 100_000
_TRAIN_PER_LIST, _TRAIN_LEAST = 64, 10_000
# A graph linked with less effort is built sooner, and must be searched deeper ever after.
_LINKING_EFFORT = 200
CHUNK_ROWS = 65_536
# The limit on what FAISS reads is one for the whole process.
_READING = threading.Lock()


def import_faiss() -> Any:
    """The faiss module. Raises BuildError that names the extra to install."""
    try:
        import faiss
    except ImportError as error:
        raise BuildError(
            "FAISS is not installed: pip install 'adcascade[serve]', or 'adcascade[gpu]' on a machine with CUDA"
        ) from error
    return faiss


def factory_strings(kind: str, count: int, dimension: int, *, is_unit: bool) -> list[str]:
    """FAISS factory strings to try in this order until one reaches the recall, for `count` vectors.

    ``auto`` is exact search up to 100,000 ads, where it is fast enough and has no recall to lose. Beyond, for unit
    vectors, it is ``hnsw8``: a graph (Malkov and Yashunin, arXiv 1603.09320) of eight-bit vectors, faster than one of
    whole vectors and a third of its size. A graph finds too little where many vectors are equal, or by inner products
    with vectors of different length (`is_unit` is False): there it is ``compact``, inverted lists of four-bit codes
    that are scanned in registers (André et al., arXiv 1704.07355), the best of which are compared again by eight-bit
    vectors. Where FAISS has a GPU, which knows neither, it is IVF.

    Args:
        kind: one of `KINDS`, or a factory string itself.
    """
    kinds = [kind]
    if kind == "auto" and count <= _FLAT_LIMIT:
        kinds = ["flat"]
    elif kind == "auto" and gpu_count(import_faiss()):
        kinds = ["ivf"]
    elif kind == "auto":
        kinds = ["hnsw8", "compact"] if is_unit else ["compact"]
    lists = max(1, min(int(4 * math.sqrt(count)), count // 44))  # FAISS wants 39 training points a list
    codes = dimension // 2 if dimension % 2 == 0 else dimension
    known = {
        "flat": "Flat",
        "hnsw": "HNSW32",
        "hnsw8": "HNSW24,SQ8",
        "ivf": f"IVF{lists},Flat",
        "compact": f"IVF{lists},PQ{codes}x4fs,Refine(SQ8)",
    }
    return [known.get(one, one) for one in kinds]


def check_kind(kind: str, dimension: int) -> None:
    """Raises BuildError if FAISS is missing or refuses the factory string, before hours go into embedding."""
    for factory in factory_strings(kind, 1, dimension, is_unit=True):
        new_index(dimension, factory)


def new_index(dimension: int, factory: str) -> Any:
    """An empty inner-product index. Raises BuildError if FAISS is missing or refuses the factory string."""
    faiss = import_faiss()
    try:
        index = faiss.index_factory(dimension, factory, faiss.METRIC_INNER_PRODUCT)
    except RuntimeError as error:
        raise BuildError(
            f"FAISS knows no index {factory!r} of {dimension} dimensions: {_last_line(error)}. "
            f"Choose --index from {', '.join(KINDS)}, or another factory string"
        ) from error
    if isinstance(index, faiss.IndexHNSW):
        index.hnsw.efConstruction = _LINKING_EFFORT
    return index


def _last_line(error: Exception) -> str:
    """What FAISS says, without its source lines."""
    return (str(error).strip().splitlines() or [type(error).__name__])[-1]


def build_index(
    vectors: Vectors,
    factory: str,
    held_out: Rows,
    seed: int,
    progress: Callable[[int], None],
    *,
    on_gpu: bool = True,
) -> Any:
    """Trains and fills an inner-product index.

    Args:
        vectors: float32 [ads, dimension]; may be memory-mapped.
        factory: FAISS factory string.
        held_out: Rows that must not be trained on.
        seed: For the choice of training rows.
        progress: Told how many vectors are in the index.
        on_gpu: Train and fill it on the GPU where FAISS has one, and has a GPU form of this index.

    Raises:
        BuildError: FAISS refuses the factory string or the training.
    """
    faiss = import_faiss()
    index = new_index(vectors.shape[1], factory)
    try:
        ivf = faiss.try_extract_index_ivf(index)  # asked of the CPU form: FAISS finds none in that of a GPU
        wanted = _TRAIN_PER_LIST * (ivf.nlist if ivf is not None else 256)
        if on_gpu and gpu_count(faiss):
            index = _on_gpu_if_it_can(index)
        if not index.is_trained:
            index.train(_training_vectors(vectors, held_out, max(_TRAIN_LEAST, wanted), seed))
        for start in range(0, len(vectors), CHUNK_ROWS):
            index.add(np.ascontiguousarray(vectors[start : start + CHUNK_ROWS]))
            progress(min(start + CHUNK_ROWS, len(vectors)))
    except RuntimeError as error:
        raise BuildError(
            f"FAISS cannot build {factory!r} for {len(vectors)} vectors: {_last_line(error)}. "
            f"Choose --index from {', '.join(KINDS)}, or another factory string"
        ) from error
    return _to_cpu(faiss, index)


def _training_vectors(vectors: Vectors, held_out: Rows, wanted: int, seed: int) -> Vectors:
    """A sample of so many that k-means can use, without the held-out rows (which stay in if nothing else is left)."""
    rows = np.setdiff1d(np.arange(len(vectors)), held_out)
    rows = rows if len(rows) >= 0.5 * len(vectors) else np.arange(len(vectors))
    if len(rows) > wanted:
        rows = np.sort(np.random.default_rng(seed).choice(rows, wanted, replace=False))
    return np.ascontiguousarray(vectors[rows])


def to_gpu(index: Any, *, float16: bool = True) -> Any:
    """A copy of the index on the first GPU.

    Args:
        float16: Keep vectors in half the memory; similarities keep three digits.

    Raises:
        RuntimeError: FAISS has no GPU form of this index.
    """
    faiss = import_faiss()
    options = faiss.GpuClonerOptions()
    options.useFloat16 = float16
    return faiss.index_cpu_to_gpu(faiss.StandardGpuResources(), 0, index, options)


def _on_gpu_if_it_can(index: Any) -> Any:
    try:
        return to_gpu(index, float16=False)
    except RuntimeError:
        log.warning("FAISS has no GPU form of this index; training and adding run on the CPU")
        return index


def _to_cpu(faiss: Any, index: Any) -> Any:
    return faiss.index_gpu_to_cpu(index) if gpu_count(faiss) and "Gpu" in type(index).__name__ else index


def gpu_count(faiss: Any) -> int:
    """GPUs that this build of FAISS sees; 0 for one that was built without."""
    return int(faiss.get_num_gpus()) if hasattr(faiss, "StandardGpuResources") else 0


def set_search_parameters(index: Any, parameters: SearchParameters) -> None:
    """Sets nprobe, efSearch and the like. Raises BuildError if the index has no such parameter."""
    space = import_faiss().ParameterSpace()
    for name, value in parameters.items():
        try:
            space.set_index_parameter(index, name, value)
        except RuntimeError as error:
            raise BuildError(f"this index has no search parameter {name!r}") from error


def write_index(index: Any, path: Path) -> None:
    """Writes the index through Python's own file, so that a full disk raises OSError and not a FAISS error."""
    faiss = import_faiss()
    failure: list[OSError] = []
    with path.open("wb") as file:

        def write(data: bytes) -> int:
            try:
                return file.write(data)
            except OSError as error:
                failure.append(error)
                return 0

        try:
            writer = faiss.PyCallbackIOWriter(write)
            faiss.write_index(index, faiss.BufferedIOWriter(writer))
        except RuntimeError as error:
            raise (failure[0] if failure else error) from None
        if failure:
            raise failure[0]


def read_index(path: Path, parameters: SearchParameters) -> Any:
    """Reads an index into memory and sets its search parameters. Raises BuildError if FAISS cannot read it."""
    faiss = import_faiss()
    try:
        with _no_vector_beyond(path.stat().st_size):
            index = faiss.read_index(str(path))
    except (OSError, RuntimeError, MemoryError) as error:
        raise BuildError(f"FAISS cannot read {path}: {_last_line(error)}") from error
    set_search_parameters(index, parameters)
    return index


@contextmanager
def _no_vector_beyond(most_bytes: int) -> Iterator[None]:
    """While it lasts, FAISS refuses a file that claims a longer array, instead of making room for it first."""
    faiss = import_faiss()
    if not hasattr(faiss, "set_deserialization_vector_byte_limit"):  # before FAISS 1.14
        yield
        return
    with _READING:
        before = faiss.get_deserialization_vector_byte_limit()
        faiss.set_deserialization_vector_byte_limit(most_bytes)
        try:
            yield
        finally:
            faiss.set_deserialization_vector_byte_limit(before)


def flat_vectors(index: Any) -> Vectors | None:
    """The vectors inside an index that keeps them whole, read-only float32 [ads, dimension], not copied; else None."""
    faiss = import_faiss()
    return np.asarray(_FlatRows(index)) if isinstance(index, faiss.IndexFlat) and index.ntotal else None


class _FlatRows:
    """What numpy needs to see an index's vectors as an array that keeps the index alive."""

    def __init__(self, index: Any) -> None:
        self._index = index
        self.__array_interface__ = {
            "version": 3,
            "typestr": "<f4",
            "shape": (int(index.ntotal), int(index.d)),
            "data": (int(index.get_xb()), True),
        }
