"""A small lab with a law it must keep, a slow stream and a crash, for the tests of labs."""

import dataclasses
import threading
from dataclasses import dataclass

import numpy as np

from normkit.figures import Axes, Curve, Heat, style
from normkit.lab import Lab, choice, slider


@dataclass(frozen=True, eq=False, repr=False)
class ToyLab(Lab):
    """A straight line and its measurement

    Only for tests.
    """

    layers: int = slider(8, 1, 64, label="Depth", unit="layers", help="How many.")
    slope: float = slider(1.0, 0.5, 2.0, step=0.5, label="Slope")
    law: str = choice("line", "line", "crash", label="Law")

    def compute(self, quality):
        if self.law == "crash":
            raise ZeroDivisionError("this law has no values; choose line")
        x = np.arange(self.layers + 1)
        return {"x": x, "y": 1 + self.slope * x, "quality": quality}

    def curves(self, r):
        x, y = r["x"], r["y"]
        return [
            Curve("line", "toy", x, y, style(0), 0.9 * y, 1.1 * y),
            Curve("line", "theory", x, y, style(0)),
            Curve("net", "real", x, 1 / y, style(1), axes=1),
        ]

    def axes(self):
        return [Axes("Forward", "layer", "variance"), Axes("Backward", "layer", "gradient", log_y=True)]


@dataclass(frozen=True, eq=False, repr=False)
class ToyStream(ToyLab):
    """A line that grows a point at a time"""

    def stream(self):
        for n in range(1, 5):
            if self.slope == 2.0 and n == 3:
                raise FloatingPointError("diverged at step 3; lower the slope")
            yield n / 4, {"x": np.arange(n + 1), "y": 1 + self.slope * np.arange(n + 1)}


@dataclass(frozen=True, eq=False, repr=False)
class ThreadLab(ToyLab):
    """A line that is called after the thread that computed it"""

    def compute(self, quality):
        return super().compute(quality) | {"thread": threading.current_thread().name}

    def curves(self, r):
        return [Curve(r["thread"], "theory", r["x"], r["y"], style(0), axes=i) for i in range(2)]


@dataclass(frozen=True, eq=False, repr=False)
class ToyMap(Lab):
    """A map with a law over it, and a path on a circle: one panel or two"""

    turn: float = slider(0.5, 0.1, 1.0, step=0.1, label="Turn", unit="rad", help="How far a step turns.")
    view: str = choice("map", "map", "path", "both", label="View")

    def compute(self, quality):
        return {"x": np.geomspace(0.01, 10, 25), "y": np.geomspace(1, 64, 13), "angle": self.turn * np.arange(9)}

    def curves(self, r):
        x, y, a = r["x"], r["y"], r["angle"]
        shrink = 1 - 0.05 * np.arange(9)
        round_ = np.linspace(0, 2 * np.pi, 181)
        law = 0.5 / x[(x > 0.01) & (x < 0.45)]
        at = np.array([self.turn])
        over = [
            Heat("net", "toy", x, y, 1e-3 + x * y[:, None] ** 2, "loss (nats)", log_z=True),
            Curve("stable edge", "theory", 0.5 / law, law, style(3)),
            Curve("sweep", "toy", x[::3], y[:9] + 3, style(1), join=True),
            Curve("here", "real", at, at * 20, style(0)),
        ]
        path = [
            *(
                Curve("sphere", "theory", k * np.cos(round_), np.sin(round_), style(4), join=True)
                for k in (1, 0.7, 0.3)
            ),
            Curve("weight", "toy", shrink * np.cos(a), shrink * np.sin(a), style(0), axes=0, join=True),
        ]
        moved = [dataclasses.replace(c, axes=1) for c in path]
        return {"map": over, "path": path, "both": [*over, *moved]}[self.view]

    def axes(self):
        plane = Axes("Phase diagram", "learning rate", "batch size (examples)", log_x=True, log_y=True)
        circle = Axes("Weights", "first weight", "second weight", equal=True)
        return {"map": [plane], "path": [circle], "both": [plane, circle]}[self.view]
