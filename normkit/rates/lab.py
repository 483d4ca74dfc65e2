"""The rates lab: a scale-invariant weight on its sphere, its radius, its steps; and the equilibria it can reach."""

from dataclasses import dataclass

import numpy as np

from normkit.figures import COLORS, Axes, Curve, Heat, Style, style
from normkit.lab import Lab, choice, slider
from normkit.rates import laws
from normkit.rates.experiment import equilibrium_grid, spherical_walk

OPTIMIZERS = tuple(laws.OPTIMIZERS)
HEAVY = ("momentum", "sgdp")  # those that the slider of momentum moves
STYLES = {name: style(i) for i, name in enumerate(OPTIMIZERS)}
GREY, HERE = Style(COLORS["grey"], "solid", "circle"), Style(COLORS["vermilion"], "solid", "x")
DIM, BAND = 64, (0.05, 0.95)
RIGHT = {
    "effective lr": ("elr", "effective learning rate"),
    "angle": ("angle", "angle of a step, radians"),
}


@dataclass(frozen=True, eq=False, repr=False)
class RatesLab(Lab):
    """A weight whose size does not matter: it spirals outward, and its steps shrink

    Left: the path of a weight with two or three entries, from its starting sphere outward. Middle and right: 64 entries,
    random gradients of norm 1 at the start; lines are the laws, open dots a matrix of a real net that reads digits, its
    first step turned as far, and its gradients smaller and smaller as it learns. Adam's steps have norm lr times the root
    of the number of entries.
    """

    optimizer: str = choice("sgd", *OPTIMIZERS, label="Optimizer", help="What turns gradients into steps.")
    against: str = choice("nothing", "nothing", *OPTIMIZERS, label="Compare with", help="A second optimizer.")
    lr: float = slider(0.16, 0.01, 0.32, step="x2", label="Learning rate", help="Doubles at each key.")
    weight_decay: float = choice(0.0, 0.0, 0.01, 0.1, label="Weight decay", help="Shrinks the weight by lr times this.")
    project: str = choice("off", "off", "on", label="Projection", help="Normalize-and-Project: back to the sphere.")
    momentum: float = slider(0.9, 0.0, 0.98, step=0.02, label="Momentum", help="Of momentum and SGDP; real nets: 0.9.")
    steps: int = slider(1000, 125, 4000, step="x2", label="Steps", unit="steps", help="Length of the run.")
    view: str = choice("sphere", "sphere", "circle", label="Picture", help="A weight with two or three entries.")
    turn: int = slider(30, 0, 360, step=5, label="Turn", unit="degrees", help="Walk around the sphere.")
    right: str = choice("effective lr", *RIGHT, label="Right", help="What the right panel shows.")
    scale: str = choice("log", "log", "linear", label="Axes", help="A power of t is straight on log axes.")

    def optimizers(self) -> list[str]:
        return [self.optimizer] + [self.against] * (self.against not in ("nothing", self.optimizer))

    def _rule(self):
        return {
            "lr": self.lr, "weight_decay": self.weight_decay, "momentum": self.momentum, "steps": self.steps,
            "project": self.project == "on",
        }  # fmt: skip

    def compute(self, quality):
        """By optimizer o: "o.norm", "o.elr", "o.angle" (3, steps+1 or steps), mean and band over seeds, each with its
        "o.norm.theory" and so on, (steps+1,) or (steps,); and "o.path" (points, 2), as it is seen."""
        result = {"step": np.arange(self.steps + 1)}
        seeds, dim = 16 if quality == "exact" else 4, 2 if self.view == "circle" else 3
        for o in self.optimizers():
            walk = spherical_walk(o, dim=DIM, seeds=seeds, **self._rule())
            for key in ("norm", "elr", "angle"):
                values = getattr(walk, key)
                result[f"{o}.{key}"] = np.stack([values.mean(0), *np.quantile(values, BAND, axis=0)])
            norm, angle = laws.trajectory(o, dim=DIM, **self._rule())
            elr = self.lr / norm ** (1 if laws.rule(o).adaptive else 2)
            result |= {f"{o}.norm.theory": norm, f"{o}.elr.theory": elr, f"{o}.angle.theory": angle}
            path = spherical_walk(o, dim=dim, seeds=1, keep_path=True, **self._rule()).path
            path = path[:: max(1, self.steps // 250)]
            result[f"{o}.path"] = path if dim == 2 else path @ _view(self.turn)
        return result | {key: result[f"{self.optimizer}.{key}"][0] for key in ("norm", "elr", "angle")}

    def curves(self, result):
        curves = [Curve("start", "theory", *outline, GREY) for outline in _outlines(self.view, self.turn)]
        for o in self.optimizers():
            curves.append(Curve(o, "toy", *result[f"{o}.path"].T, STYLES[o], join=True))
            for axes, key in ((1, "norm"), (2, RIGHT[self.right][0])):
                mean, lo, hi = result[f"{o}.{key}"]
                step = result["step"][-len(mean) :]
                dots = _places(len(step), self.scale, 25)
                curves.append(Curve(o, "toy", step[dots], mean[dots], STYLES[o], lo[dots], hi[dots], axes=axes))
                line = _places(len(step), self.scale, 200)
                curves.append(Curve(o, "theory", step[line], result[f"{o}.{key}.theory"][line], STYLES[o], axes=axes))
                curves += self._measured(o, key, axes)
        return curves

    def _measured(self, optimizer, key, axes):
        from normkit.rates.real import load_real

        real = load_real(optimizer, self.lr, self.weight_decay, self.project == "on")
        if real is None or (optimizer in HEAVY and self.momentum != 0.9):
            return []
        seen = real["step"] <= self.steps
        return [Curve(optimizer, "real", real["step"][seen], real[key][seen], STYLES[optimizer], axes=axes)]

    def axes(self):
        log = {"log_x": self.scale == "log", "log_y": self.scale == "log"}
        return [
            Axes("On its sphere", *(("w₁", "w₂") if self.view == "circle" else ("across", "up")), equal=True),
            Axes("Radius", "step", "‖w‖ / ‖w‖ at the start", **log),
            Axes("Steps", "step", RIGHT[self.right][1], **log),
        ]


def _places(count, scale, most):
    """Which of `count` steps are drawn: at most `most`, spread evenly over the axis, linear or logarithmic."""
    places = np.geomspace(1, count, most) if scale == "log" else np.linspace(1, count, most)
    return np.unique(places.round().astype(int)) - 1


def _view(turn):
    """(3, 2): orthographic projection from `turn` degrees around the vertical axis, 25 degrees above the equator."""
    a, e = np.radians(turn), np.radians(25)
    right = [-np.sin(a), np.cos(a), 0.0]
    up = [-np.sin(e) * np.cos(a), -np.sin(e) * np.sin(a), np.cos(e)]
    return np.array([right, up]).T


def _outlines(picture, turn):
    """(x, y) of the unit circle; for the sphere also its equator and two meridians, as they are seen."""
    t = np.linspace(0, 2 * np.pi, 121)
    circle = np.cos(t), np.sin(t)
    if picture == "circle":
        return [circle]
    zero = np.zeros_like(t)
    rings = [(*circle, zero), (circle[0], zero, circle[1]), (zero, *circle)]
    return [circle, *((np.array(ring).T @ _view(turn)).T for ring in rings)]


@dataclass(frozen=True, eq=False, repr=False)
class EquilibriumLab(Lab):
    """Where growth and weight decay balance: the equilibrium of a scale-invariant weight

    Left: simulated equilibria over learning rate and weight decay. Right: the cut through the cross, with the law, and a
    matrix of a real net that reads digits, after 1000 steps at weight decay 0.1.
    """

    optimizer: str = choice("sgd", *OPTIMIZERS, label="Optimizer", help="What turns gradients into steps.")
    show: str = choice("angle", "angle", "norm", label="Show", help="Angle of a step, or norm, at equilibrium.")
    cut: str = choice("learning rate", "learning rate", "weight decay", label="Cut along", help="What the cut varies.")
    lr: float = slider(0.08, 0.01, 0.64, step="x2", label="Learning rate", help="Doubles at each key.")
    weight_decay: float = slider(0.1, 0.0125, 0.8, step="x2", label="Weight decay", help="Doubles at each key.")
    momentum: float = slider(0.9, 0.0, 0.9, step=0.1, label="Momentum", help="Of momentum and SGDP; real nets: 0.9.")
    coupling: str = choice(
        "coupled", "coupled", "decoupled", label="Decay is", help="Added to the gradient, or apart (momentum only)."
    )

    def compute(self, quality):
        """Axes "lr" and "weight_decay" (7,); "norm", "angle" (seeds, 7, 7), simulated; "norm.theory", "angle.theory" (7, 7)."""
        seeds, dim, steps = (4, 32, 2000) if quality == "exact" else (2, 8, 250)
        lr, decay = (np.array(self.declared()[name].values) for name in ("lr", "weight_decay"))
        rule = {"optimizer": self.optimizer, "momentum": self.momentum, "decoupled": self.coupling == "decoupled"}
        rule["betas"] = (0.9, 0.99)  # with 0.999 Adam's mean square would not forget its start in time
        found = [equilibrium_grid(lr, decay, dim=dim, steps=steps, seed=seed, **rule) for seed in range(seeds)]
        norm, angle = (np.stack([getattr(grid, key) for grid in found]) for key in ("norm", "angle"))
        law = {"norm.theory": found[0].law_norm, "angle.theory": found[0].law_angle}
        return {"lr": lr, "weight_decay": decay, "norm": norm, "angle": angle, **law}

    def curves(self, result):
        i, j = (int(np.abs(np.log(result[k] / getattr(self, k))).argmin()) for k in ("lr", "weight_decay"))
        along_lr = self.cut == "learning rate"
        x, at = (result["lr"], np.s_[..., j]) if along_lr else (result["weight_decay"], np.s_[..., i, :])
        look, values = STYLES[self.optimizer], result[self.show]
        toy, law = values[at], result[f"{self.show}.theory"][at]
        mean = values.mean(0).T
        return [
            Heat(self.optimizer, "toy", result["lr"], result["weight_decay"], mean, self.title, log_z=True),
            Curve("here", "toy", result["lr"][[i]], result["weight_decay"][[j]], HERE),
            Curve(self.optimizer, "toy", x, toy.mean(0), look, toy.min(0), toy.max(0), axes=1),
            Curve(self.optimizer, "theory", x, law, look, axes=1),
            *self._measured(along_lr, result["lr"][i], look),
        ]

    def _measured(self, along_lr, lr, look):
        from normkit.rates.real import load_real

        other = self.optimizer in HEAVY and self.momentum != 0.9
        other |= self.optimizer == "momentum" and self.coupling == "decoupled"
        if other or (along_lr and self.weight_decay != 0.1):
            return []
        points = []
        for rate in self.declared()["lr"].values if along_lr else [lr]:
            run = load_real(self.optimizer, rate, 0.1, False)
            if run is not None:
                late = run["step"] >= 500  # several looks: one step's angle is as noisy as its gradient
                points.append((rate if along_lr else 0.1, np.sqrt(np.mean(run[self.show][late] ** 2))))
        return [Curve(self.optimizer, "real", *np.array(points).T, look, axes=1)] if points else []

    @property
    def title(self):
        return "angle of a step, radians" if self.show == "angle" else "‖w‖"

    def axes(self):
        log = {"log_x": True, "log_y": True}
        return [
            Axes("Equilibrium", "learning rate", "weight decay", **log),
            Axes(f"Cut along {self.cut}", self.cut, self.title, **log),
        ]
