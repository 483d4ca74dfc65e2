"""The training lab of the attention theme: entropy collapses, or is kept, while a small transformer learns."""

from dataclasses import dataclass

import numpy as np

from normkit.attention import laws
from normkit.figures import COLORS, Axes, Curve, Style, style
from normkit.lab import Lab, choice, slider

CURES = (
    "plain", "warmup", "sigma_reparam", "sigma_reparam_same_start", "qk_norm", "qk_unit", "affine", "sink", "gate",
)  # fmt: skip
GUESS = {"majority": 8, "copy": 16}  # equally likely answers of each task
GREY, LINE = Style(COLORS["grey"], "dot", "circle"), Style(COLORS["grey"], "dash", "circle")
LOSS = style(3)
TOKENS, LAYERS, HEADS = 32, 3, 2


@dataclass(frozen=True, eq=False, repr=False)
class AttentionTrainingLab(Lab):
    """Heads that freeze: attention entropy of every head while a small transformer learns

    Press Train. Loss; entropy of each head with the floor that its logits allow, a line of its color; and each head's
    spectral norm of the logits, with the norm below which no head can lose half of its entropy.
    """

    cure: str = choice("plain", *CURES, label="Cure", help="What is done against the collapse; plain: nothing.")
    placement: str = choice(
        "post", "post", "pre", "none", label="Norms", help="After the sum, before the branch, none."
    )
    task: str = choice("majority", *GUESS, label="Task", help="majority wants broad attention, copy wants narrow.")
    lr: float = slider(0.032, 0.001, 0.128, step="x2", label="Learning rate", help="Adam's, without warmup.")
    steps: int = slider(150, 50, 300, step=50, label="Training", unit="steps", help="Batches of 32 sequences.")
    seed: int = slider(0, 0, 9, label="Seed", help="Other weights and other batches.")

    def stream(self):
        """(fraction done, result): "step", "loss" (n,), and "entropy", "floor", "spectral" (n, layers, heads)."""
        from normkit.attention.training import train

        rows = []
        for report in train(
            cure=self.cure, placement=self.placement, task=self.task, lr=self.lr, steps=self.steps, seed=self.seed
        ):
            if report["diverged"]:
                raise FloatingPointError(
                    f"{self.cure} diverged at step {report['step']}: lower the learning rate, or choose a cure"
                )
            rows.append(report)
            keys = ("step", "loss", "entropy", "floor", "spectral")
            yield report["step"] / self.steps, {key: np.array([row[key] for row in rows]) for key in keys}

    def curves(self, result):
        step = result["step"]
        ends = np.array([0.0, self.steps])
        curves = [
            Curve("chance", "theory", ends, np.full(2, np.log(GUESS[self.task])), GREY),
            Curve(self.cure, "real", step, result["loss"], LOSS),
            Curve("uniform attention", "theory", ends, np.full(2, self.uniform()), GREY, axes=1),
            Curve("half of the entropy", "theory", ends, np.full(2, half_norm(self.keys())), LINE, axes=2),
        ]
        for layer in range(LAYERS):
            for head in range(HEADS):
                name, look = f"layer {layer + 1}, head {head + 1}", style(HEADS * layer + head)
                curves.append(Curve(name, "theory", step, result["floor"][:, layer, head], look, axes=1))
                curves.append(Curve(name, "real", step, result["entropy"][:, layer, head], look, axes=1))
                curves.append(Curve(name, "real", step, result["spectral"][:, layer, head], look, axes=2))
        return curves

    def keys(self) -> np.ndarray:
        """How many tokens each row of attention may look at; copy has a causal mask."""
        return np.arange(1, TOKENS + 1) if self.task == "copy" else np.full(TOKENS, TOKENS)

    def uniform(self) -> float:
        """Entropy of uniform attention, the mean over rows."""
        return float(np.log(self.keys()).mean())

    def axes(self):
        return [
            Axes("Loss", "step", "cross-entropy, nats", log_y=True),
            Axes("Entropy", "step", "attention entropy, nats"),
            Axes("Logits", "step", "spectral norm of the logits", log_y=True),
        ]


def half_norm(keys) -> float:
    """The norm of each row of logits at which the entropy floor of a head is half of that of uniform attention.

    keys (rows,): how many logits each row has. By bisection: the mean floor over the rows falls with the norm.
    """
    half, low, high = np.log(keys).mean() / 2, 0.0, 2 * np.log(max(keys)) + 10
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (middle, high) if laws.entropy_floor(middle, keys).mean() > half else (low, middle)
    return (low + high) / 2
