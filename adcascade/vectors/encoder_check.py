"""Whether a sentence-transformers model is whole. Knows no ads."""

import json
from pathlib import Path
from typing import Any

from sentence_transformers import SentenceTransformer
from transformers.utils.hub import cached_file

from adcascade.vectors.model_check import (
    BrokenModelError,
    check_loading,
    check_tokenizer,
    check_weights,
    position_limit,
)

# A limit beyond this is none: tokenizers without one say 10^30.
_LONGEST = 1_000_000


def check_encoder(model: SentenceTransformer, place: str) -> None:
    """Raises BrokenModelError, naming what is missing or does not fit; lowers a limit that RoBERTa's table misses.

    Args:
        place: Where it was loaded from.
    """
    check_weights(model)
    network = getattr(model[0], "auto_model", None)
    if network is None:  # words looked up in a table, without layers
        return
    check_loading(network, _loading_info(network, place))
    check_tokenizer(model.tokenizer, network.get_input_embeddings().weight.shape[0])
    positions, wanted = position_limit(network), model.max_seq_length
    if not wanted or wanted > _LONGEST:
        raise BrokenModelError(
            "it names no longest text; put max_seq_length into sentence_bert_config.json, or model_max_length into "
            "tokenizer_config.json"
        )
    table = int(getattr(network.config, "max_position_embeddings", positions))
    if wanted > max(positions, table):
        raise BrokenModelError(
            f"it reads texts of up to {wanted} tokens (max_seq_length), but has {positions} positions; lower "
            "max_seq_length in sentence_bert_config.json, or model_max_length in tokenizer_config.json"
        )
    model.max_seq_length = min(wanted, positions)


def _loading_info(network: Any, place: str) -> dict[str, Any]:
    """What the library finds missing in the files. sentence-transformers keeps that to itself, so it is asked again."""
    _, info = type(network).from_pretrained(
        place,
        subfolder=_subfolder(place),
        config=network.config,
        use_safetensors=True,
        disable_mmap=True,
        output_loading_info=True,
    )
    found: dict[str, Any] = info
    return found


def _subfolder(place: str) -> str:
    """Where the network lies in a sentence-transformers folder; "" for the folder itself, and for a bare network."""
    modules = cached_file(place, "modules.json", _raise_exceptions_for_missing_entries=False)
    if modules is None:
        return ""
    return str(json.loads(Path(modules).read_bytes())[0]["path"])
