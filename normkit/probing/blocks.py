"""Which modules of a model are its residual blocks: found by watching one forward pass, or named by the user."""

import re
from collections.abc import Iterable

import torch
from torch import nn

CONTAINERS = (nn.ModuleList, nn.Sequential)


def tensor_in(args, kwargs):
    """Where a block's stream came in: (position or keyword, tensor), or (None, None). `hidden_states` goes first."""
    named = sorted(kwargs.items(), key=lambda item: item[0] != "hidden_states")
    for place, value in [*enumerate(args), *named]:
        if torch.is_tensor(value) and value.is_floating_point() and value.ndim >= 2:
            return place, value
    return None, None


def tensor_out(output, shape):
    """The stream a block returned: the first floating tensor of that shape in a tensor, tuple or mapping, or None."""
    values = [output] if torch.is_tensor(output) else output.values() if hasattr(output, "values") else output
    for value in values if isinstance(values, tuple | list) or hasattr(values, "__iter__") else ():
        if torch.is_tensor(value) and value.is_floating_point() and value.shape == shape:
            return value
    return None


def named_blocks(model, blocks):
    """(label, modules) for what the user named: a dotted path to a list of blocks, or a list of modules or paths.

    Raises ValueError for a path that is not in the model and for a list that holds something else than modules.
    """
    paths = [name for name, module in model.named_modules() if isinstance(module, CONTAINERS) and len(module)]
    if isinstance(blocks, str):
        try:
            found = model.get_submodule(blocks)
        except AttributeError:
            raise ValueError(
                f"blocks={blocks!r} is not in {type(model).__name__}; lists of modules: {', '.join(paths) or 'none'}"
            ) from None
        return blocks, list(found) if isinstance(found, CONTAINERS) else [found]
    if isinstance(blocks, nn.Module):
        blocks = list(blocks) if isinstance(blocks, CONTAINERS) else [blocks]
    blocks = list(blocks) if isinstance(blocks, Iterable) else [blocks]
    modules = [m for b in blocks for m in (named_blocks(model, b)[1] if isinstance(b, str) else [b])]
    if not modules or not all(isinstance(m, nn.Module) for m in modules):
        raise ValueError(
            f"blocks must be a dotted path or a non-empty list of modules or paths, got {blocks!r}; paths here: {paths}"
        )
    names = {id(m): name for name, m in model.named_modules()}
    return ", ".join(names.get(id(m), type(m).__name__) for m in modules), modules


def find_blocks(model, forward):
    """(label, modules) of the longest chain of blocks that one pass `forward()` runs through.

    A chain: children of one ModuleList or Sequential, called one after another, each returning the shape that it took.
    Lists inside a block are not looked at, bare torch.nn layers (Linear, ReLU, LayerNorm) are not blocks, and an
    encoder-decoder is probed at its encoder. Raises ValueError, saying what was seen, when no list qualifies.
    """
    calls, hooks, lists = {}, [], {}
    for name, container in model.named_modules():
        if isinstance(container, CONTAINERS) and len(container):
            lists[name] = container
            for child in dict.fromkeys(container):
                watcher = _watcher(calls.setdefault(name, []))
                hooks.append(child.register_forward_hook(watcher, with_kwargs=True))
    try:
        with torch.no_grad():
            forward()
    finally:
        for hook in hooks:
            hook.remove()
    chains = {name: chain for name, seen in calls.items() if (chain := _longest(seen))}
    deep = [name for name, chain in chains.items() if len(chain) > 1 and len({type(m) for m in chain}) < len(chain)]
    chains = {name: chain for name, chain in chains.items() if not any(_inside(name, outer) for outer in deep)}
    if getattr(getattr(model, "config", None), "is_encoder_decoder", False):
        encoder = {name: c for name, c in chains.items() if re.search(r"(^|\.)encoder\b", name)}
        chains = encoder or chains
    if not chains:
        seen = "; ".join(f"{name or 'the model itself'}: {_why(lists[name], calls[name])}" for name in list(lists)[:6])
        raise ValueError(
            f"no residual blocks found in {type(model).__name__}. Looked for a ModuleList or Sequential whose children "
            "are called one after another and return the shape they take (bare torch.nn layers do not count). Seen: "
            f"{seen or 'no list of modules at all'}. Name the blocks: probe(model, batch, blocks='path.to.list') or "
            "blocks=[model.first, model.second]"
        )
    name = max(chains, key=lambda n: len(chains[n]))  # the first of equals: lists come in the order of definition
    return name, list(dict.fromkeys(chains[name]))


def _watcher(seen):
    def hook(module, args, kwargs, output):
        stream = tensor_in(args, kwargs)[1]
        keeps = stream is not None and tensor_out(output, stream.shape) is not None
        seen.append((module, stream.shape if keeps else None))

    return hook


def _longest(seen):
    best, chain, shape = [], [], None
    for module, its_shape in seen:
        follows = its_shape is not None and _may_be_block(module)
        chain = [*(chain if its_shape == shape else ()), module] if follows else []
        shape = its_shape
        best = max(best, chain, key=len)
    return [] if all(isinstance(m, nn.Identity) for m in best) and len(best) < 2 else best


def _may_be_block(module):
    bare = type(module).__module__.startswith("torch.nn.") and not list(module.children())
    return isinstance(module, nn.Identity) or not bare


def _inside(name, outer):
    return name != outer and (outer == "" or name.startswith(outer + "."))


def _why(container, seen):
    kinds = ", ".join(sorted({type(m).__name__ for m in container}))
    if not seen:
        return f"{len(container)} modules ({kinds}), never called in this forward pass"
    return (
        f"{len(seen)} calls ({kinds}), none kept its shape" if not any(s for _, s in seen) else f"bare layers ({kinds})"
    )
