"""The training lab: a small transformer learns while you watch its loss, its stream and its gradient."""

from dataclasses import dataclass

import numpy as np

from normkit.depth import laws
from normkit.depth.lab import STYLES
from normkit.depth.placement import PLACEMENTS, rule
from normkit.figures import COLORS, Axes, Curve, Style
from normkit.lab import Lab, choice, slider

START, CHANCE = Style(COLORS["grey"], "solid", "circle"), Style(COLORS["grey"], "dot", "circle")
GUESS = {"copy": 16, "running_sum": 5}  # equally likely answers of each task


@dataclass(frozen=True, eq=False, repr=False)
class DepthTrainingLab(Lab):
    """What training does to variance growth: a small transformer learns while you watch

    Press Train. Loss by step; mean square of the stream and of the loss's gradient, by block, at the start and now. The
    theory line is the placement's law with the gain of the first block at initialization.
    """

    placement: str = choice("pre", *PLACEMENTS, label="Placement", help="Where the normalization sits in each block.")
    task: str = choice("copy", *GUESS, label="Task", help="copy: repeat what was seen; running_sum: add modulo 5.")
    layers: int = slider(8, 2, 16, step=2, label="Depth", unit="blocks", help="Blocks of attention and MLP.")
    lr: float = slider(4e-3, 5e-4, 3.2e-2, step="x2", label="Learning rate", help="Adam's step; doubles at each key.")
    steps: int = slider(200, 50, 400, step=50, label="Training", unit="steps", help="Batches of 32 sequences.")
    warmup: int = slider(0, 0, 100, step=25, label="Warmup", unit="steps", help="Steps over which the step size grows.")
    seed: int = slider(0, 0, 9, label="Seed", help="Other weights and other batches.")

    def stream(self):
        """(fraction done, result): steps and losses; `variance` and `gradient` (2, layers+1), at the start and now."""
        from normkit.depth.training import train

        options = {"layers": self.layers, "lr": self.lr, "steps": self.steps, "warmup": self.warmup, "task": self.task}
        steps, losses, start, now = [], [], None, None
        for report in train(self.placement, seed=self.seed, every=5, **options):
            if report["diverged"]:
                raise FloatingPointError(
                    f"the loss of {self.placement} stopped being a number at step {report['step']}: lower the learning "
                    "rate, or add warmup"
                )
            now = (report["variance"], report["gradient"])
            start = start or now
            steps.append(report["step"])
            losses.append(report["loss"])
            yield (
                report["step"] / self.steps,
                {
                    "step": np.array(steps),
                    "loss": np.array(losses),
                    "variance": np.stack([start[0], now[0]]),
                    "gradient": np.stack([start[1], now[1]]),
                },
            )

    def law(self, variance):
        """The placement's variance law (layers+1,), given the measured start, whose first block sets the gain."""
        start, rise = variance[0], variance[1] - variance[0]
        if self.placement == "peri":  # each of a block's two branches returns variance 1, whatever its gain
            return start + laws.variance("peri", 2 * self.layers)[::2] - 1
        if self.placement in ("post", "deepnorm"):
            return laws.variance(self.placement, self.layers)
        here = rule(self.placement, 0, self.layers)
        if here.norm_input:  # branches add, whatever the size of the stream
            return start + laws.variance(self.placement, self.layers, gain=max(0.0, rise)) - 1
        gain = max(0.0, rise / start) / here.branch_scale**2 if here.branch_scale else 0.0
        return start * laws.variance(self.placement, self.layers, gain=gain)

    def curves(self, result):
        block, look = np.arange(self.layers + 1), STYLES[self.placement]
        curves = [
            Curve("chance", "theory", result["step"][[0, -1]], np.full(2, np.log(GUESS[self.task])), CHANCE),
            Curve(f"{self.placement}, now", "real", result["step"], result["loss"], look),
            Curve(f"{self.placement} at the start", "theory", block, self.law(result["variance"][0]), look, axes=1),
        ]
        for axes, key in ((1, "variance"), (2, "gradient")):
            curves.append(Curve("at the start", "toy", block, result[key][0], START, axes=axes))
            curves.append(Curve(f"{self.placement}, now", "real", block, result[key][1], look, axes=axes))
        return curves

    def axes(self):
        return [
            Axes("Loss", "step", "cross-entropy, nats"),
            Axes("Forward", "block", "variance, mean of x²", log_y=True),
            Axes("Backward", "block", "gradient, mean of (∂ℓ/∂x)²", log_y=True),
        ]
