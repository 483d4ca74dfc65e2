"""What normalizes activations: functions for arrays of any library, thin torch modules over them."""

import importlib

_LAZY = {
    "LayerNorm": "normkit.layers.modules",
    "RMSNorm": "normkit.layers.modules",
    "layer_norm": "normkit.layers.norms",
    "rms_norm": "normkit.layers.norms",
}
__all__ = [*_LAZY]


def __getattr__(name):
    if name not in _LAZY:
        raise AttributeError(f"module 'normkit.layers' has no attribute {name!r}; it has {', '.join(__all__)}")
    value = globals()[name] = getattr(importlib.import_module(_LAZY[name]), name)
    return value


def __dir__():
    return sorted(__all__)
