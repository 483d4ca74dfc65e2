"""Which modules count as the residual blocks of models that nobody has named."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from normkit.probing import probe
from normkit.probing.blocks import find_blocks, named_blocks, tensor_in, tensor_out

WIDTH, HEADS, WORDS = 16, 2, 20


class SelfAttention(nn.Module):
    def __init__(self):
        super().__init__()
        self.qkv, self.out = nn.Linear(WIDTH, 3 * WIDTH), nn.Linear(WIDTH, WIDTH)

    def forward(self, x):
        runs, tokens, _ = x.shape
        q, k, v = (a.view(runs, tokens, HEADS, -1).transpose(1, 2) for a in self.qkv(x).chunk(3, -1))
        mixed = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        return self.out(mixed.transpose(1, 2).reshape(x.shape))


class Block(nn.Module):
    """Pre-LN; its own MLP is a Sequential of bare layers, which must not be taken for the blocks."""

    def __init__(self):
        super().__init__()
        self.norm, self.mix = nn.LayerNorm(WIDTH), SelfAttention()
        hidden = [nn.Linear(WIDTH, WIDTH) for _ in range(6)]
        self.mlp = nn.Sequential(nn.LayerNorm(WIDTH), *hidden)

    def forward(self, x):
        x = x + self.mix(self.norm(x))
        return x + self.mlp(x)


class Decoder(nn.Module):
    def __init__(self, layers=3, style="blocks"):
        super().__init__()
        self.embed, self.head, self.style = nn.Embedding(WORDS, WIDTH), nn.Linear(WIDTH, WORDS), style
        self.stack = nn.ModuleList(Block() for _ in range(layers))
        self.unused = nn.ModuleList(Block() for _ in range(9))

    def forward(self, ids):
        x = self.embed(ids)
        for block in self.stack:
            if self.style == "tuple":
                x = block(x)
            elif self.style == "branch":
                x = x + block(x)
            elif self.style == "normed branch":
                x = x + block(F.layer_norm(x, (WIDTH,)))
            else:
                x = block(x=x)
        return self.head(x)


IDS = torch.randint(0, WORDS, (2, 7), generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("layers", [1, 3])
def test_an_unknown_decoder_is_understood(layers):
    model = Decoder(layers)
    profile = probe(model, IDS)
    assert profile.meta["blocks"] == "stack"  # not the longer list that is never called, nor the MLP's inside
    x = model.embed(IDS)
    for layer, block in enumerate(model.stack):
        np.testing.assert_allclose(profile.variance[:, layer], x.double().square().mean((1, 2)).detach(), rtol=1e-6)
        q, k, _ = (a.view(2, 7, HEADS, -1).transpose(1, 2) for a in block.mix.qkv(block.norm(x)).double().chunk(3, -1))
        logits = (q @ k.mT * (WIDTH // HEADS) ** -0.5).masked_fill(torch.ones(7, 7).triu(1).bool(), -torch.inf)
        p = logits.softmax(-1)
        want = -torch.special.xlogy(p, p).sum(-1).mean((1, 2)).detach()
        np.testing.assert_allclose(profile.entropy[:, layer], want, rtol=1e-5)
        x = block(x)


@pytest.mark.parametrize("frozen", [True, False])
def test_branches_that_the_model_adds_have_the_streams_gradient(frozen):
    model = Decoder(style="branch").requires_grad_(not frozen)
    streams = [model.embed(IDS).detach().requires_grad_()]
    for block in model.stack:
        streams.append(streams[-1] + block(streams[-1]))
    grads = torch.autograd.grad(model.head(streams[-1]).square().sum(), streams)
    profile = probe(model, IDS, loss=lambda out: out.square().sum())
    want = [g.double().square().mean((1, 2)).numpy() for g in grads]
    np.testing.assert_allclose(profile.gradient.T, want, rtol=1e-4)  # float32, another order of sums
    assert all(p.requires_grad is not frozen for p in model.parameters())


def test_normed_branches_hide_the_stream_and_are_refused():
    with pytest.raises(ValueError, match="between blocks 0 and 1 is not seen"):
        probe(Decoder(style="normed branch"), IDS)


def test_an_outer_sequential_is_searched_and_a_bare_layer_ends_a_chain():
    model = nn.Sequential(
        nn.Embedding(WORDS, WIDTH), Block(), nn.LayerNorm(WIDTH), Block(), Block(), nn.Linear(WIDTH, 2)
    )
    label, modules = find_blocks(model, lambda: model(IDS))
    assert label == ""
    assert modules == list(model)[3:5]


def test_blocks_can_be_named_in_every_way():
    model = Decoder()
    first, second, third = model.stack
    assert named_blocks(model, "stack") == ("stack", [first, second, third])
    assert named_blocks(model, model.stack)[1] == [first, second, third]
    assert named_blocks(model, ["stack.0", second]) == ("stack.0, stack.1", [first, second])
    whole = probe(model, IDS, loss="cotangent")
    part = probe(model, IDS, blocks=["stack.1", "stack.2"], loss="cotangent")
    np.testing.assert_allclose(part.variance, whole.variance[:, 1:], rtol=1e-12)
    np.testing.assert_allclose(part.gradient, whole.gradient[:, 1:], rtol=1e-6)


def test_the_stream_is_found_in_what_goes_in_and_comes_out():
    x, ids, other = torch.zeros(2, 3), torch.zeros(2, 3, dtype=torch.long), torch.zeros(2, 3, 3)
    assert tensor_in((ids, x), {})[0] == 1
    assert tensor_in((), {"mask": other, "hidden_states": x})[0] == "hidden_states"
    assert tensor_in((ids, None), {"flag": True}) == (None, None)
    for output in (x, (x, other), [None, x], {"cache": None, "last": x}, (ids, other, x)):
        assert tensor_out(output, x.shape) is x
    for output in (other, None, (other, "text"), 3):
        assert tensor_out(output, x.shape) is None
