"""What normalization does to the step: scale-invariant weights, effective learning rates, Normalize-and-Project.

`spherical_walk` simulates a scale-invariant weight, `laws` has the closed forms, `NormalizeAndProject` holds the norms
of any torch model.
"""

import importlib

_LAZY = {
    "AdamP": "normkit.rates.optimizers",
    "MuonPP": "normkit.rates.muon",
    "NormalizeAndProject": "normkit.rates.nap",
    "SGDP": "normkit.rates.optimizers",
    "effective_lr": "normkit.rates.elr",
    "equilibrium_grid": "normkit.rates.experiment",
    "scale_invariant_groups": "normkit.rates.groups",
    "spherical_walk": "normkit.rates.experiment",
    **dict.fromkeys(
        (
            "claims",
            "elr",
            "experiment",
            "groups",
            "hypernetwork",
            "lab",
            "laws",
            "longer",
            "muon",
            "nap",
            "optimizers",
            "perceptron",
            "plasticity",
            "plasticity_lab",
            "projection",
            "schedules",
            "spectral",
            "training",
            "training_lab",
            "weights",
            "weights_lab",
            "width",
        )
    ),
}
__all__ = sorted(_LAZY)


def __getattr__(name):
    if name not in _LAZY:
        raise AttributeError(f"module 'normkit.rates' has no attribute {name!r}; it has {', '.join(__all__)}")
    home = _LAZY[name]
    value = (
        importlib.import_module(f"normkit.rates.{name}")
        if home is None
        else getattr(importlib.import_module(home), name)
    )
    globals()[name] = value
    return value


def __dir__():
    return __all__
