"""Profile: what a stack of residual blocks does to a signal, layer by layer; toys and real models return the same."""

from dataclasses import dataclass, field

import numpy as np

QUANTITIES = {
    "variance": "mean square of the residual stream",
    "gradient": "mean square of the loss gradient at the stream",
    "update": "mean square of what the block added",
    "norm": "mean token norm of the stream",
    "angle": "angle between successive streams, in units of pi",
    "entropy": "attention entropy in nats, mean over heads and queries",
}


@dataclass(frozen=True)
class Profile:
    """Depth profile of a model: every array is (runs, layers+1), but for update, angle and entropy, (runs, layers).

    `runs` are seeds for a toy and texts or batches for a real model. `variance[:, 0]` is the stream that enters the
    first block, `variance[:, -1]` the one that leaves the last. Quantities that were not measured are None.
    `weights` has a plain dict for each weight of a model (what is in it: normkit.probe) where they were asked for.
    Raises ValueError when an array has another shape or holds a number that is not finite.
    """

    name: str
    variance: np.ndarray
    gradient: np.ndarray | None = None
    update: np.ndarray | None = None
    norm: np.ndarray | None = None
    angle: np.ndarray | None = None
    entropy: np.ndarray | None = None
    meta: dict = field(default_factory=dict)
    weights: list | None = None

    def __post_init__(self):
        runs, points = np.shape(self.variance)
        for key in QUANTITIES:
            value = getattr(self, key)
            if value is None:
                continue
            value = np.asarray(value, dtype=np.float64)
            want = (runs, points if key in ("variance", "gradient", "norm") else points - 1)
            if value.shape != want:
                raise ValueError(f"profile {self.name!r}: {key} must have shape {want}, got {value.shape}")
            if not np.isfinite(value).all():
                run, layer = np.argwhere(~np.isfinite(value))[0]
                raise ValueError(
                    f"profile {self.name!r}: {key} is {value[run, layer]} at run {run}, layer {layer}; "
                    "the signal overflowed or the input was not finite: use fewer layers or check the input"
                )
            object.__setattr__(self, key, value)

    @property
    def layers(self) -> int:
        return self.variance.shape[1] - 1

    @property
    def runs(self) -> int:
        return self.variance.shape[0]

    def to_dict(self) -> dict:
        arrays = {k: getattr(self, k).tolist() for k in QUANTITIES if getattr(self, k) is not None}
        weights = {} if self.weights is None else {"weights": self.weights}
        return {"name": self.name, **arrays, "meta": self.meta, **weights}

    @classmethod
    def from_dict(cls, state: dict) -> "Profile":
        return cls(**{k: np.asarray(v) if k in QUANTITIES else v for k, v in state.items()})

    def __repr__(self):
        have = ", ".join(k for k in QUANTITIES if getattr(self, k) is not None)
        have += "" if self.weights is None else f", weights of {len(self.weights)} tensors"
        first, last = self.variance[:, 0].mean(), self.variance[:, -1].mean()
        return f"Profile({self.name!r}, {self.layers} layers, {self.runs} runs: {have}; variance {first:.3g} -> {last:.3g})"
