"""The probe on models built by hand, whose laws are known."""

import copy
import importlib
import json
import math
import types

import numpy as np
import pytest
import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

import normkit
from normkit.probing import probe


class Copies(nn.Module):
    """Block l adds slot 0 of the stream to slot l+1: from a stream in slot 0, the variance is (1+l) x_0^2, exactly."""

    def __init__(self, layer, layers, in_place=False, branch=False):
        super().__init__()
        weight = torch.zeros(layers + 1, layers + 1)
        weight[layer + 1, 0] = 1
        self.weight, self.in_place, self.branch = nn.Parameter(weight), in_place, branch

    def forward(self, x):
        step = x @ self.weight.T
        if self.in_place:
            x += step
            return x
        return step if self.branch else x + step


class PreNorm(nn.Module):
    """x + W rms(x), W ~ N(0, 1/width)."""

    def __init__(self, width, noise):
        super().__init__()
        self.weight = nn.Parameter(torch.randn(width, width, generator=noise) * width**-0.5)

    def forward(self, x):
        return x + x * x.square().mean(-1, keepdim=True).rsqrt() @ self.weight.T


class Stack(nn.Module):
    def __init__(self, blocks, added=False, skip=(), wrap=None):
        super().__init__()
        self.blocks, self.added, self.skip, self.wrap = nn.ModuleList(blocks), added, skip, wrap

    def forward(self, x, attention_mask=None):
        for i, block in enumerate(self.blocks):
            y = block(x) if self.wrap is None else self.wrap(block, x)
            x = x if i in self.skip else x + y if self.added else y
        return x


def copies(layers=5, **kwargs):
    return Stack([Copies(layer, layers, **kwargs) for layer in range(layers)], added=kwargs.get("branch", False))


def slot_zero(layers=5, runs=3, tokens=4):
    x = torch.zeros(runs, tokens, layers + 1)
    x[..., 0] = 1 + torch.rand(runs, tokens, generator=torch.Generator().manual_seed(0))
    return x


def pre(layers=12, width=128):
    noise = torch.Generator().manual_seed(3)
    return Stack([PreNorm(width, noise) for _ in range(layers)]), torch.randn(4, 32, width, generator=noise)


@pytest.mark.parametrize("kind", [{}, {"in_place": True}, {"branch": True}])
def test_a_linear_residual_model_returns_its_law(kind):
    model, x = copies(**kind), slot_zero()
    profile = probe(model, x)
    start = x[..., 0].double().square()
    step = np.arange(6)
    per_run = start.mean(-1).numpy() / 6  # mean over tokens, and over six channels of which one is not zero
    np.testing.assert_allclose(profile.variance, per_run[:, None] * (1 + step), rtol=1e-12)  # sums of equal numbers
    np.testing.assert_allclose(profile.update, np.repeat(per_run[:, None], 5, 1), rtol=1e-12)
    np.testing.assert_allclose(
        profile.norm, x[..., 0].double().mean(-1).numpy()[:, None] * np.sqrt(1 + step), rtol=1e-12
    )
    angle = np.arccos(np.sqrt((1 + step[:5]) / (2 + step[:5]))) / np.pi  # between (1,..,1,0) and (1,..,1,1)
    np.testing.assert_allclose(profile.angle, np.tile(angle, (3, 1)), rtol=1e-12)
    assert profile.entropy is None
    # Backward, slot 0 collects the slots above it: mean square 1 + (L-l)/6 over six channels of g ~ N(0, 1).
    # 12 tokens: relative deviation of one chi-square of 12 weighed (1+L-l)/6 stays below 5 sqrt(2/12) (1+L-l)/6.
    want = 1 + (5 - step) / 6
    room = 5 * math.sqrt(2 / 12) * (1 + 5 - step) / 6 + 5 * math.sqrt(2 / 60)
    assert (abs(profile.gradient.mean(0) - want) < room).all()
    assert profile.gradient[:, 0].mean() > profile.gradient[:, -1].mean()


def test_pre_norm_grows_like_one_plus_l_and_its_gradient_like_the_inverse():
    model, x = pre()
    profile = probe(model, x)
    law = 1 + np.arange(13)
    # One draw of the weights, width 128, 128 tokens: the branch's gain varies by sqrt(2)/128, the cross term by
    # 2 sqrt(1/128)/sqrt(128) of the first streams, x_0 by sqrt(2)/128: below 2.5 % together, and 15 % is six of that.
    np.testing.assert_allclose(profile.variance.mean(0), law, rtol=0.15)
    np.testing.assert_allclose(profile.gradient.mean(0), law[-1] / law, rtol=0.15)


