"""Graft under PyTorch: fused LoRA kernels for PEFT's layers, without a change to a script.

import graft_lora
graft_lora.accelerate(model)      # a PEFT model
"""

from .errors import GraftError
from .layer_norm import layer_norm
from .library import info
from .linear import linear
from .lora import lora_delta, lora_linear
from .peft import accelerate, report, restore
from .rms_norm import add_rms_norm, rms_norm
from .softmax import softmax

__all__ = [
    "GraftError",
    "accelerate",
    "add_rms_norm",
    "info",
    "layer_norm",
    "linear",
    "lora_delta",
    "lora_linear",
    "report",
    "restore",
    "rms_norm",
    "softmax",
]
