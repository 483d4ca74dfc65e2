"""A real scale-invariant matrix beside the simulated one: runs of a LayerNorm net on digits, recorded in data/rates.json.

The simulated weight of `spherical_walk` has norm 1 and meets gradients of norm 1, so that its first step of SGD turns it
by about lr. Here the second hidden matrix of `training.Net` is brought to the same units: its learning rate is chosen
such that its first step turns it by the same angle, and its decay such that one step takes the same share of it.
"""

import json
import math
from functools import cache

import numpy as np

from normkit.files import data_path
from normkit.rates.laws import OPTIMIZERS, rule

LR = (0.01, 0.02, 0.04, 0.08, 0.16, 0.32)
WEIGHT_DECAY = (0.0, 0.01, 0.1)
WALK_DIM = 64  # Adam's first step has norm lr sqrt(dim), on the walk and here
STEPS = 1000
LOOKS = tuple(sorted({0, *np.geomspace(1, STEPS, 40).round().astype(int).tolist()}))
HEAD_LR = {"sgd": 0.1, "momentum": 0.01, "sgdp": 0.01, "adam": 1e-3, "adamp": 1e-3}  # of all but the hidden matrices
LABEL_NOISE = 0.2
MATRIX = "hidden.1.weight"
BATCHES = 8  # that measure the gradient at the start
SCHEMA = 1


def measure(optimizer, lr, weight_decay, project, *, steps=STEPS, seed=0):
    """Train for `steps` steps; (norm over first norm, radians of the step that follows), both at LOOKS up to steps.

    lr, weight_decay: in units of the walk. Batches of 64 digits, a fifth of the labels random, float64.
    """
    import torch

    from normkit.rates.training import Learner, Net, batches, turn

    model = Net(seed=seed, dtype=torch.float64)
    real_lr = lr * unit_lr(optimizer, seed)
    learner = Learner(
        model,
        optimizer,
        real_lr,
        lr * weight_decay / real_lr,
        project=project,
        gains="free",
        head_lr=HEAD_LR[optimizer],
    )
    w, norms, angles = learner.matrices[MATRIX], [], []
    start = torch.linalg.vector_norm(w.detach()).item()
    learner.set_lr(real_lr)
    for step, (x, y) in enumerate(batches(steps, 64, LABEL_NOISE, seed, torch.float64)):
        before = w.detach().clone() if step in LOOKS else None
        learner.step(torch.nn.functional.cross_entropy(model(x), y))
        if before is not None:
            norms.append(torch.linalg.vector_norm(before).item() / start)
            angles.append(turn(before, w.detach()))
    return np.array(norms), np.array(angles)


@cache
def unit_lr(optimizer, seed=0):
    """Learning rate of the real matrix that stands for the walk's lr = 1.

    SGD turns by lr |g| / |w|, with |g| the root mean square over the first batches; Adam by lr sqrt(entries) / |w|.
    """
    import torch

    from normkit.rates.training import Net, batches

    model = Net(seed=seed, dtype=torch.float64)
    w = model.matrices()[MATRIX]
    norm = torch.linalg.vector_norm(w.detach()).item()
    if rule(optimizer).adaptive:
        return norm * math.sqrt(WALK_DIM / w.numel())
    squares = [
        torch.autograd.grad(torch.nn.functional.cross_entropy(model(x), y), w)[0].square().sum().item()
        for x, y in batches(BATCHES - 1, 64, LABEL_NOISE, seed, torch.float64)
    ]
    return norm / math.sqrt(np.mean(squares))


def write_real(path=None, progress=None):
    """Measure all runs (2 to 4 minutes on one core) and write them, to data/rates.json unless a path is given. Returns the path.

    {"schema", "steps": LOOKS, "runs": [{"optimizer", "lr", "weight_decay", "project", "norm", "angle"}]}, numbers with
    5 digits. `progress(done, runs)` is called after each run. Needs torch.
    """
    grid = [(o, lr, wd, p) for o in OPTIMIZERS for lr in LR for wd in WEIGHT_DECAY for p in (False, True)]
    runs = []
    for done, key in enumerate(grid, 1):
        norm, angle = ([float(f"{v:.5g}") for v in values] for values in measure(*key))
        runs.append(dict(zip(("optimizer", "lr", "weight_decay", "project"), key, strict=True)))
        runs[-1] |= {"norm": norm, "angle": angle}
        if progress:
            progress(done, len(grid))
    path = path or data_path() / "rates.json"
    lines = ",\n".join(json.dumps(run, separators=(",", ":")) for run in runs)
    head = json.dumps({"schema": SCHEMA, "steps": LOOKS})[:-1]
    path.write_text(f'{head}, "runs": [\n{lines}\n]}}\n', encoding="utf-8")
    return path


@cache
def _recorded(path=None):
    state = json.loads((path or data_path("rates.json")).read_text(encoding="utf-8"))
    if state.get("schema") != SCHEMA:
        raise ValueError(f"rates.json has schema {state.get('schema')!r}, this normkit reads {SCHEMA}")
    runs = {_key(r["optimizer"], r["lr"], r["weight_decay"], r["project"]): r for r in state["runs"]}
    return np.array(state["steps"]), runs


def _key(optimizer, lr, weight_decay, project):
    return optimizer, f"{lr:.6g}", f"{weight_decay:.6g}", bool(project)


def load_real(optimizer, lr, weight_decay=0.0, project=False, path=None):
    """The recorded run in units of the walk: {"step", "norm", "angle", "elr"}, arrays of equal length, or None.

    lr, weight_decay: the walk's, on the grid of LR and WEIGHT_DECAY; None for others. norm: over the first; angle:
    radians of the step taken from there; elr: lr / norm^2, lr / norm for Adam and AdamP.
    Raises ValueError for an unknown optimizer.
    """
    power = 1 if rule(optimizer).adaptive else 2
    steps, runs = _recorded(path)
    run = runs.get(_key(optimizer, lr, weight_decay, project))
    if run is None:
        return None
    norm, angle = np.array(run["norm"]), np.array(run["angle"])
    return {"step": steps.copy(), "norm": norm, "angle": angle, "elr": lr / norm**power}
