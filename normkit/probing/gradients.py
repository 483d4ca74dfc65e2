"""The gradient of a loss at every stream x_l, by one backward pass to the streams that the hooks saw."""

from collections.abc import Mapping

import torch
from torch.utils._pytree import tree_leaves

from normkit.rng import stream


def gradients(output, recorder, loss, lr, seed, more=()):
    """((runs, layers+1) mean square of dloss/dx_l or None, (layers,) lr |grad| / |weights| of each block or None,
    {parameter: dloss/dparameter} of those in `more` that the loss depends on).

    Raises ValueError where the loss is not a finite scalar or does not depend on a stream: a block that is bypassed.
    """
    last = recorder.last[2]
    if not last.requires_grad:
        recorder.notes.append(
            "the model runs its blocks without gradients (no_grad, detach, or a reentrant checkpoint, for which "
            "use_reentrant=False helps): gradient is None"
        )
        return None, None, {}
    objective, rescale = _objective(output, recorder, loss, seed)
    weights = [p for p in dict.fromkeys(p for m in recorder.called for p in m.parameters()) if p.requires_grad]
    weights = list(dict.fromkeys([*(weights if lr is not None else ()), *(p for p in more if p.requires_grad)]))
    # By x_L = x_(L-1) + branch, or x_L = last itself, the gradient at x_L is the one at the last block's output.
    targets = [*recorder.streams[:-1], last]
    try:
        _used(output, last)
        found = torch.autograd.grad(objective, [*targets, *weights], allow_unused=True)
    except torch.OutOfMemoryError:
        raise
    except RuntimeError as error:  # such as a state that the model overwrites in place when it does not train
        recorder.notes.append(f"no backward pass through this model in eval mode, gradient is None: {error}"[:300])
        return None, None, {}
    at_streams, at_weights = found[: len(targets)], dict(zip(weights, found[len(targets) :], strict=True))
    for layer, g in enumerate(at_streams):
        if g is None:
            raise ValueError(
                f"the loss does not depend on the stream at layer {layer}: a later block is bypassed or detaches it, "
                "or the loss reads something else"
            )
    squares = torch.stack([recorder.mean_square(g).cpu() for g in at_streams], -1) * rescale[0] ** 2
    relative = None if lr is None else [_relative(m, at_weights, lr * rescale[1]) for m in recorder.called]
    asked = {p: at_weights[p] * rescale[1] for p in more if at_weights.get(p) is not None}
    return squares.numpy(), relative, asked


def _objective(output, recorder, loss, seed):
    """(scalar to differentiate, (factor of the stream gradients, factor of the weight gradients))."""
    x = recorder.rows(recorder.streams[-1])
    keep = recorder.weights(x) > 0
    if loss == "cotangent":
        draws = [stream(seed, "cotangent", run).standard_normal(x.shape[1:], dtype="float32") for run in range(len(x))]
        g = torch.stack([torch.from_numpy(d) for d in draws]).to(x)
        return torch.where(keep[..., None], x * g, 0).sum(), (1.0, 1.0)
    if callable(loss):
        scalar, scale, runs = loss(output), 1, 1
    else:
        scalar = output.get("loss") if isinstance(output, Mapping) else getattr(output, "loss", None)
        # Summed, not averaged, over tokens while it goes backward, so that half precision does not underflow.
        scale, runs = int(keep.sum()), len(x)
    if not torch.is_tensor(scalar) or scalar.numel() != 1 or not scalar.requires_grad:
        raise ValueError(f"the loss must be a scalar that depends on the model, got {type(scalar).__name__}")
    if not torch.isfinite(scalar).all():
        raise ValueError(f"the loss is {scalar.item()}: no token has a label, or the logits overflowed")
    return scalar.sum() * scale, (runs / scale, 1 / scale)


def _used(output, last):
    tensors = tree_leaves(dict(output) if isinstance(output, Mapping) else output)
    tensors = [t for t in tensors if torch.is_tensor(t) and t.requires_grad]
    if (
        tensors
        and torch.autograd.grad([t.sum() for t in tensors], last, retain_graph=True, allow_unused=True)[0] is None
    ):
        raise ValueError(
            "the model's output does not depend on what the last block returned: it is bypassed or ignored"
        )


def _relative(module, at_weights, lr):
    pairs = [(p, at_weights.get(p)) for p in module.parameters()]
    squares = [
        (0 if g is None else g.double().square().sum().item(), p.double().square().sum().item()) for p, g in pairs
    ]
    moved, size = (sum(column) for column in zip(*squares, strict=True)) if squares else (0, 0)
    return lr * (moved / size) ** 0.5 if size else None
