"""probe(model, batch): the depth profile of a real torch model, by hooks, without a change to the model."""

import contextlib
import inspect
import re
import warnings
from collections.abc import Mapping
from dataclasses import replace

import torch
from torch import nn

from normkit.probing.attention import HeadEntropies
from normkit.probing.blocks import find_blocks, named_blocks
from normkit.probing.gradients import gradients
from normkit.probing.streams import StreamRecorder
from normkit.profile import Profile


def probe(model, batch, *, blocks=None, loss=None, lr=None, name=None, seed=0, chunk=128, weights=False) -> Profile:
    """Depth profile of any torch model on one batch: what normkit's toys return, so that one figure shows both.

    model: a torch.nn.Module; it runs in eval mode (dropout off) and comes back as it was, also after an error.
    batch: a dict or BatchEncoding (keywords), a tuple (positions) or a tensor; moved to the model's device. A run is
    one entry of the batch; tokens that `attention_mask` (or `src_key_padding_mask`) marks as padding do not count.
    blocks: the residual blocks, as a dotted path or a list of modules; found by themselves unless given. Blocks either
    map x_l to x_(l+1), or are branches that the model adds: x_(l+1) = x_l + block(x_l). A final norm is not a block.
    loss: "labels": the model's own loss, labels being input_ids unless the batch has labels, times the number of runs,
    so that the batch's size does not matter; "cotangent": <x_L, g>, g ~ N(0, 1), as in the toys (1 at layer L);
    a function of the model's output, to a scalar. Default: "labels" for a language model, else "cotangent".
    lr: adds meta["parameter_update"], (layers,): lr |grad| / |weights| of each block, a first step of SGD on the loss.
    seed: of the cotangent. chunk: queries at a time in the entropy; memory is runs x heads x chunk x keys.

    Profile, all per run: variance = mean over tokens and width of x_l^2; gradient = the same of dloss/dx_l; update =
    the same of x_(l+1) - x_l; norm = mean token norm; angle = mean angle between a token's x_l and x_(l+1), over pi;
    the width is a stream's last axis, or the channels where blocks convolve images;
    entropy = mean over queries and heads, in nats, of every attention in the block, fused or eager; None without one.
    weights=True adds Profile.weights, one dict per parameter with two axes or more: "name", "shape", "norm",
    "gradient" (the length of dloss/dweight), "radial" (cosine between weight and gradient), "invariant" ("" where the
    output depends on its length, else "layer", "rows", "columns", "blocks", or "joint" with the tensors named in
    "with": see normkit.rates.scale_invariant_groups, which runs in train mode on four runs of the batch) and "block".
    A step of SGD has the effective learning rate lr / norm^2, one of Adam lr / norm.
    meta: "blocks", "loss", "tokens" per run, "entropy_heads" (a list of heads for each layer, mean over runs), "notes".
    Reductions run on the device in float32 or wider; activations never leave it. Raises ValueError for a batch that the
    model refuses, blocks that are not found, never called or bypassed, and activations that are not finite; TypeError
    for a model that is no Module. Warns, and sets entropy to None, where an attention ran in a kernel out of sight.
    """
    if not isinstance(model, nn.Module):
        raise TypeError(
            f"probe needs a torch.nn.Module, got {type(model).__name__}; pass the model first, then the batch"
        )
    if any(p.is_inference() for p in model.parameters()):
        raise ValueError("the model was built under torch.inference_mode and has no gradients: build it outside")
    if not (loss is None or callable(loss) or loss in ("labels", "cotangent")):
        raise ValueError(f"loss must be 'labels', 'cotangent' or a function of the model's output, got {loss!r}")
    model = getattr(model, "_orig_mod", model)  # torch.compile's wrapper: hooks need the module itself
    call, given, extra = _bind(model, batch)
    loss = loss or _default_loss(model, given)
    if loss == "labels" and "labels" not in given:
        extra["labels"] = _labels(given)
    with _as_it_was(model):
        label, modules = named_blocks(model, blocks) if blocks is not None else find_blocks(model, call)
        profile, at_weights = _measure(model, call, given, label, modules, loss, lr, name, seed, chunk, weights)
    if not weights:
        return profile
    from normkit.probing.weights import weight_records

    return replace(profile, weights=weight_records(model, batch, modules, at_weights, seed))


