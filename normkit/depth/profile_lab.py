"""The profile lab: all that a probe measures in a real model, layer by layer, beside random nets and their laws."""

from dataclasses import dataclass

import numpy as np

from normkit.depth import laws
from normkit.depth.experiment import residual_profile
from normkit.depth.lab import BAND, REAL, STYLES
from normkit.depth.placement import PLACEMENTS
from normkit.figures import Axes, Curve
from normkit.lab import choice, slider
from normkit.profile import QUANTITIES
from normkit.real_lab import RealModelLab

TITLES = {
    "variance": "variance, mean of x²",
    "gradient": "gradient, mean of (∂ℓ/∂x)²",
    "update": "update, mean of (x' - x)²",
    "norm": "token norm",
    "angle": "angle between x and x', in π",
    "entropy": "attention entropy, nats",
}


@dataclass(frozen=True, eq=False, repr=False)
class ProfileLab(RealModelLab):
    """Inside a real model: what each block does to the stream, beside a random net of the same depth

    Two of the quantities that `normkit.probe` measures. A point of update, angle or entropy stands at the layer it
    belongs to, 1 to L. `real` is your own Profile; without one it is that of MiniLM, a trained Post-LN transformer.
    """

    left: str = choice("update", *QUANTITIES, label="Left", help="What the left panel shows.")
    right: str = choice("angle", *QUANTITIES, label="Right", help="What the right panel shows.")
    placement: str = choice("post", *PLACEMENTS, label="Placement", help="Of the random net; MiniLM is Post-LN.")
    sublayer: str = choice("linear", "linear", "mlp", "attention", label="Branch", help="What its branches compute.")
    width: int = slider(64, 16, 128, step="x2", label="Width", unit="channels", help="Of the random net.")
    scale: str = choice("linear", "log", "linear", label="Vertical axis", help="Of both panels.")

    def compute(self, quality):
        """(3, points) mean and band of every quantity of the random nets; "variance.theory" and so on, where known."""
        layers, exact = self.measured().layers, quality == "exact"
        toy = residual_profile(
            self.placement, layers=layers, width=self.width, sublayer=self.sublayer, seeds=16 if exact else 4, seed=0
        )
        values = {key: getattr(toy, key) for key in QUANTITIES}
        result = {
            key: np.stack([v.mean(0), *np.quantile(v, BAND, axis=0)]) for key, v in values.items() if v is not None
        }
        if self.sublayer == "attention":
            result["variance.theory"] = laws.attention_variance(self.placement, layers, toy.meta["tokens"])[0]
        else:
            options = {"matrices": 1 if self.sublayer == "linear" else 2}
            result["variance.theory"] = laws.variance(self.placement, layers, **options)
            result["gradient.theory"] = laws.gradient(self.placement, layers, **options)
            result["update.theory"], result["angle.theory"] = laws.steps(self.placement, layers, **options)
        return result

    def curves(self, result):
        real, curves = self.measured(), []
        for axes, key in enumerate((self.left, self.right)):
            measured = getattr(real, key)
            x = np.arange(real.layers + 1)[-(result[key].shape[1] if key in result else real.layers) :]
            if measured is None and key not in result:
                raise ValueError(
                    f"there is no {key} to show: {real.name} has none, nor has a random net of {self.sublayer} branches"
                )
            if measured is not None:
                lo, hi = np.quantile(measured, BAND, axis=0)
                curves.append(Curve(real.name, "real", x, measured.mean(0), REAL, lo, hi, axes=axes))
            if key in result:
                mean, lo, hi = result[key]
                curves.append(Curve(self.placement, "toy", x, mean, STYLES[self.placement], lo, hi, axes=axes))
            if f"{key}.theory" in result:
                curves.append(
                    Curve(self.placement, "theory", x, result[f"{key}.theory"], STYLES[self.placement], axes=axes)
                )
        return curves

    def axes(self):
        log = self.scale == "log"
        return [Axes(key.capitalize(), "block", TITLES[key], log_y=log) for key in (self.left, self.right)]
