"""The training lab of the rates theme: a net learns digits while its weights grow, decay or are held."""

from dataclasses import dataclass

import numpy as np

from normkit.figures import COLORS, Axes, Curve, Style
from normkit.lab import Lab, choice, slider
from normkit.rates import laws
from normkit.rates.lab import STYLES

CHANCE = Style(COLORS["grey"], "dot", "circle")
MATRIX, DIM = "hidden.1.weight", 64 * 64  # the matrix that is shown: the second of two, its entries


@dataclass(frozen=True, eq=False, repr=False)
class RatesTrainingLab(Lab):
    """Growing weights anneal themselves: a net with norms learns digits while you watch its effective learning rate

    Press Train. Loss by step; norm and effective learning rate of the second hidden matrix. Lines are the laws of random
    gradients as large as those measured; what is still to come is foretold with the last. Without a norm nothing is
    scale-invariant, and there is no law.
    """

    optimizer: str = choice("momentum", *laws.OPTIMIZERS, label="Optimizer", help="What turns gradients into steps.")
    norm: str = choice("layernorm", "layernorm", "batchnorm", "none", label="Norm", help="Before every ReLU.")
    project: str = choice("off", "off", "on", label="Projection", help="Hold the matrices' norms (NaP).")
    schedule: str = choice("constant", "constant", "linear", label="Schedule", help="Of the learning rate.")
    lr: float = slider(0.4, 0.00078125, 1.6, step="x2", label="Learning rate", help="Doubles at each key.")
    weight_decay: float = choice(0.0, 0.0, 0.001, 0.01, 0.1, label="Weight decay", help="Of the matrices.")
    noise: float = slider(0.2, 0.0, 0.8, step=0.1, label="Label noise", help="Share of the labels that are random.")
    steps: int = slider(300, 100, 1000, step=100, label="Training", unit="steps", help="Batches of 64 digits.")
    seed: int = slider(0, 0, 9, label="Seed", help="Other weights and other batches.")

    def stream(self):
        """(fraction done, result): "step", "loss", "accuracy", and "norm", "elr", "gradient" of the second matrix."""
        from normkit.rates.training import train

        rows = []
        for report in train(
            norm=self.norm, optimizer=self.optimizer, lr=self.lr, weight_decay=self.weight_decay,
            project=self.project == "on", schedule=self.schedule, steps=self.steps, seed=self.seed,
            label_noise=self.noise, every=self.steps // 50,
        ):  # fmt: skip
            if report["diverged"]:
                other = "use a norm" if self.norm == "none" else "the weight decay"
                raise FloatingPointError(
                    f"the loss stopped being a number at step {report['step']}: lower the learning rate, or {other}"
                )
            shown = [report[key][MATRIX] for key in ("norms", "elr", "gradient")]
            rows.append((report["step"], report["loss"], report["accuracy"], *shown))
            columns = ("step", "loss", "accuracy", "norm", "elr", "gradient")
            yield report["step"] / self.steps, dict(zip(columns, np.array(rows).T, strict=True))

    def law(self, result):
        """Norm and effective learning rate (steps+1,) for random gradients as large as those measured; None without."""
        if self.norm == "none" or self.schedule != "constant":
            return None
        grad = np.interp(np.arange(self.steps), result["step"], np.maximum(result["gradient"], 1e-12))
        norm, _ = laws.trajectory(
            self.optimizer, self.steps, lr=self.lr, weight_decay=self.weight_decay,
            project=self.project == "on", radius=result["norm"][0], grad_norm=grad, dim=DIM,
        )  # fmt: skip
        return norm, self.lr / norm ** (1 if laws.rule(self.optimizer).adaptive else 2)

    def curves(self, result):
        look, law = STYLES[self.optimizer], self.law(result)
        curves = [Curve("chance", "theory", np.array([0, self.steps]), np.full(2, np.log(10)), CHANCE)]
        for axes, key in enumerate(("loss", "norm", "elr")):
            curves.append(Curve(self.optimizer, "real", result["step"], result[key], look, axes=axes))
            if axes and law:
                step = np.unique(np.linspace(0, len(law[0]) - 1, 101).astype(int))
                curves.append(Curve(self.optimizer, "theory", step, law[axes - 1][step], look, axes=axes))
        return curves

    def axes(self):
        return [
            Axes("Loss", "step", "cross-entropy, nats"),
            Axes("Radius", "step", "‖W‖ of the second matrix"),
            Axes("Steps", "step", "effective learning rate", log_y=True),
        ]