def test_gradient_is_autograds_own():
    model, x = pre(layers=3, width=16)
    streams = [x.clone().requires_grad_()]
    for block in model.blocks:
        streams.append(block(streams[-1]))
    loss = streams[-1].sin().sum()
    grads = torch.autograd.grad(loss, streams)
    profile = probe(model, x, loss=lambda out: out.sin().sum())
    want = [g.double().square().mean((1, 2)).numpy() for g in grads]
    np.testing.assert_allclose(profile.gradient.T, want, rtol=1e-6)  # the same float32 operations


def test_cotangent_has_gradient_one_at_the_top_and_follows_its_seed():
    model, x = pre(layers=2)
    first, again, other = (probe(model, x, seed=s).gradient for s in (0, 0, 1))
    np.testing.assert_array_equal(first, again)
    assert abs(first - other).max() > 1e-4
    np.testing.assert_allclose(first[:, -1], 1, atol=5 * math.sqrt(2 / (32 * 128)))  # mean of 32 x 128 chi-squares
    np.testing.assert_allclose(probe(model, x[:2]).gradient, first[:2], rtol=1e-5)  # a run does not see its batch


def test_learning_rate_adds_the_relative_step_of_the_weights():
    model, x = pre(layers=2, width=16)
    step = probe(model, x, loss=lambda out: out.sin().sum(), lr=0.5).meta["parameter_update"]
    model(x).sin().sum().backward()
    want = [0.5 * (b.weight.grad.norm() / b.weight.norm()).item() for b in model.blocks]
    assert step == pytest.approx(want, rel=1e-5)


def test_identity_is_flat_because_it_is():
    model = Stack([nn.Identity() for _ in range(3)])
    profile = probe(model, torch.randn(2, 5, 8))
    assert (profile.variance == profile.variance[:, :1]).all()
    assert (profile.gradient == profile.gradient[:, :1]).all()
    assert not profile.update.any()
    assert not profile.angle.any()
    assert profile.entropy is None
    assert profile.meta["entropy_heads"] is None


def test_angle_of_a_rotation():
    turn = math.pi / 8
    block = nn.Sequential(nn.Linear(2, 2, bias=False))
    block[0].weight.data = torch.tensor([[math.cos(turn), -math.sin(turn)], [math.sin(turn), math.cos(turn)]])
    profile = probe(Stack([block, copy.deepcopy(block)]), torch.randn(3, 4, 2), blocks="blocks")
    np.testing.assert_allclose(profile.angle, 1 / 8, rtol=1e-6)  # float32 weights
    np.testing.assert_allclose(profile.variance, profile.variance[:, :1].repeat(3, 1), rtol=1e-6)


def test_a_shared_block_counts_once_a_call():
    model, x = pre(layers=1)
    model.blocks = nn.ModuleList([model.blocks[0]] * 4)
    profile = probe(model, x)
    assert profile.layers == 4
    x1 = model.blocks[0](x)
    np.testing.assert_allclose(profile.variance[:, 1], x1.double().square().mean((1, 2)).detach().numpy(), rtol=1e-6)


def test_padding_does_not_count():
    model, x = pre(layers=3)
    short = probe(model, x[:1, :20])
    x[0, 20:] = math.nan  # padding may hold anything
    mask = torch.ones(4, 32, dtype=torch.long)
    mask[0, 20:] = 0
    padded = probe(model, {"x": x, "attention_mask": mask})
    for quantity in ("variance", "update", "norm", "angle"):
        np.testing.assert_allclose(getattr(padded, quantity)[:1], getattr(short, quantity), rtol=1e-6)
    assert padded.meta["tokens"] == [20, 32, 32, 32]


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
def test_other_precisions_are_reduced_in_float64(dtype):
    model, x = copies().to(dtype), slot_zero().to(dtype) * (100 if dtype == torch.float16 else 1)
    profile = probe(model, x)
    want = x.double().square().mean((1, 2)).numpy()[:, None] * (1 + np.arange(6))
    np.testing.assert_allclose(profile.variance, want, rtol=1e-12)  # 300^2 overflows a float16 sum


