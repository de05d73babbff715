"""Low-rank adapters (LoRA, arXiv 2106.09685) in the layers that are trained; merged into the weights at the end.

A merged model is an ordinary Hugging Face directory, so serving knows nothing of adapters.
"""

from collections.abc import Iterable
from typing import Any

from torch import nn

from ranking.errors import ModelError

# What the projections of attention are called in BERT-like models.
_TARGETS = ("query", "key", "value")
# What a sequence classifier calls the layers above its encoder: they begin at random, and are trained as they are.
_HEADS = ("pooler", "classifier", "score")
_NAME = "clicks"


def add_adapters(encoder: nn.Module, rank: int, layers: Iterable[nn.Module]) -> None:
    """Puts adapters into the attention of `layers` and freezes everything else but a classifier's own head.

    Raises:
        ModelError: peft is not installed, or no projection has a known name.
    """
    try:
        from peft import LoraConfig, inject_adapter_in_model
    except ImportError as error:
        raise ModelError("--lora-rank needs the package peft: pip install 'adcascade[train]'") from error
    inside = {id(module) for layer in layers for module in layer.modules()}
    targets = [
        name
        for name, module in encoder.named_modules()
        if id(module) in inside and isinstance(module, nn.Linear) and name.rsplit(".", 1)[-1] in _TARGETS
    ]
    if not targets:
        raise ModelError(f"this base has no layers named {', '.join(_TARGETS)} to adapt; train without --lora-rank")
    config = LoraConfig(r=rank, lora_alpha=2 * rank, target_modules=targets)
    inject_adapter_in_model(config, encoder, adapter_name=_NAME)  # freezes all but the adapters
    for name, weight in encoder.named_parameters():
        if any(part in _HEADS for part in name.split(".")):
            weight.requires_grad_(True)


def merge_adapters(encoder: nn.Module) -> None:
    """Adds what the adapters learned to the weights, and takes them out; nothing happens without adapters."""
    from peft.tuners.lora import LoraLayer

    found = [(name, module) for name, module in encoder.named_modules() if isinstance(module, LoraLayer)]
    for name, module in found:
        layer: Any = module
        layer.merge()
        parent, _, child = name.rpartition(".")
        setattr(encoder.get_submodule(parent), child, layer.get_base_layer())
