"""The depth lab: the residual stream and its gradient, layer by layer, for every placement of the norm."""

from dataclasses import dataclass

import numpy as np

from normkit.depth import laws
from normkit.depth.exact import exact_profile
from normkit.depth.experiment import residual_profile
from normkit.depth.placement import PLACEMENTS
from normkit.figures import Axes, Curve, style
from normkit.lab import choice, slider
from normkit.profile import Profile
from normkit.real_lab import RealModelLab, stored

STYLES = {placement: style(i) for i, placement in enumerate(PLACEMENTS)}
REAL = style(len(PLACEMENTS))
BAND = (0.05, 0.95)  # the band holds the middle 90 % of the seeds
GROWTH = "variance, mean of x²"
GRADIENT = "gradient, mean of (∂ℓ/∂x)²"


def profile_curves(profile: Profile, look=REAL) -> list[Curve]:
    """A measured profile as dots: mean over runs, middle 90 % as band; variance in panel 0, gradient in panel 1."""
    curves = []
    for axes, values in enumerate((profile.variance, profile.gradient)):
        if values is not None:
            layers = np.arange(profile.layers + 1) * profile.meta.get("sublayers", 1)
            lo, hi = np.quantile(values, BAND, axis=0)
            curves.append(Curve(profile.name, "real", layers, values.mean(0), look, lo, hi, axes=axes))
    return curves


@dataclass(frozen=True, eq=False, repr=False)
class DepthLab(RealModelLab):
    """Variance growth with depth: where the norm sits decides how the residual stream grows

    Left: mean square of the stream x_l. Right: mean square of the loss gradient at x_l, for a unit gradient at the top.
    `real` is a Profile of your own model (from normkit.probe), drawn beside or in place of the stored ones.
    """

    placement: str = choice("pre", *PLACEMENTS, label="Placement", help="Where the normalization sits in each block.")
    against: str = choice(
        "nothing", "nothing", *PLACEMENTS, label="Compare with", help="A second placement in the same figure."
    )
    layers: int = slider(32, 1, 128, label="Depth", unit="layers", help="Residual branches in the stack.")
    sublayer: str = choice(
        "linear", "linear", "mlp", "attention", label="Branch", help="What each residual branch computes."
    )
    width: int = slider(128, 16, 128, step="x2", label="Width", unit="channels", help="Size of each token's vector.")
    scale: str = choice(
        "log", "log", "linear", label="Vertical axis", help="A power law is straight on neither: try both."
    )
    model: str = choice(
        "trained", "none", "trained", "MiniLM", label="Real model", help="Measured on a trained network."
    )

    def placements(self) -> list[str]:
        return [self.placement] + [self.against] * (self.against not in ("nothing", self.placement))

    def compute(self, quality):
        """`variance` and `gradient`, (layers+1,): simulated means of the chosen placement; and for each placement p
        "p.variance.theory" (layers+1,) and "p.variance" (3, layers+1), simulated mean and band; so for the gradient."""
        exact = quality == "exact"
        result = {"layer": np.arange(self.layers + 1)}
        for p in self.placements():
            if self.sublayer == "attention":  # tokens interact: no law for one of them, so real nets
                tokens, seeds, width = (16, 6, self.width) if exact else (16, 3, 16)
                toy = residual_profile(
                    p, layers=self.layers, width=width, tokens=tokens, sublayer="attention", seeds=seeds, seed=0
                )
                variance, _ = laws.attention_variance(p, self.layers, tokens)
            else:
                seeds = 1000 if exact else 100
                toy = exact_profile(
                    p, layers=self.layers, width=self.width, sublayer=self.sublayer, seeds=seeds, seed=0
                )
                variance = laws.variance(p, self.layers, matrices=1 if self.sublayer == "linear" else 2)
                result[f"{p}.gradient.theory"] = laws.gradient(
                    p, self.layers, matrices=1 if self.sublayer == "linear" else 2
                )
            result[f"{p}.variance.theory"] = variance
            result[f"{p}.variance"], result[f"{p}.gradient"] = _summary(toy.variance), _summary(toy.gradient)
        return result | {key: result[f"{self.placement}.{key}"][0] for key in ("variance", "gradient")}

    def curves(self, result):
        curves = []
        x = result["layer"]
        dots = np.unique(np.linspace(0, len(x) - 1, min(len(x), 33)).round().astype(int))
        for p in self.placements():
            for axes, key in enumerate((f"{p}.variance", f"{p}.gradient")):
                mean, lo, hi = result[key][:, dots]
                curves.append(Curve(p, "toy", x[dots], mean, STYLES[p], lo, hi, axes=axes))
                if key + ".theory" in result:
                    curves.append(Curve(p, "theory", x, result[key + ".theory"], STYLES[p], axes=axes))
        return curves + self._measured()

    def _measured(self):
        if self.real is not None or self.model == "MiniLM":
            return profile_curves(self.measured())
        if self.model == "trained":
            return [c for p in self.placements() for c in profile_curves(stored()[f"trained {p}"], STYLES[p])]
        return []

    def axes(self):
        log = self.scale == "log"
        return [Axes("Forward", "layer", GROWTH, log_y=log), Axes("Backward", "layer", GRADIENT, log_y=log)]


def _summary(values):
    return np.stack([values.mean(0), *np.quantile(values, BAND, axis=0)])