def test_checkpointed_and_compiled_models_give_the_same():
    model, x = pre(layers=3, width=16)
    plain = probe(model, x)
    model.wrap = lambda block, x: checkpoint(block, x, use_reentrant=False)
    saved = probe(model, x)
    np.testing.assert_array_equal(saved.gradient, plain.gradient)
    model.wrap = None
    model.blocks[1] = torch.compile(model.blocks[1], backend="eager")
    for compiled in (model, torch.compile(model, backend="eager")):
        np.testing.assert_allclose(probe(compiled, x).gradient, plain.gradient, rtol=1e-6)


@pytest.mark.parametrize("batch_first", [True, False])
def test_torch_transformer_encoder(batch_first):
    layer = nn.TransformerEncoderLayer(16, 2, 32, batch_first=batch_first)
    model = nn.TransformerEncoder(layer, 3, enable_nested_tensor=False)
    x = torch.randn(4, 7, 16)
    profile = probe(model, x if batch_first else x.transpose(0, 1))
    assert profile.runs == 4
    assert profile.layers == 3
    assert profile.meta["blocks"] == "layers"
    np.testing.assert_allclose(profile.variance[:, 0], x.double().square().mean((1, 2)), rtol=1e-12)
    model.eval()
    stream = x if batch_first else x.transpose(0, 1)
    for i, block in enumerate(model.layers):
        _, p = block.self_attn(stream, stream, stream, average_attn_weights=False)
        want = -torch.special.xlogy(p, p).sum(-1).mean((1, 2))
        np.testing.assert_allclose(profile.entropy[:, i], want.detach().numpy(), rtol=1e-5)
        stream = block(stream)


class Convolution(nn.Module):
    def __init__(self, channels):
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, padding=1)

    def forward(self, x):
        return x + self.conv(x)


def test_images_have_channels_as_width():
    x = torch.randn(2, 8, 5, 6)
    profile = probe(nn.Sequential(nn.Conv2d(8, 8, 1), Convolution(8), Convolution(8)), x, name="images")
    assert profile.layers == 2
    with torch.no_grad():
        model = nn.Sequential(Convolution(8), Convolution(8))
        norm = x.double().norm(dim=1).mean((1, 2))
    np.testing.assert_allclose(probe(model, x).norm[:, 0], norm, rtol=1e-12)


class Attention(nn.Module):
    def forward(self, x):
        return x + torch.tanh(x @ x.mT) @ x


def test_attention_that_is_not_seen_is_said():
    with pytest.warns(UserWarning, match=r"no softmax and no scaled_dot_product_attention was seen in blocks \[0, 1\]"):
        profile = probe(Stack([Attention(), Attention()]), torch.randn(2, 3, 4))
    assert profile.entropy is None
    assert "attn_implementation" in profile.meta["notes"][0]


def test_a_model_without_gradients_is_said():
    model, x = pre(layers=2)
    model.wrap = torch.no_grad()(lambda block, x: block(x))
    with pytest.warns(UserWarning, match="without gradients"):
        profile = probe(model, x)
    assert profile.gradient is None
    assert profile.variance.shape == (4, 3)


def test_the_model_is_given_back_as_it_was():
    model, x = pre(layers=2)
    model.blocks[0].eval().weight.requires_grad_(False)
    before = [m.training for m in model.modules()], {k: v.clone() for k, v in model.state_dict().items()}
    torch.manual_seed(5)
    state = torch.get_rng_state()
    probe(model, x)
    with pytest.raises(ValueError):
        probe(model, x[..., :3])
    with pytest.raises(ZeroDivisionError):
        probe(model, x, loss=lambda out: 1 / 0)
    assert [m.training for m in model.modules()] == before[0]
    assert all(torch.equal(v, before[1][k]) for k, v in model.state_dict().items())
    assert all(p.grad is None for p in model.parameters())
    assert not model.blocks[0].weight.requires_grad
    assert torch.equal(torch.get_rng_state(), state)
    assert torch.is_grad_enabled()
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in model.modules())
    assert torch.backends.mha.get_fastpath_enabled()


def test_probe_is_the_function_whatever_was_imported():
    importlib.import_module("normkit.probing.core")  # importing a submodule sets an attribute of its package

    assert normkit.probe is probe
    assert not isinstance(normkit.probe, types.ModuleType)


def broken(case):
    model, x = pre(layers=3, width=16)
    if case == "nan":
        model.blocks[1].weight.data.fill_(math.nan)
    skip = {"bypassed": (1,), "last": (2,)}.get(case, ())
    model.skip = skip
    return model, x


