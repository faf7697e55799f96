"""Graft under PyTorch: fused LoRA kernels for PEFT's layers, without a change to a script.

    import graft_lora
    graft_lora.accelerate(model)      # a PEFT model
"""

from .errors import GraftError
from .library import info
from .lora import lora_delta, lora_linear
from .peft import accelerate, report, restore

__all__ = ["GraftError", "accelerate", "info", "lora_delta", "lora_linear", "report", "restore"]
