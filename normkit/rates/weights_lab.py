"""The weights lab: which matrices of a real model are scale-invariant, and how far a step really turns them."""

from dataclasses import dataclass

import numpy as np

from normkit.figures import Axes, Curve, style
from normkit.lab import choice, slider
from normkit.real_lab import RealModelLab, stored
from normkit.rng import stream

RANDOM = style(0)
KINDS = {"scale-invariant": style(2), "only together": style(4), "not scale-invariant": style(3)}
MODELS = ("peri", "pre", "MiniLM")
BAND = (0.05, 0.95)
RIGHT = {"norm": "‖W‖", "effective lr": "effective learning rate"}
FLOOR = 1e-9  # a cosine that is 0 to rounding is drawn here: a log axis has no 0


@dataclass(frozen=True, eq=False, repr=False)
class WeightsLab(RealModelLab):
    """Inside a real model: which matrices could have any size, and how far a step turns them

    Left: cosine between each matrix and its gradient, 0 where the size does not matter; the line and the dots with a band
    are two random directions. Right: the dots with a band are fresh matrices. Some matrices are scale-invariant only when
    they are scaled together, as are all that write to a Pre-LN stream; `lab.records()` tells each by its name. `real` is
    a Profile of your own model, from normkit.probe(model, batch, weights=True).
    """

    model: str = choice(
        "peri", *MODELS, label="Real model", help="Peri-LN and Pre-LN: small, trained. MiniLM: Post-LN."
    )
    right: str = choice("norm", *RIGHT, label="Right", help="What the right panel shows.")
    steps: str = choice("adam", "sgd", "adam", label="Steps", help="Adam's turn by lr / norm, SGD's by lr / norm².")
    lr: float = slider(1e-3, 1.5625e-5, 0.512, step="x2", label="Learning rate", help="Doubles at each key.")
    fresh: str = choice("1/√inputs", "1/√inputs", "0.02", label="Fresh weights", help="Their standard deviation.")

    def records(self) -> list[dict]:
        """The measured weights: of the learner's model, or of the chosen stored one. ValueError for a profile without."""
        profile = self.real or stored()[self.model if self.model == "MiniLM" else f"weights {self.model}"]
        found = [r for r in profile.weights or () if r["radial"] is not None]
        if not found:
            raise ValueError(
                f"{profile.name} holds no weights with a gradient: probe it with normkit.probe(model, batch, weights=True)"
            )
        return found

    def compute(self, quality):
        """Numbers of "entries" (matrices,); simulated "cosine" and "norm" (3, matrices), mean and band, and their laws."""
        shapes = [r["shape"] for r in self.records()]
        n = np.array([np.prod(shape) for shape in shapes], dtype=float)
        std = 0.02 if self.fresh == "0.02" else np.array([np.prod(shape[1:]) for shape in shapes]) ** -0.5
        draws = stream(0, "weights lab", len(n))
        samples = 2000 if quality == "exact" else 200
        z = draws.standard_normal((samples, len(n)))
        rest = 2 * draws.standard_gamma((n - 1) / 2, (samples, len(n)))  # chi-square, also for a matrix of one entry
        cosine, norm = np.abs(z) / np.sqrt(z**2 + rest), std * np.sqrt(z**2 + rest)
        return {
            "entries": n,
            "cosine": np.stack([cosine.mean(0), *np.quantile(cosine, BAND, axis=0)]),
            "norm": np.stack([norm.mean(0), *np.quantile(norm, BAND, axis=0)]),
            "cosine.theory": np.sqrt(2 / (np.pi * n)),
            "norm.theory": std * np.sqrt(n),
        }

    def curves(self, result):
        records = self.records()
        index, power = np.arange(1, len(records) + 1), 1 if self.steps == "adam" else 2
        rate = (lambda norm: self.lr / norm**power) if self.right == "effective lr" else lambda norm: norm
        mean, lo, hi = result["norm"]
        ends = (rate(hi), rate(lo)) if self.right == "effective lr" else (lo, hi)
        curves = [
            Curve("random", "theory", index, result["cosine.theory"], RANDOM),
            Curve("random", "toy", index, *result["cosine"][:1], RANDOM, *result["cosine"][1:]),
            Curve("random", "theory", index, rate(result["norm.theory"]), RANDOM, axes=1),
            Curve("random", "toy", index, rate(mean), RANDOM, *ends, axes=1),
        ]
        kinds = np.array([_kind(r) for r in records])
        cosine = np.array([max(abs(r["radial"]), FLOOR) for r in records])
        norm = np.array([r["norm"] for r in records])
        for kind, look in KINDS.items():
            mine = kinds == kind
            if mine.any():
                curves.append(Curve(kind, "real", index[mine], cosine[mine], look))
                curves.append(Curve(kind, "real", index[mine], rate(norm[mine]), look, axes=1))
        return curves

    def axes(self):
        return [
            Axes("Along itself", "matrix number", "|cos(W, gradient)|", log_y=True),
            Axes(self.right.capitalize(), "matrix number", RIGHT[self.right], log_y=True),
        ]


def _kind(record):
    if record["invariant"] == "joint":
        return "only together"
    return "scale-invariant" if record["invariant"] else "not scale-invariant"
