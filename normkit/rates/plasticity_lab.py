"""The plasticity lab: one random labeling after another, and who still learns the last as fast as the first."""

from dataclasses import dataclass

import numpy as np

from normkit.figures import COLORS, Axes, Curve, Style, style
from normkit.lab import Lab, choice, slider
from normkit.rates import laws

ARMS = ("plain", "layernorm", "nap", "projection_only", "weight_decay", "adamp", "nap_copied")
STYLES = {arm: style(i) for i, arm in enumerate(ARMS)}
CHANCE = Style(COLORS["grey"], "dot", "circle")
MATRIX, DIM = "hidden.1.weight", 64 * 64
START = 128**0.5  # its expected norm at the start: 64 x 64 entries of variance 2/64
RIGHT = {"effective lr": "effective learning rate", "dead units": "share of dead units"}


@dataclass(frozen=True, eq=False, repr=False)
class PlasticityLab(Lab):
    """Plasticity lost and kept: a net learns one random labeling after another

    Press Train. Left: share of right answers while each task is learned, before each step. Middle: norm of the second
    hidden matrix at the end of each task. Lines are chance, and the law of Adam's random walk or of a held norm.
    """

    arm: str = choice("layernorm", *ARMS, label="Net", help="plain has no norm; nap normalizes and projects.")
    against: str = choice("nap", "nothing", *ARMS, label="Compare with", help="A second net, trained after the first.")
    optimizer: str = choice("adam", "adam", "momentum", label="Optimizer", help="What turns gradients into steps.")
    lr: float = slider(0.01, 0.00125, 0.16, step="x2", label="Learning rate", help="Doubles at each key.")
    tasks: int = slider(10, 2, 30, label="Tasks", unit="labelings", help="Random labelings, one after another.")
    steps: int = slider(150, 50, 300, step=50, label="Steps a task", unit="steps", help="Batches of 64 digits.")
    right: str = choice("effective lr", *RIGHT, label="Right", help="What the right panel shows.")
    seed: int = slider(0, 0, 9, label="Seed", help="Other weights, labels and batches.")

    def arms(self) -> list[str]:
        return [self.arm] + [self.against] * (self.against not in ("nothing", self.arm))

    def stream(self, tasks=None):
        """(fraction done, result): by arm a, "a.online", "a.norm", "a.elr" and "a.dead", one a task, from task 1 on."""
        from normkit.rates.plasticity import stream_of_tasks

        result, arms, tasks = {}, self.arms(), tasks or self.tasks
        for i, arm in enumerate(arms):
            rows = []
            for report in stream_of_tasks(
                arm, tasks=tasks, steps=self.steps, lr=self.lr, optimizer=self.optimizer, seed=self.seed
            ):
                if report["diverged"]:
                    raise FloatingPointError(
                        f"the loss of {arm} stopped being a number in task {report['task'] + 1}: lower the learning rate"
                    )
                rows.append((report["online"], report["norms"][MATRIX], report["elr"][MATRIX], report["dead"]))
                columns = dict(zip(("online", "norm", "elr", "dead"), np.array(rows).T, strict=True))
                result = result | {f"{arm}.{key}": values for key, values in columns.items()}
                yield (i + len(rows) / tasks) / len(arms), result

    def compute(self, quality):
        """The result after the first task of the first net."""
        steps = self.stream(tasks=1)  # or nap_copied would first run all tasks of the net that it copies
        _, result = next(steps)
        steps.close()
        return result

    def law(self, arm):
        """Norm after each task, (tasks,), of a matrix that starts at its expected norm; None where there is no law."""
        if arm in ("nap", "projection_only", "nap_copied"):
            return np.full(self.tasks, START)
        if arm == "plain" or self.optimizer != "adam":  # not scale-invariant; or the law needs the gradients' size
            return None
        name, decay = ("adamp" if arm == "adamp" else "adam"), (0.1 if arm == "weight_decay" else 0.0)
        norm = laws.norm_growth(name, self.tasks * self.steps, lr=self.lr, weight_decay=decay, radius=START, dim=DIM)
        return norm[self.steps :: self.steps]

    def curves(self, result):
        curves = [Curve("chance", "theory", np.array([1, self.tasks]), np.full(2, 0.1), CHANCE)]
        task = np.arange(1, self.tasks + 1)
        for arm in self.arms():
            look, law = STYLES[arm], self.law(arm)
            for axes, key in enumerate(("online", "norm", "elr" if self.right == "effective lr" else "dead")):
                if f"{arm}.{key}" in result:
                    values = result[f"{arm}.{key}"]
                    curves.append(Curve(arm, "real", task[: len(values)], values, look, axes=axes))
            if law is not None:
                curves.append(Curve(arm, "theory", task, law, look, axes=1))
                if self.right == "effective lr" and arm != "nap_copied":  # that one's learning rate changes
                    curves.append(Curve(arm, "theory", task, self.lr / law**self.power, look, axes=2))
        return curves

    @property
    def power(self):
        return 1 if self.optimizer == "adam" else 2

    def axes(self):
        return [
            Axes("Plasticity", "task", "online accuracy"),
            Axes("Radius", "task", "‖W‖ of the second matrix", log_y=True),
            Axes(self.right.capitalize(), "task", RIGHT[self.right], log_y=self.right == "effective lr"),
        ]