@pytest.mark.parametrize(
    ("case", "kwargs", "message"),
    [
        ("nan", {}, r"output of block 1 \(layer 2\) is not finite in run 0"),
        ("bypassed", {}, "between blocks 1 and 2 is not seen"),
        ("last", {}, "does not depend on what the last block returned"),
        ("ok", {"blocks": "layers"}, r"'layers' is not in Stack; lists of modules: blocks"),
        ("ok", {"blocks": [nn.Linear(2, 2)]}, "never called"),
        ("ok", {"blocks": []}, "non-empty list"),
        ("ok", {"blocks": 3}, "dotted path or a non-empty list"),
        ("ok", {"loss": "mse"}, "'labels', 'cotangent' or a function"),
        ("ok", {"loss": "labels"}, "needs labels or input_ids"),
        ("ok", {"loss": lambda out: out}, "must be a scalar"),
        ("ok", {"loss": lambda out: out.sum() * math.nan}, "the loss is nan"),
        (
            "ok",
            {"loss": lambda out: torch.ones(1, requires_grad=True).sum()},
            "does not depend on the stream at layer 0",
        ),
    ],
)
def test_what_cannot_be_measured_is_an_error(case, kwargs, message):
    model, x = broken(case)
    with pytest.raises(ValueError, match=message):
        probe(model, x, **kwargs)


def test_never_called_blocks_in_a_named_list_are_an_error():
    model, x = pre(layers=2)
    with pytest.raises(ValueError, match="1 of the 3 blocks were never called"):
        probe(model, x, blocks=[*model.blocks, PreNorm(4, torch.Generator())])


@pytest.mark.parametrize(
    ("batch", "message"),
    [
        (torch.ones(2, 3, 5), r"got float32 tensor \(2, 3, 5\); Stack.forward takes \(x, attention_mask\)"),
        ({"y": torch.ones(2, 3, 16)}, r"got \{y: float32 tensor \(2, 3, 16\)\}; Stack.forward takes \(x,"),
        (["a sentence"], r"list of 1 \(str\); text goes through the tokenizer"),
        (None, "got NoneType"),
        ({"x": torch.ones(2, 3, 16), "attention_mask": torch.tensor([[1, 1, 1], [0, 0, 0]])}, r"run 1 .* all padding"),
        (torch.full((2, 3, 16), math.inf), r"input of the first block \(layer 0\) is not finite"),
    ],
)
def test_a_batch_that_does_not_fit_is_an_error(batch, message):
    model, _ = pre(layers=2, width=16)
    with pytest.raises(ValueError, match=message):
        probe(model, batch)


@pytest.mark.parametrize(
    "model",
    [nn.Linear(4, 4), nn.Sequential(nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 4)), Stack([])],
    ids=["one", "mlp", "none"],
)
def test_a_model_without_blocks_says_what_was_looked_for(model):
    with pytest.raises(ValueError, match=r"no residual blocks found in .* Looked for .* Name the blocks"):
        probe(model, torch.randn(2, 4))


def test_a_model_made_for_inference_only_is_refused():
    with torch.inference_mode():
        model, x = pre(layers=2, width=16)
    with pytest.raises(ValueError, match="build it outside"):
        probe(model, x)


def test_not_a_model():
    with pytest.raises(TypeError, match=r"needs a torch\.nn\.Module, got dict"):
        probe({}, torch.randn(2, 4))


def test_a_mask_that_fits_no_token_is_not_used_and_said():
    model, x = pre(layers=2, width=16)
    with pytest.warns(UserWarning, match=r"mask does not fit and was not used: its shape is \(4, 5\)"):
        profile = probe(model, {"x": x, "attention_mask": torch.ones(4, 5)})
    np.testing.assert_array_equal(profile.variance, probe(model, x).variance)


def test_the_batch_is_not_written_to():
    x = slot_zero()
    before = x.clone()
    probe(copies(in_place=True), x)
    assert torch.equal(x, before)
    assert not x.requires_grad


def test_a_profile_survives_json():
    model, x = pre(layers=2, width=16)
    profile = probe(model, x, name="mine", lr=0.1)
    again = normkit.Profile.from_dict(json.loads(json.dumps(profile.to_dict())))
    assert again.name == "mine"
    assert again.meta == profile.meta
    np.testing.assert_array_equal(again.gradient, profile.gradient)
