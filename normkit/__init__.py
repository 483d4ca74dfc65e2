"""normkit: normalization in deep learning and reinforcement learning, to see, to test and to use.

`import normkit` is light: torch, plotly and ipywidgets come with the first use of what needs them.
"""

import importlib
import sys

# jsonschema tries this module and does without it; importing it costs 2 s of building a grammar.
sys.modules.setdefault("rfc3987_syntax", None)

__version__ = "0.1.0"

_LAZY = {
    "DepthLab": "normkit.depth.lab",
    "DepthTrainingLab": "normkit.depth.training_lab",
    "EquilibriumLab": "normkit.rates.lab",
    "Lab": "normkit.lab",
    "PlasticityLab": "normkit.rates.plasticity_lab",
    "Profile": "normkit.profile",
    "ProfileLab": "normkit.depth.profile_lab",
    "RatesLab": "normkit.rates.lab",
    "RatesTrainingLab": "normkit.rates.training_lab",
    "WeightsLab": "normkit.rates.weights_lab",
    "ask": "normkit.lesson",
    "depth": "normkit.depth",
    "labs": "normkit.lab",
    "layers": "normkit.layers",
    "lesson": "normkit.lesson",
    "probe": "normkit.probing",
    "rates": "normkit.rates",
}
__all__ = ["__version__", *_LAZY]


def __getattr__(name):
    if name not in _LAZY:
        raise AttributeError(f"module 'normkit' has no attribute {name!r}; it has {', '.join(__all__)}")
    module = importlib.import_module(_LAZY[name])
    value = module if _LAZY[name] == f"normkit.{name}" else getattr(module, name)
    globals()[name] = value
    return value


def __dir__():
    return sorted(__all__)