def _measure(model, call, given, label, modules, loss, lr, name, seed, chunk, weights):
    recorder = StreamRecorder(modules, _token_mask(given, label), tokens_first=_tokens_first(modules, given))
    heads = HeadEntropies(recorder, modules, chunk)
    _want_gradients(model, modules, lr is not None or weights)
    with recorder.hooked(), torch.enable_grad():
        with heads.hooked():
            output = call()
        recorder.finish()
        asked = [p for p in model.parameters() if p.ndim >= 2] if weights else []
        gradient, relative, at_weights = gradients(output, recorder, loss, lr, seed, asked)
    variance, norm = torch.stack([m.cpu() for m in recorder.moments], -1).numpy()
    update, angle = torch.stack([s.cpu() for s in recorder.steps], -1).numpy()
    entropy, per_head = heads.result()
    notes = list(dict.fromkeys([*recorder.notes, *heads.notes]))
    for note in notes:
        warnings.warn(f"probe: {note}", stacklevel=3)
    tokens = (recorder.weights(recorder.rows(recorder.streams[0])) > 0).sum(-1).tolist()
    meta = {"model": type(model).__name__, "blocks": label or "the model itself", "tokens": tokens, "notes": notes}
    meta |= {
        "loss": loss if isinstance(loss, str) else getattr(loss, "__name__", "function"),
        "entropy_heads": per_head,
    }
    meta |= {} if relative is None else {"parameter_update": relative}
    profile = Profile(name or type(model).__name__, variance, gradient, update, norm, angle, entropy, meta)
    return profile, at_weights


def _bind(model, batch):
    """(forward pass without arguments, the batch's tensors by the names of forward's parameters)."""
    if isinstance(batch, Mapping):
        args, kwargs = (), dict(batch)
    elif isinstance(batch, tuple | list) and batch and all(torch.is_tensor(x) for x in batch):
        args, kwargs = tuple(batch), {}
    elif torch.is_tensor(batch):
        args, kwargs = (batch,), {}
    else:
        raise ValueError(
            "a batch is a dict of tensors, a tuple of tensors or a tensor, got "
            f"{_shape(batch)}; text goes through the tokenizer first: normkit.probing.text_batch(tokenizer, sentences)"
        )
    home = next((t.device for t in (*model.parameters(), *model.buffers())), torch.device("cpu"))
    args = tuple(a.to(home) for a in args)
    kwargs = {k: v.to(home) if torch.is_tensor(v) else v for k, v in kwargs.items()}
    signature = inspect.signature(model.forward)
    try:
        given = signature.bind(*args, **kwargs).arguments
    except TypeError:
        if not kwargs or not _binds(signature, kwargs):
            raise ValueError(_misfit(model, signature, batch)) from None
        args, given, kwargs = (
            (kwargs,),
            kwargs,
            {},
        )  # a forward that takes the dict itself, as sentence-transformers' does
    flat = {
        k: v for key, value in given.items() for k, v in (value if isinstance(value, dict) else {key: value}).items()
    }

    def forward():
        try:
            return model(*map(_copy, args), **{k: _copy(v) for k, v in kwargs.items()})
        except torch.OutOfMemoryError:
            raise
        except Exception as error:
            raise ValueError(f"{_misfit(model, signature, batch)}. The model said: {error}") from error

    return forward, flat, kwargs


def _copy(value):
    """A copy that the model may overwrite; where it can, it carries a gradient, so that x_0 has one, too."""
    if isinstance(value, dict):
        return {k: _copy(v) for k, v in value.items()}
    if not torch.is_tensor(value):
        return value
    value = value.detach().clone()
    return value.requires_grad_().clone() if value.is_floating_point() and torch.is_grad_enabled() else value


