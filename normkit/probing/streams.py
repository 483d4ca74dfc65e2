"""What a stream of hidden states is reduced to, on the device where it lies, and the hooks that see it pass."""

import contextlib
import math

import torch

from normkit.probing.blocks import tensor_in, tensor_out


class StreamRecorder:
    """Forward hooks on blocks; after a pass, `streams` are x_0 .. x_L, `moments` (2, runs) for each of them
    (mean square, token norm) and `steps` (2, runs) for each block (mean square of the update, angle).

    Calls are counted, not modules, so that one shared block is a layer each time that it runs. Each block is handed a
    copy of its input: a block that writes in place then cannot change the x_l that was seen (and differentiated).
    """

    def __init__(self, modules, mask=None, tokens_first=None):
        self.modules, self.mask, self.tokens_first = modules, mask, tokens_first
        self.channels_first = any(isinstance(m, torch.nn.Conv2d) for block in modules for m in block.modules())
        self.recording, self.layer, self.branches = True, None, False  # layer: the block that is running, or None
        self.streams, self.called, self.links, self.last = [], [], [], None
        self.moments, self.steps, self.notes = [], [], []

    @contextlib.contextmanager
    def hooked(self):
        handles = []
        try:
            for module in dict.fromkeys(self.modules):
                handles.append(module.register_forward_pre_hook(self._before, with_kwargs=True))
                handles.append(module.register_forward_hook(self._after))
            yield self
        finally:
            for handle in handles:
                handle.remove()

    def rows(self, x):
        """(runs, tokens, width) of a stream; whatever lies between runs and width (an image's axes) is tokens."""
        if x.ndim == 4 and self.channels_first:
            x = x.movedim(1, -1)
        if x.ndim == 3 and (self.tokens_first is True or tuple(x.shape[:2]) == self.tokens_first):
            x = x.movedim(1, 0)  # nn.MultiheadAttention's default, and XLNet's: tokens come before runs
        return x.reshape(x.shape[0], -1, x.shape[-1])

    def weights(self, rows):
        """(runs, tokens) float64 weights of the tokens that are no padding, summing to one in each run."""
        wide = torch.float32 if rows.device.type == "mps" else torch.float64
        keep = torch.ones(rows.shape[:2]) if self.mask is None else self.mask
        keep = keep.to(rows.device, wide)
        return keep / keep.sum(-1, keepdim=True)

    def mean_square(self, x):
        """(runs,) mean over tokens and width of x^2, padding left out, accumulated in float64."""
        return self._token_mean(self.rows(x), lambda r: r.square().mean(-1))

    def _token_mean(self, rows, statistic):
        weights = self.weights(rows)
        values = statistic(rows.to(weights.dtype))
        return torch.where(weights > 0, values * weights, 0).sum(-1)  # 0 * nan would let padding speak

    def finish(self):
        """Adds x_L after the pass. Raises ValueError where the hooks saw no chain of streams."""
        self.recording = False
        if not self.streams or self.last is None:
            raise ValueError(
                "the blocks were never called in this forward pass, so there is nothing to report; name other blocks "
                "(a scripted or exported model runs its blocks out of sight: probe the original module)"
            )
        missing = [i for i, m in enumerate(self.modules) if not any(m is c for c in self.called)]
        if missing:
            raise ValueError(
                f"{len(missing)} of the {len(self.modules)} blocks were never called (the first: number {missing[0]}, "
                f"{type(self.modules[missing[0]]).__name__}); leave them out of blocks="
            )
        self._finite_so_far()
        block, x, y = self.last
        self.branches = bool(self.links) and all(kind == "branch" for kind in self.links)
        broken = [i for i, kind in enumerate(self.links) if kind != ("branch" if self.branches else "chain")]
        if broken:
            i = broken[0]
            raise ValueError(
                f"the stream between blocks {i} and {i + 1} is not seen: what block {i} returned is neither the input "
                f"of block {i + 1} nor added to it, so it is bypassed, added in place, or something comes between. "
                "Name modules whose output is the next one's input: blocks='path.to.list' or blocks=[...]"
            )
        if y is None:
            raise ValueError(
                f"the last block, a {type(block).__name__}, returned no tensor of its input's shape {x.shape}"
            )
        self._see(x + y if self.branches else y)
        self._finite_so_far()

    def _before(self, module, args, kwargs):
        place, x = tensor_in(args, kwargs)
        if place is None:
            return None
        if torch.is_grad_enabled() and not x.requires_grad:
            x = x.detach().requires_grad_()
        if self.recording:
            self.layer = len(self.streams)
            self.called.append(module)
            if self.last is not None:
                self.links.append(self._link(x))
            self._see(x)
        copy = x.clone()
        if isinstance(place, str):
            return args, {**kwargs, place: copy}
        return (*args[:place], copy, *args[place + 1 :]), kwargs

    def _after(self, module, args, output):
        if self.recording and self.layer is not None:
            self.last = (module, self.streams[-1], tensor_out(output, self.streams[-1].shape))
            self.layer = None

    @torch.no_grad()
    def _link(self, x):
        _, before, out = self.last
        if out is None or out.shape != x.shape:
            return "lost"
        if out is x or torch.equal(out.to(x.device), x):
            return "chain"
        room = 8 * torch.finfo(x.dtype).eps
        return "branch" if torch.allclose((before + out).to(x.device), x, rtol=room, atol=room) else "lost"

    @torch.no_grad()
    def _see(self, x):
        rows = self.rows(x.detach())
        if self.mask is not None and self.mask.shape != rows.shape[:2]:
            shapes = f"{tuple(self.mask.shape)}, the stream's (runs, tokens) {tuple(rows.shape[:2])}"
            self.notes.append(f"the padding mask does not fit and was not used: its shape is {shapes}")
            self.mask = None
        norm = self._token_mean(rows, lambda r: torch.linalg.vector_norm(r, dim=-1))
        self.moments.append(torch.stack([self.mean_square(x.detach()), norm]))
        if self.streams:
            old = self.rows(self.streams[-1].detach()).to(rows.device)
            update = self._token_mean(torch.cat([old, rows], -1), _mean_square_step)
            angle = self._token_mean(torch.cat([old, rows], -1), _angle)
            self.steps.append(torch.stack([update, angle]))
        self.streams.append(x)

    def _finite_so_far(self):
        for layer, moment in enumerate(self.moments):
            bad = ~torch.isfinite(moment).all(0)
            if bad.any():
                where = f"the output of block {layer - 1}" if layer else "the input of the first block"
                raise ValueError(
                    f"{where} (layer {layer}) is not finite in run {int(bad.nonzero()[0])}: "
                    "the activations overflowed or the weights or the batch hold nan; try float32, or check the input"
                )


def _mean_square_step(pair):
    old, new = pair.chunk(2, -1)
    return (new - old).square().mean(-1)


def _angle(pair):
    """Angle in units of pi, by Kahan's atan2 formula: exact at 0 and 1, where arccos loses half of the digits."""
    u, v = (
        x / torch.linalg.vector_norm(x, dim=-1, keepdim=True).clamp_min(torch.finfo(x.dtype).tiny)
        for x in pair.chunk(2, -1)
    )
    return 2 * torch.atan2(torch.linalg.vector_norm(u - v, dim=-1), torch.linalg.vector_norm(u + v, dim=-1)) / math.pi
