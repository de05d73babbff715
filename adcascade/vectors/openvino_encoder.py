"""A sentence-transformers model run by OpenVINO: the same vectors, several times faster on a CPU. Knows no ads.

OpenVINO computes in bfloat16 where the processor does. int8 would be faster still, but loses some 5 % of recall@100.
"""

import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers.utils import logging as transformers_logging

from adcascade.serving.telemetry import switch_off_telemetry
from adcascade.vectors.encoder import SentenceTransformerEncoder, Vectors
from adcascade.vectors.errors import BuildError

_BATCH = 64
# Of vectors of the same text by both; bfloat16 gives 0.9999.
_LEAST_COSINE = 0.999
_EXAMPLES = ["an ad", "a somewhat longer text of an ad, with a price: 9.99", "x"]

Tokens = npt.NDArray[np.int64]


class _Vectors(nn.Module):
    """Token ids to unit vectors: all modules of a sentence-transformers model, as one without dictionaries."""

    def __init__(self, model: Any, *, has_segments: bool) -> None:
        super().__init__()
        self.model = model
        self._has_segments = has_segments

    def forward(self, ids: Tensor, mask: Tensor) -> Tensor:
        """`ids` and `mask` int64 [texts, tokens] to float32 [texts, dimension]."""
        features = {"input_ids": ids, "attention_mask": mask}
        if self._has_segments:
            features["token_type_ids"] = torch.zeros_like(ids)
        return F.normalize(self.model(features)["sentence_embedding"], dim=1)


@contextmanager
def _without_remarks() -> Iterator[None]:
    """Tracing warns of what stays the same in all inputs, and transformers of a loss that nobody asked for."""
    verbosity = transformers_logging.get_verbosity()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        transformers_logging.set_verbosity_error()  # type: ignore[no-untyped-call]
        try:
            yield
        finally:
            transformers_logging.set_verbosity(verbosity)


class OpenVinoEncoder:
    """An encoder with the name and the fingerprint of `source`, whose vectors it makes.

    Raises:
        BuildError: OpenVINO is not installed, or cannot run this model as it is.
    """

    def __init__(self, source: SentenceTransformerEncoder) -> None:
        switch_off_telemetry()
        try:
            import openvino
        except ModuleNotFoundError as missing:
            raise BuildError("--engine openvino needs OpenVINO: pip install 'adcascade[fast]'") from missing
        self.name, self.sha256, self.dimension = source.name, source.sha256, source.dimension
        self.variant = f"{source.settings_sha256} openvino"
        self.max_chars = source.max_chars
        self._tokenizer = source.model.tokenizer
        self._max_tokens = source.model.max_seq_length
        has_segments = "token_type_ids" in self._tokenizer.model_input_names
        example = torch.ones(2, 7, dtype=torch.int64)
        try:
            with torch.no_grad(), _without_remarks():
                graph = openvino.convert_model(
                    _Vectors(source.model.cpu().eval(), has_segments=has_segments),
                    example_input=(example, example),
                    input=[openvino.PartialShape([-1, -1])] * 2,
                )
            self._compiled = openvino.Core().compile_model(graph, "CPU", {"PERFORMANCE_HINT": "LATENCY"})
            own = self.encode(_EXAMPLES)
        except Exception as error:  # whatever the converter raises of a model that it does not understand
            raise BuildError(f"OpenVINO cannot run {self.name!r}: {error}. Build with --engine torch") from error
        nearness = float((own * source.encode(_EXAMPLES)).sum(axis=1).min())
        if nearness < _LEAST_COSINE:
            raise BuildError(
                f"OpenVINO's vectors of {self.name!r} are others ({nearness:.4f}). Build with --engine torch"
            )

    def encode(self, texts: Sequence[str]) -> Vectors:
        """See `TextEncoder`."""
        vectors = np.zeros((len(texts), self.dimension), np.float32)
        for places, ids, mask in self._batches(texts):
            vectors[places] = self._compiled([ids, mask], share_inputs=True)[0]
        return vectors

    def _batches(self, texts: Sequence[str]) -> Iterator[tuple[Tokens, Tokens, Tokens]]:
        """Places in `texts`, token ids and mask of texts of like length."""
        if not texts:
            return
        read = [text[: self.max_chars] for text in texts]
        rows = self._tokenizer(read, truncation=True, max_length=self._max_tokens)["input_ids"]
        lengths = np.array([len(row) for row in rows])
        order = np.argsort(lengths, kind="stable")
        pad = int(self._tokenizer.pad_token_id or 0)
        for start in range(0, len(order), _BATCH):
            places = order[start : start + _BATCH]
            mask = np.arange(lengths[places].max()) < lengths[places][:, None]
            ids = np.full(mask.shape, pad, np.int64)
            ids[mask] = np.concatenate([rows[place] for place in places])
            yield places, ids, mask.astype(np.int64)