def _want_gradients(model, modules, asked):
    """What leads to x_0 carries gradients, for x_0's sake; the blocks' weights do only where theirs are asked for."""
    inner = {id(p) for m in modules for p in m.parameters()}
    for parameter in model.parameters():
        if parameter.is_floating_point():
            parameter.requires_grad_(id(parameter) not in inner or (asked and parameter.requires_grad))


def _binds(signature, *args):
    try:
        signature.bind(*args)
    except TypeError:
        return False
    return True


def _misfit(model, signature, batch):
    return (
        f"the batch does not fit the model: got {_shape(batch)}; {type(model).__name__}.forward takes "
        f"({', '.join(map(str, signature.parameters))})"
    )


def _shape(batch):
    if isinstance(batch, Mapping):
        return "{" + ", ".join(f"{key}: {_shape(value)}" for key, value in batch.items()) + "}"
    if isinstance(batch, tuple | list):
        return f"{type(batch).__name__} of {len(batch)} ({', '.join(map(_shape, batch[:3]))})"
    if torch.is_tensor(batch):
        return f"{str(batch.dtype).removeprefix('torch.')} tensor {tuple(batch.shape)}"
    return type(batch).__name__


def _token_mask(given, label):
    """(runs, tokens) boolean, True for tokens that count, or None where the batch says nothing about padding."""
    decoder = re.search(r"(^|\.)decoder\b", label) and "decoder_input_ids" in given
    mask = given.get("decoder_attention_mask") if decoder else given.get("attention_mask")
    if mask is None and given.get("src_key_padding_mask") is not None:
        mask = given["src_key_padding_mask"] == 0  # torch.nn marks the padding, the others the tokens
    if not torch.is_tensor(mask) or mask.ndim != 2:
        return None
    empty = (mask != 0).sum(-1) == 0
    if empty.any():
        raise ValueError(f"run {int(empty.nonzero()[0])} of the batch is all padding: drop it, or check attention_mask")
    return mask != 0


def _tokens_first(modules, given):
    """What says that streams may be (tokens, runs, width): torch's own attention, or the shape of the ids, or None."""
    if any(isinstance(m, nn.MultiheadAttention) and not m.batch_first for b in modules for m in b.modules()):
        return True
    ids = given.get("input_ids")
    return tuple(ids.shape[::-1]) if torch.is_tensor(ids) and ids.ndim == 2 and ids.shape[0] != ids.shape[1] else None


def _default_loss(model, given):
    head = getattr(model, "get_output_embeddings", lambda: None)()
    takes = "labels" in inspect.signature(model.forward).parameters
    ids = torch.is_tensor(given.get("input_ids")) and not given["input_ids"].is_floating_point()
    return "labels" if "labels" in given or (head is not None and takes and ids) else "cotangent"


def _labels(given):
    if not torch.is_tensor(given.get("input_ids")):
        raise ValueError(f"loss='labels' needs labels or input_ids in the batch, which has {sorted(given)}")
    mask = _token_mask(given, "")
    return given["input_ids"] if mask is None else given["input_ids"].masked_fill(~mask, -100)


@contextlib.contextmanager
def _as_it_was(model):
    """Eval mode, no compiled code and no fused encoder inside; afterwards all flags and the random state are back."""
    wants = [(p, p.requires_grad) for p in model.parameters()]
    modes = [(m, m.training) for m in model.modules()]
    cuda = {p.device.index for p in model.parameters() if p.device.type == "cuda"}
    fused = torch.backends.mha.get_fastpath_enabled()
    with contextlib.ExitStack() as stack:
        stack.enter_context(torch.random.fork_rng(devices=sorted(cuda)))
        stack.enter_context(torch.inference_mode(False))
        if any(hasattr(m, "_orig_mod") or m._compiled_call_impl is not None for m, _ in modes):
            stack.enter_context(torch.compiler.set_stance("force_eager"))
        try:
            torch.backends.mha.set_fastpath_enabled(False)
            model.eval()
            yield
        finally:
            for parameter, wanted in wants:
                parameter.requires_grad_(wanted)
            torch.backends.mha.set_fastpath_enabled(fused)
            for module, training in modes:
                module.training = training
