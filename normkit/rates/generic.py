"""A copy of a model to experiment on: float64, at a generic point, its dropout frozen, its buffers back each time."""

import contextlib
import copy
from collections.abc import Mapping

import torch
from torch import nn
from torch.utils._pytree import tree_leaves, tree_map

from normkit.rng import stream

SPREAD = 0.3  # of the noise, in units of a matrix' own root mean square
SHIFT = 0.5  # of the noise on vectors: large, so that a matrix does not look invariant because its bias is small


class GenericCopy:
    """forward() -> (entries,): all floating outputs, each tensor scaled to unit mean square at the base point.

    parameters: {name: float64 leaf that requires a gradient}; base: forward() there. Raises as scale_invariant_groups.
    """

    def __init__(self, model, inputs, seed, point=0):
        if not isinstance(model, nn.Module):
            raise TypeError(f"scale-invariant groups need a torch.nn.Module, got {type(model).__name__}")
        model = plain(model)
        for name, parameter in model.named_parameters():
            if isinstance(parameter, nn.parameter.UninitializedParameter):
                raise ValueError(f"parameter {name!r} is not initialized: run the model once first")
            if parameter.is_inference():
                raise ValueError(
                    "the model was built under torch.inference_mode and has no gradients: build it outside"
                )
            if not torch.isfinite(parameter).all():
                raise ValueError(f"parameter {name!r} is not finite: the model has diverged, or was not initialized")
        errors = []
        for dtype in torch.float64, torch.float32:  # some models cast inside and cannot work in float64
            self.model = _copied(model).train().to(dtype)
            self.parameters = {n: p for n, p in self.model.named_parameters() if p.is_floating_point()}
            self._to_a_generic_point(seed, point)
            self._buffers = [
                (m, {k: None if b is None else b.clone() for k, b in m._buffers.items()}) for m in self.model.modules()
            ]
            self._cuda = sorted({p.device.index for p in self.parameters.values() if p.device.type == "cuda"})
            self.dtype, self._scales = dtype, None
            self.seed = int(stream(seed, "copy", point).integers(2**63))
            try:
                self._start(inputs)
                return
            except ValueError as error:
                errors.append(error)
        raise errors[0]

    def _to_a_generic_point(self, seed, point):
        for name, parameter in self.parameters.items():
            noise = stream(seed, "point", point, name).standard_normal(tuple(parameter.shape))
            noise = torch.as_tensor(noise, dtype=parameter.dtype, device=parameter.device)
            size = parameter.detach().square().mean().sqrt().item() if parameter.numel() else 0.0
            if parameter.ndim < 2:
                size = max(SHIFT, SPREAD * size)
            else:
                size = SPREAD * (size or (parameter.numel() / len(parameter)) ** -0.5)
            with torch.no_grad():
                parameter.add_(size * noise)
            parameter.requires_grad_(True)

    def _start(self, inputs):
        from normkit.probing.core import _bind

        candidates = guesses(self.model, self.seed) if inputs is None else [inputs]
        for candidate in candidates:
            self._scales = None
            try:
                self._call = _bind(self.model, tree_map(self._cast, candidate))[0]
                self.base = self.forward()
                return
            except ValueError:
                if inputs is not None:
                    raise
        raise ValueError(
            f"no guessed input runs through {type(self.model).__name__} in train mode: pass inputs=, a dict, tuple or "
            "tensor as the model takes it"
        )

    def _cast(self, value):
        if not torch.is_tensor(value):
            return value
        value = value.clone() if value.is_inference() else value  # a backward pass cannot keep inference tensors
        return value.detach().to(self.dtype) if value.is_floating_point() else value

    def forward(self):
        for module, buffers in self._buffers:
            for key, buffer in buffers.items():
                module._buffers[key] = None if buffer is None else buffer.clone()
        with torch.random.fork_rng(devices=self._cuda), torch.inference_mode(False):
            torch.default_generator.manual_seed(self.seed)  # inside the fork: the same dropout masks each time
            for device in self._cuda:
                torch.cuda.default_generators[device].manual_seed(self.seed)
            output = self._call()
        leaves = [leaf.flatten().to(self.base_dtype) for leaf in _floating(output)]
        if not leaves:
            raise ValueError(f"{type(self.model).__name__} returned no floating tensor, but {type(output).__name__}")
        if self._scales is None:
            for leaf in leaves:
                if not torch.isfinite(leaf).all():
                    raise ValueError("the model's output is not finite on these inputs")
            self._scales = [leaf.detach().square().mean().sqrt().clamp_min(1e-30) for leaf in leaves]
        return torch.cat([leaf / scale for leaf, scale in zip(leaves, self._scales, strict=True)])

    @property
    def base_dtype(self):
        return torch.promote_types(self.dtype, torch.float32)

    @contextlib.contextmanager
    def moved(self, tensors):
        """Inside, these parameters have these values: {name: tensor}."""
        kept = {name: self.parameters[name].detach().clone() for name in tensors}
        try:
            with torch.no_grad():
                for name, value in tensors.items():
                    self.parameters[name].copy_(value)
            yield
        finally:
            with torch.no_grad():
                for name, value in kept.items():
                    self.parameters[name].copy_(value)

    def outputs_at(self, tensors):
        """forward() with these parameters at these values, without a graph."""
        with self.moved(tensors), torch.no_grad():
            return self.forward()


