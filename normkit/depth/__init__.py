"""What happens to a signal on its way through a deep residual stack, and what the placement of the norm changes.

`residual_profile` measures real nets, `exact_profile` samples their law, `laws` has the closed forms.
"""

import importlib

_LAZY = {
    "PLACEMENTS": "normkit.depth.placement",
    "exact_profile": "normkit.depth.exact",
    "residual_profile": "normkit.depth.experiment",
    **dict.fromkeys(
        (
            "activations",
            "claims",
            "equivalence",
            "expansion",
            "lab",
            "laws",
            "nuclear",
            "placement",
            "profile_lab",
            "removal",
            "sharing",
            "sinks",
            "training",
            "training_lab",
            "transformer",
        )
    ),
}
__all__ = sorted(_LAZY)


def __getattr__(name):
    if name not in _LAZY:
        raise AttributeError(f"module 'normkit.depth' has no attribute {name!r}; it has {', '.join(__all__)}")
    home = _LAZY[name]
    value = (
        importlib.import_module(f"normkit.depth.{name}")
        if home is None
        else getattr(importlib.import_module(home), name)
    )
    globals()[name] = value
    return value


def __dir__():
    return __all__
