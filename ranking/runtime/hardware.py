"""Where models run and in which precision. Knows no models."""

import torch

from ranking.errors import ModelError


def choose_device(name: str) -> torch.device:
    """The device of that name; "auto" takes the GPU where there is one. Raises ModelError if it is not there."""
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    if name.startswith("cuda") and not torch.cuda.is_available():
        raise ModelError(f"device {name!r} was asked for, but torch sees no GPU")
    return torch.device(name)


def choose_precision(name: str, device: torch.device) -> bool:
    """Whether to compute in bfloat16; "auto" does where the hardware has it, since elsewhere it is far slower."""
    if name not in ("auto", "float32", "bfloat16"):
        raise ModelError(f"precision must be auto, float32 or bfloat16, not {name!r}")
    return has_bfloat16(device) if name == "auto" else name == "bfloat16"


def has_bfloat16(device: torch.device) -> bool:
    """Whether the device multiplies matrices in bfloat16 in hardware."""
    if device.type == "cuda":
        return bool(torch.cuda.is_bf16_supported(including_emulation=False))
    capabilities = torch.cpu.get_capabilities() if hasattr(torch.cpu, "get_capabilities") else {}
    return bool(capabilities.get("avx512_bf16") or capabilities.get("amx_bf16"))
