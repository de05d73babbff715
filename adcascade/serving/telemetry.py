"""Keeps libraries from telling anybody that they are used. Knows nothing of what they are used for.

OpenVINO and NNCF post to an analytics host as they are imported, convert and quantise, and write an id into the home
directory; Hugging Face's libraries may. Every command switches this off first, and so does each module before it
imports one of them, so that it also holds where the module is used as a library.
"""

import os
import sys
from typing import Any

# For this process and its children. DO_NOT_TRACK is what several libraries agreed on (https://donottrack.sh).
_SWITCHES = {"DO_NOT_TRACK": "1", "HF_HUB_DISABLE_TELEMETRY": "1", "NNCF_CI": "1"}
# What OpenVINO and NNCF send with. Neither needs it: where it cannot be imported, both put a stub in its place.
_SENDER = "openvino_telemetry"


def switch_off_telemetry() -> None:
    """Silences OpenVINO, NNCF and Hugging Face, imported or not, in this process and in those that it starts."""
    os.environ.update(_SWITCHES)
    constants: Any = sys.modules.get("huggingface_hub.constants")
    if constants is not None:  # it has read the environment already
        constants.HF_HUB_DISABLE_TELEMETRY = True
    sender: Any = sys.modules.get(_SENDER)
    if sender is None:
        sys.modules[_SENDER] = None  # type: ignore[assignment]  # `import` of it raises ModuleNotFoundError
    else:  # somebody imported OpenVINO before us; what follows stays here
        sender.main.TelemetrySender.send = _send_nothing


def _send_nothing(*_: object) -> None:
    """In place of `TelemetrySender.send`, which posts in a thread of its own."""
