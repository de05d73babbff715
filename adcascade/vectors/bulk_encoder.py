"""Which engine embeds a whole catalog. Knows no ads."""

import importlib.util
import logging

from adcascade.vectors.encoder import EMBEDDED, SentenceTransformerEncoder, TextEncoder, load_encoder
from adcascade.vectors.errors import BuildError

log = logging.getLogger(__name__)

AUTO, TORCH, OPENVINO = "auto", "torch", "openvino"
ENGINES = (AUTO, TORCH, OPENVINO)


def load_bulk_encoder(name: str = EMBEDDED, engine: str = AUTO) -> TextEncoder:
    """Loads an encoder for many texts: by OpenVINO where there is no GPU and it is installed.

    Args:
        name: see `encoder.load_encoder`.
        engine: one of `ENGINES`.

    Raises:
        BuildError: There is no such model or engine, or the engine cannot run the model.
    """
    if engine not in ENGINES:
        raise BuildError(f"engine must be {', '.join(ENGINES[:-1])} or {ENGINES[-1]}, not {engine!r}")
    return in_bulk(load_encoder(name, "cpu" if engine == OPENVINO else None), engine)


def in_bulk(encoder: TextEncoder, engine: str = AUTO) -> TextEncoder:
    """The same encoder by what embeds many texts fastest; raises as `load_bulk_encoder` does."""
    if not isinstance(encoder, SentenceTransformerEncoder) or engine == TORCH:
        return encoder
    if engine == AUTO and (encoder.model.device.type != "cpu" or importlib.util.find_spec("openvino") is None):
        return encoder
    from adcascade.vectors.openvino_encoder import OpenVinoEncoder

    try:
        return OpenVinoEncoder(encoder)
    except BuildError as error:
        if engine == OPENVINO:
            raise
        log.warning("embedding in torch: %s", error)
        return encoder
