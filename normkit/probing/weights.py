"""One record per weight of a model: its length, the gradient along it, and whether its length matters at all."""

import torch

from normkit.rates.groups import scale_invariant_groups

RUNS = 4  # of the batch, that the search for scale-invariant weights runs on


def matrices(model) -> dict:
    """{name: parameter} of all floating parameters with two axes or more: those whose effective rate is asked for."""
    return {name: p for name, p in model.named_parameters() if p.ndim >= 2 and p.is_floating_point()}


def weight_records(model, batch, modules, gradients, seed) -> list[dict]:
    """A plain dict per parameter of `matrices(model)`, in the model's order.

    gradients: {parameter: gradient of the loss}; where one is missing, "gradient" and "radial" are None.
    "radial": cosine between weight and gradient, 0 for a scale-invariant weight (with batch norm, in training only);
    None where one of them is 0. "with": the tensors that are invariant with this one only. "block": index of the first
    residual block that it is in.
    """
    found = {}
    for group in scale_invariant_groups(model, _few(batch), seed=seed):
        for name in group.names:
            found.setdefault(name, group)
    owners = {id(p): i for i in reversed(range(len(modules))) for p in modules[i].parameters()}
    return [
        _record(model, name, p, gradients.get(p), found.get(name), owners.get(id(p)))
        for name, p in matrices(model).items()
    ]


def _record(model, name, parameter, gradient, group, block):
    w = parameter.detach().flatten().double()
    g = None if gradient is None else (gradient.to_dense() if gradient.is_sparse else gradient).flatten().double()
    sizes = None if g is None else (torch.linalg.vector_norm(w) * torch.linalg.vector_norm(g)).item()
    return {
        "name": name,
        "shape": list(parameter.shape),
        "norm": torch.linalg.vector_norm(w).item(),
        "gradient": None if g is None else torch.linalg.vector_norm(g).item(),
        "radial": torch.dot(w, g).item() / sizes if sizes else None,
        "invariant": "" if group is None else group.kind(model),
        "with": [] if group is None else [other for other in group.names if other != name],
        "block": block,
    }


def _few(batch):
    """The first runs of a batch: of each tensor whose first axis is as long as the first tensor's."""
    if torch.is_tensor(batch):
        return batch[:RUNS]
    values = list(batch.values()) if hasattr(batch, "values") else list(batch)
    runs = next((len(v) for v in values if torch.is_tensor(v) and v.ndim), 0)
    short = [v[:RUNS] if torch.is_tensor(v) and v.ndim and len(v) == runs else v for v in values]
    return dict(zip(batch, short, strict=True)) if hasattr(batch, "values") else tuple(short)
