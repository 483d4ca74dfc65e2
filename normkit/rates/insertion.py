"""Norm layers where a model has none: one before every nonlinearity module (Lyle et al. 2024, 2407.01800, step 1)."""

from collections import OrderedDict

import torch
from torch import nn

from normkit.rates.generic import GenericCopy

KINDS = ("layernorm", "rmsnorm")
CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)
NO_NONLINEARITY = ("Softmax", "Softmax2d", "Softmin", "LogSoftmax", "MultiheadAttention")


class ChannelRMSNorm(nn.Module):
    """x / rms(x) over all axes but the first, with a gain per channel: (runs, channels, ...) as convolutions have it."""

    def __init__(self, channels, eps=1e-6, device=None, dtype=None):
        super().__init__()
        self.eps, self.weight = eps, nn.Parameter(torch.ones(channels, device=device, dtype=dtype))

    def forward(self, x):
        scale = x.square().mean(tuple(range(1, x.ndim)), keepdim=True).add(self.eps).rsqrt()
        return x * scale * self.weight.view(-1, *[1] * (x.ndim - 2))


def is_norm(module) -> bool:
    """Is it a normalization layer, torch's or another's, by its class' name (LlamaRMSNorm) and its vectors?"""
    named = "norm" in type(module).__name__.lower() and not list(module.children())
    return named and (isinstance(module, nn.LayerNorm) or all(p.ndim < 2 for p in module.parameters()))


def insert_norms(model, kind, inputs=None, seed=0) -> list[str]:
    """Puts LayerNorm or RMSNorm before every nonlinearity module without one; in place. Returns their names.

    Module `path.act` becomes a Sequential of `path.act.norm` and `path.act.act`. Images and signals (behind a
    convolution, or four axes and more) are normalized over all channels and places: GroupNorm(1, C), ChannelRMSNorm.
    The bias of a Linear or a convolution right before the new norm is taken out; LayerNorm's offset starts from it.
    Nonlinearities that are functions (torch.relu) are not seen. Raises ValueError where there is no nonlinearity
    module, or one is called several times: it could only have one norm for different features.
    """
    if kind not in KINDS:
        raise ValueError(f"normalize must be 'as_is', 'layernorm' or 'rmsnorm', got {kind!r}")
    trial = GenericCopy(model, inputs, seed)
    names = {module: name for name, module in trial.model.named_modules()}
    acts = [m for m in names if _is_nonlinearity(m)]
    made, seen = [], {}

    def returned(module, args, output):
        made.append((output, module))

    def called(act, args):
        seen.setdefault(act, []).append(_source(args[0], made))

    hooks = [module.register_forward_hook(returned) for module in names]
    hooks += [act.register_forward_pre_hook(called) for act in acts]
    try:
        trial.forward()
    finally:
        for hook in hooks:
            hook.remove()
    if not seen:
        raise ValueError(
            f"{type(model).__name__} calls no nonlinearity module, only functions perhaps: use modules (nn.ReLU), or "
            "put the norm layers in yourself and pass normalize='as_is'"
        )
    inserted = []
    for act, calls in seen.items():
        if len(calls) > 1:
            raise ValueError(
                f"{names[act]!r} is called {len(calls)} times: give every call its own nonlinearity module"
            )
        shape, source = calls[0]
        if source is None or not is_norm(source):
            inserted.append(_insert(model, names[act], kind, shape, names.get(source)))
    return inserted


def _is_nonlinearity(module):
    home = type(module).__module__
    ours = home in ("torch.nn.modules.activation", "transformers.activations")
    return ours and type(module).__name__ not in NO_NONLINEARITY


def _source(x, made):
    """(shape, the module whose output x is, or None): the innermost of those that returned this very tensor."""
    return tuple(x.shape), next((module for output, module in made if output is x), None)


def _insert(model, name, kind, shape, source):
    parent, _, child = name.rpartition(".")
    if not name:
        raise ValueError("the model is a nonlinearity itself: there is nothing to normalize")
    source = model.get_submodule(source) if source is not None else None
    like = next(iter((source or model).parameters()), None)
    where = {} if like is None else {"device": like.device, "dtype": like.dtype}
    bias = getattr(source, "bias", None) if isinstance(source, (nn.Linear, *CONVOLUTIONS)) else None
    if isinstance(source, CONVOLUTIONS) or len(shape) > 3:
        norm = nn.GroupNorm(1, shape[1], **where) if kind == "layernorm" else ChannelRMSNorm(shape[1], **where)
    else:
        norm = nn.LayerNorm(shape[-1], **where) if kind == "layernorm" else nn.RMSNorm(shape[-1], eps=1e-6, **where)
    if bias is not None:
        if getattr(norm, "bias", None) is not None:
            norm.bias.data.copy_(bias.data)
        source.bias = None
    modules = model.get_submodule(parent)._modules
    modules[child] = nn.Sequential(OrderedDict(norm=norm, act=modules[child])).train(modules[child].training)
    return f"{name}.norm"
