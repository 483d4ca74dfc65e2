"""The ghosts lab: the loss after a step of r radii of convergence, and the Taylor series behind it."""

from dataclasses import dataclass
from functools import cache, lru_cache

import numpy as np

from normkit.figures import COLORS, Axes, Curve, Style, style
from normkit.lab import Lab, choice, slider

MODELS = {"linear": style(0), "mlp": style(3)}
EDGE, BEFORE = (Style(COLORS["grey"], dash, "circle") for dash in ("dot", "dash"))
RATIOS = np.geomspace(0.0625, 8, 15)
LINE = np.geomspace(0.0625, 8, 120)
ORDERS = 24


@cache
def _net(kind, seed, steps, temperature):
    from normkit.attention.ghost_steps import toy

    return toy(kind, seed=seed, steps=steps, temperature=temperature)


@lru_cache(32)
def _after(net, along, directions, seed):
    from normkit.attention.ghost_steps import step_losses

    return step_losses(*_net(*net), RATIOS, along=along, directions=directions, seed=seed)


@lru_cache(32)
def _taylor(net, along, directions, seed):
    """Coefficients of the mean loss in powers of r, (directions, ORDERS + 1), from those of every sample."""
    from normkit.attention.ghost_steps import direction_logits, unit_directions
    from normkit.attention.ghosts import log_partition_series

    model, x, y = _net(*net)
    found = []
    for unit in unit_directions(model, x, y, along=along, directions=directions, seed=seed):
        z, a = (t.double().numpy() for t in direction_logits(model, x, unit))
        spread = np.ptp(a, axis=-1)
        tau = np.pi / spread.max()  # of r = 1
        c = (log_partition_series(z, a, terms=ORDERS + 1) * (tau * spread[:, None]) ** np.arange(ORDERS + 1)).mean(0)
        for n, correct in enumerate((z, tau * a)):
            c[n] -= np.take_along_axis(correct, y.numpy()[:, None], 1).mean()
        found.append(c)
    return np.array(found)


@dataclass(frozen=True, eq=False, repr=False)
class GhostsLab(Lab):
    """Ghosts of softmax: how far a step may go before the loss is no power series any more

    Open dots: loss (left, over the loss before) and accuracy of a net that reads digits after a step of r radii, mean and
    range over directions. For the linear model the line is its Taylor series, which is sure to converge up to r = 1
    only: add orders, and see where it breaks.
    """

    model: str = choice("linear", *MODELS, label="Model", help="Softmax regression, or a ReLU net of width 64.")
    along: str = choice("random", "random", "gradient", label="Direction", help="gradient: downhill.")
    order: int = slider(4, 1, ORDERS, label="Orders", help="Of the Taylor series, for the linear model.")
    trained: int = slider(30, 0, 120, step=10, label="Trained for", unit="steps", help="Adam steps before this one.")
    temperature: float = slider(1.0, 0.25, 4.0, step="x2", label="Temperature", help="Logits are divided by it.")
    seed: int = slider(0, 0, 9, label="Seed", help="Other weights.")

    def compute(self, quality):
        """ "loss" (directions, ratios), over the loss before; "accuracy" (directions, ratios), "start" accuracy; for the
        linear model "series" (points,), at LINE, the mean over the same directions."""
        net, directions = (self.model, self.seed, self.trained, self.temperature), 12 if quality == "exact" else 3
        found = _after(net, self.along, directions, self.seed)
        result = {
            "loss": found.loss_ratio.double().numpy(),
            "accuracy": found.accuracy.double().numpy(),
            "start": np.array(found.start_accuracy),
            "radius": found.radius.numpy(),
        }
        if self.model == "linear":
            c = _taylor(net, self.along, directions, self.seed)[:, : self.order + 1].mean(0)
            result["series"] = np.polynomial.polynomial.polyval(LINE, c) / found.start_loss
        return result

    def curves(self, result):
        look, loss, accuracy = MODELS[self.model], result["loss"], result["accuracy"]
        top, low = max(2.0, loss.max()), min(0.5, loss.min())
        curves = [
            Curve("r = 1", "theory", np.ones(2), np.array([low, top]), EDGE),
            Curve("r = 1", "theory", np.ones(2), np.array([0.0, 1.0]), EDGE, axes=1),
            Curve(self.model, "real", RATIOS, loss.mean(0), look, loss.min(0), loss.max(0)),
            Curve(self.model, "real", RATIOS, accuracy.mean(0), look, accuracy.min(0), accuracy.max(0), axes=1),
            Curve(
                "before",
                "theory",
                RATIOS[[0, -1]],
                np.full(2, result["start"]),
                BEFORE,
                axes=1,
            ),
        ]
        if "series" in result:
            seen = np.logical_and.accumulate((result["series"] > low / 2) & (result["series"] < 2 * top))
            curves.append(Curve(f"Taylor, order {self.order}", "theory", LINE[seen], result["series"][seen], look))
        return curves

    def axes(self):
        return [
            Axes("After the step", "r, steps in radii", "loss / loss before", log_x=True, log_y=True),
            Axes("Right answers", "r, steps in radii", "accuracy", log_x=True),
        ]
