"""A net that must learn one random labeling after another: does it still learn the last as fast as the first?

256 inputs stay the same; at each task all get new labels, uniform in 0..9. Only the weights are handed on (and the
optimizer's memory), and nothing that was learned helps with what comes: a net that gets worse has lost
plasticity (Lyle et al. 2407.01800).
"""

import math

import torch
from torch.nn import functional as F

from normkit.checks import count, pick, positive
from normkit.rates.training import CLASSES, Learner, Net, data, generator

POINTS, BATCH = 256, 64
INPUTS = ("gaussian", "digits")
ARMS = {  # norm, projection, weight decay, the projecting optimizer
    "plain": ("none", False, 0.0, False),
    "layernorm": ("layernorm", False, 0.0, False),
    "nap": ("layernorm", True, 0.0, False),
    "projection_only": ("none", True, 0.0, False),
    "weight_decay": ("layernorm", False, 0.1, False),
    "adamp": ("layernorm", False, 0.0, True),
    "nap_copied": ("layernorm", True, 0.0, False),
}
OPTIMIZERS = {"adam": "adamp", "momentum": "sgdp"}


def stream_of_tasks(
    arm,
    *,
    tasks=15,
    steps=150,
    inputs="gaussian",
    lr=1e-2,
    optimizer="adam",
    weight_decay=None,
    schedule="constant",
    layers=2,
    width=64,
    seed=0,
    every=None,
):
    """Learn `tasks` random labelings, `steps` batches of 64 each; a generator of reports at the end of every task.

    Each is {task (0-based), tasks, step, steps, online, accuracy, norms, elr, dead, diverged, done}; with `every` there
    are reports every so many steps within a task too. online: accuracy on the batches so far in this task, each before
    its own step; accuracy: on all 256 inputs now; norms, elr: of each hidden matrix by name; dead: share of hidden
    units that are 0 for every input. The last has the `model` too. A loss
    that is not finite ends the stream with diverged=True, None for the dicts and nan for accuracy and dead.

    Arms: plain (ReLU net without norm), layernorm, nap (LayerNorm, and matrices held at their first norms),
    projection_only (held, without LayerNorm), weight_decay (LayerNorm, decay 0.1), adamp (LayerNorm with AdamP, or SGDP
    for momentum), nap_copied (nap whose effective learning rates are those of a layernorm run made first).
    inputs: "gaussian", independent N(0, 1) vectors of 64 numbers, or "digits", images that resemble each other and are
    harder to tell apart. weight_decay replaces the arm's own. schedule: "constant", or "linear": each task's lr falls to 0.
    Same seed, same first weights, inputs, labels and batches for every arm. Raises ValueError or TypeError as `train`.
    """
    pick("arm", arm, ARMS)
    pick("optimizer", optimizer, OPTIMIZERS)
    pick("inputs", inputs, INPUTS)
    pick("schedule", schedule, ("constant", "linear"))
    positive("lr", lr)
    norm, project, decay, projecting = ARMS[arm]
    decay = decay if weight_decay is None else positive("weight_decay", weight_decay, zero=True)
    for name, value in (("tasks", tasks), ("steps", steps), ("every", steps if every is None else every)):
        count(name, value)
    net = {"layers": layers, "width": width, "seed": seed}
    Net(norm, **net)  # arguments are checked at the call, not at the first step
    options = {"optimizer": OPTIMIZERS[optimizer] if projecting else optimizer, "lr": lr, "weight_decay": decay}
    run = {"tasks": tasks, "steps": steps, "inputs": inputs, "schedule": schedule, "seed": seed}
    run["every"] = steps if every is None else every
    return _stream(arm, lambda **more: Learner(Net(norm, **net), **options, **more), project, run)


def _stream(arm, learner, project, run):
    norms = None
    if arm == "nap_copied":
        norms = []
        *_, last = _learn(learner(), run, keep=norms)
        if last["diverged"]:
            raise ValueError(f"the run to copy diverged in task {last['task']}: lower lr, which is {learner().lr:g}")
    yield from _learn(learner(project=project, copied=norms), run)


def _learn(learner, run, keep=None):
    tasks, steps, seed = run["tasks"], run["steps"], run["seed"]
    x = _points(run["inputs"], seed)
    for task in range(tasks):
        labels = torch.randint(CLASSES, (POINTS,), generator=generator(seed, "labels", task))
        batches = torch.randint(POINTS, (steps, BATCH), generator=generator(seed, "task batches", task))
        right = torch.zeros((), dtype=torch.int64)
        for step, picks in enumerate(batches, 1):
            if keep is not None:
                keep.append(learner.hold.norms())
            learner.set_lr(learner.lr * (1 - (step - 1) / steps) if run["schedule"] == "linear" else learner.lr)
            logits, wanted = learner.model(x[picks]), labels[picks]
            right += (logits.detach().argmax(1) == wanted).sum()
            loss = F.cross_entropy(logits, wanted)
            learner.step(loss)
            last = step == steps
            if last or step % run["every"] == 0:
                diverged = not all(map(math.isfinite, (loss.item(), *learner.norms().values())))
                report = {"task": task, "tasks": tasks, "step": step, "steps": steps, "diverged": diverged}
                report |= {"online": right.item() / (step * BATCH), **_look(learner, x, labels, diverged)}
                done = diverged or (last and task == tasks - 1)
                yield report | ({"done": True, "model": learner.model} if done else {"done": False})
                if done:
                    return


def _points(inputs, seed):
    draws = generator(seed, "points")
    if inputs == "gaussian":
        return torch.randn(POINTS, 64, generator=draws)
    images = data()[0]
    return images[torch.randperm(len(images), generator=draws)[:POINTS]]


@torch.no_grad()
def _look(learner, x, labels, diverged):
    if diverged:
        return {"accuracy": math.nan, "norms": None, "elr": None, "dead": math.nan}
    dead = []
    for linear, norm in zip(learner.model.hidden, learner.model.norms, strict=True):
        x = F.relu(norm(linear(x)))
        dead.append((x <= 0).all(0).double().mean().item())
    right = learner.model.head(x).argmax(1) == labels
    return {
        "accuracy": right.double().mean().item(),
        "norms": learner.norms(),
        "elr": learner.elr(),
        "dead": sum(dead) / len(dead),
    }
