"""The attention lab: random attention, its entropy between a floor and a law, and where it freezes."""

from dataclasses import dataclass
from functools import cache

import numpy as np

from normkit.attention import laws
from normkit.attention.experiment import phase_grid, unit_logits
from normkit.attention.softmax import softmax_entropy
from normkit.figures import COLORS, Axes, Curve, Heat, Style, style
from normkit.lab import Lab, choice, slider

TOY, FLOOR, REAL, LEADING = style(0), style(3), style(2), Style(COLORS["grey"], "dash", "circle")
HERE = Style(COLORS["vermilion"], "solid", "x")
BAND = (0.05, 0.95)
MODELS = ("MiniLM", "MiniLM 16 tokens", "MiniLM 256 tokens", "majority", "majority collapsed")
SHOWN = 40  # tokens in the picture of a map
SCALES = np.arange(0.0, 14.01, 0.5)  # standard deviations of the logits, on the right
FINE = np.arange(0.0, 14.01, 0.05)  # where the floor is drawn: it falls fast
LENGTHS, PHASES = 2 ** np.arange(2, 11), np.arange(0.0, 6.01, 0.25)
RIGHT = {
    "entropy": "entropy / log T",
    "largest probability": "largest probability",
    "spectral norm": "spectral norm of the logits",
}


@cache
def _scores(tokens, rows, width):
    """Entropy / log T and largest probability over SCALES: (2, 3, scales), mean and band over rows."""
    z = unit_logits(rows, tokens, width, 0)
    found = []
    for scale in SCALES:
        p, h = softmax_entropy(z * np.float32(scale))
        found.append([[v.mean(), *np.quantile(v, BAND)] for v in (h / np.log(tokens), p.max(-1))])
    return np.array(found).transpose(1, 2, 0)


@cache
def _phases(rows, width):
    """Entropy / log T, (lengths, scales)."""
    return phase_grid(LENGTHS, PHASES, rows=rows, width=width).entropy


@cache
def _unit_norm(tokens, width):
    """Spectral norm of a matrix of logits with standard deviation 1."""
    return np.linalg.norm(unit_logits(tokens, tokens, width, 2).astype(float), 2)


@dataclass(frozen=True, eq=False, repr=False)
class AttentionLab(Lab):
    """Attention that freezes: entropy between its floor and the law of random logits

    Left: the logits or the attention of a random head, or entropy over sequence length and logit scale, with the scale at
    which the law freezes. Right: entropy over the scale of the logits. Lines: the exact mean for random logits, their
    leading order, and the floor that no logits of that size can go below. Open dots: the heads of a model that read text.
    """

    left: str = choice("attention", "attention", "logits", "phase diagram", label="Left", help="What is drawn there.")
    right: str = choice("entropy", *RIGHT, label="Right", help="What is drawn over the scale of the logits.")
    tokens: int = slider(64, 8, 1024, step="x2", label="Sequence length", unit="tokens", help="Doubles at each key.")
    scale: float = slider(2.0, 0.0, 14.0, step=0.25, label="Logit scale", help="Their standard deviation.")
    temperature: float = slider(1.0, 0.25, 4.0, step="x2", label="Temperature", help="Logits are divided by it.")
    logits: str = choice(
        "independent", "independent", "queries and keys", label="Logits", help="Gaussian, or q·k/√d with d = 16."
    )
    real: str = choice("MiniLM", "none", *MODELS, label="Real model", help="Its heads, as open dots.")

    @property
    def effective(self) -> float:
        """Standard deviation of the logits after the temperature."""
        return self.scale / self.temperature

    def compute(self, quality):
        """ "entropy" (as a share of log T) and "largest" (3, scales); "map" (n, n); "spectral" (lengths,); "phases" (lengths,
        scales), with "entropy.theory", "entropy.leading", "entropy.floor", "spectral.theory"."""
        exact, width = quality == "exact", None if self.logits == "independent" else 16
        rows, n = (256 if exact else 32), min(self.tokens, SHOWN)
        entropy, largest = _scores(self.tokens, rows, width)
        logits = unit_logits(n, n, width, 1) * np.float32(self.effective)
        lengths = LENGTHS[: 8 if exact else 6]
        norms = [_unit_norm(int(t), width) for t in lengths]
        log_tokens = np.log(self.tokens)
        return {
            "entropy": entropy,
            "largest": largest,
            "map": logits if self.left == "logits" else softmax_entropy(logits)[0],
            "phases": _phases(64 if exact else 8, width),
            "lengths": lengths,
            "spectral": self.effective * np.array(norms),
            "spectral.theory": 2 * self.effective * np.sqrt(lengths),
            "entropy.theory": laws.mean_entropy(SCALES, self.tokens) / log_tokens,
            "entropy.leading": laws.random_entropy(SCALES, self.tokens) / log_tokens,
            "entropy.floor": laws.entropy_floor(FINE * np.sqrt(self.tokens), self.tokens) / log_tokens,
        }

    def curves(self, result):
        curves = self._left(result)
        if self.right == "spectral norm":
            curves.append(Curve("random head", "toy", result["lengths"], result["spectral"], TOY, axes=1))
            if self.logits == "independent":
                curves.append(Curve("random head", "theory", result["lengths"], result["spectral.theory"], TOY, axes=1))
            return curves
        key = "entropy" if self.right == "entropy" else "largest"
        mean, lo, hi = result[key]
        curves.append(Curve("random head", "toy", SCALES, mean, TOY, lo, hi, axes=1))
        if key == "entropy":
            if self.logits == "independent":
                curves.append(Curve("random head", "theory", SCALES, result["entropy.theory"], TOY, axes=1))
            curves.append(Curve("leading order", "theory", SCALES, result["entropy.leading"], LEADING, axes=1))
            curves.append(Curve("floor", "theory", FINE, result["entropy.floor"], FLOOR, axes=1))
        curves += self._measured(key)
        if self.effective <= SCALES[-1]:
            x = np.array([self.effective])
            curves.append(Curve("here", "toy", x, np.interp(x, SCALES, mean), HERE, axes=1))
        return curves

    def _left(self, result):
        if self.left == "phase diagram":
            freezing = laws.freezing_scale(LENGTHS)
            curves = [
                Heat("random head", "toy", LENGTHS, PHASES, result["phases"].T, "entropy / log T"),
                Curve("freezing", "theory", LENGTHS, freezing, LEADING),
            ]
            if self.effective <= PHASES[-1]:
                here = np.array([self.tokens]), np.array([self.effective])
                curves.append(Curve("here", "toy", *here, HERE))
            return curves
        n = np.arange(1, len(result["map"]) + 1)
        title = "logit" if self.left == "logits" else "attention"
        if self.tokens > SHOWN:
            title += f", {SHOWN} tokens"
        return [Heat("random head", "toy", n, n, result["map"], title)]

    def _measured(self, key):
        if self.real == "none" or key != "entropy":
            return []
        from normkit.attention.real import load_real

        heads = load_real(self.real)
        std, share = heads["std"].ravel(), heads["share"].ravel()
        seen = std <= SCALES[-1]
        return [Curve(self.real, "real", std[seen], share[seen], REAL, axes=1)] if seen.any() else []

    def axes(self):
        left = (
            Axes("Phases", "tokens", "logit scale", log_x=True)
            if self.left == "phase diagram"
            else Axes(self.left.capitalize(), "key", "query")
        )
        if self.right == "spectral norm":
            return [left, Axes("Spectral norm", "tokens", RIGHT[self.right], log_x=True, log_y=True)]
        return [left, Axes(self.right.capitalize(), "standard deviation of the logits", RIGHT[self.right])]
