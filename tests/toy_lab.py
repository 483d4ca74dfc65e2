"""A small lab with a law it must keep, a slow stream and a crash, for the tests of labs."""

import threading
from dataclasses import dataclass

import numpy as np

from normkit.figures import Axes, Curve, style
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