def plain(model):
    """The model inside torch.compile's wrapper, whose parameters have other names; any other as it is."""
    return getattr(model, "_orig_mod", model)


def _copied(model):
    """deepcopy, also of modules that keep a computed tensor (torch.nn.utils.weight_norm), which deepcopy refuses."""
    computed = [v for m in model.modules() for v in vars(m).values() if torch.is_tensor(v) and not v.is_leaf]
    return copy.deepcopy(model, {id(value): value.detach().clone() for value in computed})


def _floating(output):
    """Floating tensors of an output; a language model's cache of keys and values is no output of interest."""
    if isinstance(output, Mapping):
        output = {k: v for k, v in output.items() if k != "past_key_values"}
    return [t for t in tree_leaves(output) if torch.is_tensor(t) and t.is_floating_point() and t.numel()]


def guesses(model, seed):
    """Inputs that the model may take, judged by its first layers: dummy_inputs, tokens, images, sequences, vectors."""
    draw = torch.Generator().manual_seed(seed)
    if isinstance(getattr(model, "dummy_inputs", None), dict):
        yield model.dummy_inputs
    layers = [m for m in model.modules() if next(m.parameters(recurse=False), None) is not None]
    tokens = [m.num_embeddings for m in layers if isinstance(m, nn.Embedding)]
    for length in (16, 8, 4) if tokens else ():
        ids = torch.randint(0, tokens[0], (4, length), generator=draw)
        yield from (ids, ids[:, 0], {"input_ids": ids})
    for layer in layers[:8]:
        shapes = []
        channels = getattr(layer, "in_channels", None) or (layer.num_features if hasattr(layer, "running_mean") else 0)
        kernel = getattr(layer, "kernel_size", None) or (1, 1)
        if channels:
            shapes = [(8, channels, *[side] * len(kernel)) for side in (32, 28, 16, 64, 8, 224)]
        last = [getattr(layer, k, 0) for k in ("in_features", "input_size", "num_features", "embed_dim")]
        last += list(getattr(layer, "normalized_shape", ()))[-1:]
        last += [n for p in layer.parameters(recurse=False) if p.ndim == 2 for n in (p.shape[1], p.shape[0])]
        for width in dict.fromkeys(n for n in last if n):
            shapes += [(16, width), (4, 8, width)]
        yield from (torch.randn(shape, generator=draw) for shape in shapes)
