"""Three norms, one function: against torch.nn.LayerNorm, loops written out in torch, and the places where it fails."""

import math
from dataclasses import replace

import numpy as np
import pytest

from normkit.depth import equivalence
from normkit.depth.equivalence import (
    Affine,
    Stack,
    compress,
    crms_norm,
    expand,
    mean_injection,
    pre_crmsnorm,
    pre_rmsnorm,
    random_stack,
    recenter,
    to_rmsnorm,
    verify,
)


def draw(*shape, seed=0, dtype=np.float64):
    return np.random.default_rng(seed).standard_normal(shape).astype(dtype)


# ---- the norm itself ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("d", [2, 3, 32, 1001])
@pytest.mark.parametrize("library", ["numpy", "torch"])
def test_crmsnorm_of_the_compressed_row_is_torchs_layernorm(d, library):
    import torch

    x = 3 * draw(4, 5, d) + 2
    want = torch.nn.LayerNorm(d, elementwise_affine=False, eps=1e-5, dtype=torch.float64)(torch.from_numpy(x)).numpy()
    given = torch.from_numpy(x) if library == "torch" else x
    y = compress(recenter(given))
    assert type(y) is type(given)
    assert tuple(y.shape) == (4, 5, d - 1)
    got = crms_norm(y, eps=1e-5)
    np.testing.assert_allclose(np.asarray(got), want[..., :-1], rtol=0, atol=1e-12)
    np.testing.assert_allclose(np.asarray(expand(got)), want, rtol=0, atol=1e-12)


def test_recenter_and_expand_undo_what_they_should():
    x = draw(7, 9) + 5
    np.testing.assert_allclose(recenter(x), x - x.sum(1, keepdims=True) / 9, rtol=0, atol=1e-14)
    np.testing.assert_allclose(expand(compress(recenter(x))), recenter(x), rtol=0, atol=1e-13)
    np.testing.assert_array_equal(expand(x)[:, :-1], x)
    assert (expand(x).sum(1) == pytest.approx(0, abs=1e-13)) and expand(x).shape == (7, 10)


def test_eps_stands_inside_the_root():
    y = np.array([[3.0, -1.0]])  # the third entry is -2, mean square 14/3
    np.testing.assert_allclose(crms_norm(y, eps=0.5), y / math.sqrt(14 / 3 + 0.5), rtol=1e-15)
    np.testing.assert_array_equal(crms_norm(np.zeros((2, 3))), 0)


def test_gradient_flows_through_all_three():
    import torch

    x = torch.from_numpy(draw(3, 8)).requires_grad_()
    g = torch.from_numpy(draw(3, 8, seed=1))
    want = torch.autograd.grad((torch.nn.functional.layer_norm(x, (8,), eps=1e-5) * g).sum(), x)[0]
    got = torch.autograd.grad((expand(crms_norm(compress(recenter(x)))) * g).sum(), x)[0]
    np.testing.assert_allclose(got.numpy(), want.numpy(), rtol=0, atol=1e-13)


# ---- stacks of matrices ---------------------------------------------------------------------------------------------


def pre_ln_in_torch(stack, inputs):
    """The stack as a plain loop over torch's own layers; layernorm_scaling divides the k-th branch's input by sqrt k."""
    import torch
    from torch.nn.functional import layer_norm, linear

    def t(a):
        return torch.from_numpy(np.asarray(a))

    x = linear(t(inputs), t(stack.embed.weight), t(stack.embed.bias))
    for k, b in enumerate(stack.blocks, 1):
        h = layer_norm(x, x.shape[-1:], t(b.gain), t(b.bias), 1e-5)
        h = h / math.sqrt(k) if stack.placement == "layernorm_scaling" else h
        x = x + linear(
            torch.tanh(linear(h, t(b.reader.weight), t(b.reader.bias))), t(b.writer.weight), t(b.writer.bias)
        )
    x = layer_norm(x, x.shape[-1:], t(stack.gain), t(stack.bias), 1e-5)
    return linear(x, t(stack.head.weight), t(stack.head.bias)).numpy()


@pytest.mark.parametrize("placement", ["pre", "layernorm_scaling"])
def test_three_stacks_compute_one_function(placement):
    stack, x = random_stack(placement=placement, layers=12), draw(20, 8)
    want = pre_ln_in_torch(stack, x)
    assert want.std(0).min() > 0.1  # it depends on the input
    for converted in (stack, pre_rmsnorm(stack), pre_crmsnorm(stack)):
        np.testing.assert_allclose(converted(x), want, rtol=0, atol=1e-12)
    assert max(verify(stack, x).values()) < 1e-12


def test_verify_at_both_precisions():
    x = draw(20, 8)
    fine = verify(random_stack(), x)
    coarse = verify(random_stack(dtype=np.float32), x.astype(np.float32))
    assert sorted(fine) == ["crmsnorm", "rmsnorm"]
    assert max(fine.values()) < 1e-12
    assert 1e-8 < max(coarse.values()) < 1e-4  # float32's eps times the outputs' size and the depth, and not float64's
    x[3, 2] = np.nan
    with pytest.raises(ValueError, match=r"output\[3, 0\] is nan"):
        verify(random_stack(), x)


def test_converted_streams_have_mean_zero_and_one_feature_less():
    stack = random_stack(layers=3, width=16)
    rms, crms = pre_rmsnorm(stack), pre_crmsnorm(stack)
    assert abs(stack.embed(draw(5, 8)).mean(-1)).min() > 1e-3
    for affine in (rms.embed, *(b.writer for b in rms.blocks)):
        x = affine(draw(5, affine.weight.shape[1]))
        np.testing.assert_allclose(x.mean(-1), 0, atol=1e-14)
    assert crms.embed.weight.shape == (15, 8)
    assert crms.blocks[2].reader.weight.shape == (64, 15)
    assert crms.blocks[2].writer.weight.shape == (15, 64)
    assert {b.gain for b in rms.blocks + crms.blocks} | {rms.gain, crms.bias} == {None}


def test_torch_stack_is_the_numpy_stack():
    import torch

    stack, x = random_stack(layers=2), draw(4, 8)

    def convert(part):
        if isinstance(part, np.ndarray):
            return torch.from_numpy(part)
        return type(part)(*map(convert, part)) if hasattr(part, "_fields") else tuple(map(convert, part))

    ends = (convert(getattr(stack, name)) for name in ("embed", "blocks", "gain", "bias", "head"))
    twin = Stack(*ends)
    np.testing.assert_allclose(twin(torch.from_numpy(x)).numpy(), stack(x), rtol=0, atol=1e-13)
    assert max(verify(twin, torch.from_numpy(x)).values()) < 1e-12


@pytest.mark.parametrize("step", ["fold", "recenter"])
def test_each_step_is_needed(step):
    """Leave out one step of the conversion and RMSNorm is another function."""
    stack, x = random_stack(layers=2), draw(20, 8)
    whole = pre_rmsnorm(stack)
    if step == "recenter":
        blocks = [b._replace(writer=old.writer) for b, old in zip(whole.blocks, stack.blocks, strict=True)]
    else:
        blocks = [b._replace(reader=old.reader) for b, old in zip(whole.blocks, stack.blocks, strict=True)]
    wrong = replace(whole, blocks=tuple(blocks))
    assert np.abs(wrong(x) - stack(x)).max() > 0.1


@pytest.mark.parametrize("placement", ["post", "deepnorm", "peri", "none", "scaled_l", "skipinit", "mix"])
def test_other_placements_are_refused(placement):
    stack = random_stack(placement=placement, layers=4)
    assert np.isfinite(stack(draw(3, 8))).all()
    for convert in (pre_rmsnorm, pre_crmsnorm):
        with pytest.raises(ValueError, match=f"placement '{placement}' cannot be converted"):
            convert(stack)


def test_naive_post_ln_conversion_would_be_wrong():
    """Post-LN's gain acts on the stream itself: what is zero-mean before it is not after, so the refusal is needed."""
    import torch

    stack, x = random_stack(placement="post", layers=3), torch.from_numpy(draw(20, 8))

    def run(norm, center):
        h = center(x @ torch.from_numpy(stack.embed.weight).T)
        for b in stack.blocks:
            w1, w2 = torch.from_numpy(b.reader.weight), torch.from_numpy(b.writer.weight)
            h = norm(h + center(torch.tanh(h @ w1.T) @ w2.T), (32,), torch.from_numpy(b.gain), eps=1e-5)
        return h

    def layer_norm(h, shape, gain, eps):
        return torch.nn.functional.layer_norm(h, shape, gain, eps=eps)

    naive = run(torch.nn.functional.rms_norm, lambda h: h - h.mean(-1, keepdim=True))
    assert (naive - run(layer_norm, lambda h: h)).abs().max() > 0.1


# ---- the mean, injected ---------------------------------------------------------------------------------------------


def test_injected_mean_breaks_rmsnorm_before_recentering_and_not_after():
    amounts = np.array([0.0, 0.1, 0.5, 1.0, 3.0, -3.0])
    before, after = mean_injection(amounts, width=512, tokens=64)
    # Rows of variance 1 +- sqrt(2/512) and a difference that is smooth in it: half a percent on the mean over 64.
    np.testing.assert_allclose(before, np.sqrt(2 - 2 / np.sqrt(1 + amounts**2)), rtol=0.01, atol=1e-12)
    assert after.max() < 1e-13
    assert before[4] > 1


# ---- torch models ---------------------------------------------------------------------------------------------------


def scrambled(model, seed=0):
    """Gains, biases and the means of all weights as unlike a fresh model's as a long training could leave them."""
    import torch

    draws = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.3 * torch.randn(parameter.shape, generator=draws, dtype=parameter.dtype) + 0.05)
    return model


@pytest.mark.parametrize("placement", ["pre", "layernorm_scaling"])
@pytest.mark.parametrize(("dtype", "tolerance"), [("float64", 1e-12), ("float32", 1e-4)])
def test_transformer_keeps_its_logits(placement, dtype, tolerance):
    import torch

    from normkit.depth.transformer import Transformer

    model = Transformer(placement, layers=4, norm="layernorm").to(getattr(torch, dtype))
    model = scrambled(model)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    tokens = torch.from_numpy(np.random.default_rng(0).integers(0, 16, (4, 20)))
    converted = to_rmsnorm(model)
    with torch.no_grad():
        want, got = model(tokens), converted(tokens)
    assert want.std() > 0.1
    assert (got - want).abs().max() < tolerance * want.abs().max()
    norms = [m for m in converted.modules() if isinstance(m, torch.nn.LayerNorm | torch.nn.RMSNorm)]
    assert len(norms) == 9  # two a block and the last
    assert all(isinstance(m, torch.nn.RMSNorm) and m.weight is None and m.eps == 1e-5 for m in norms)
    assert converted.norm == "rmsnorm"
    for name, value in model.state_dict().items():  # the original is left alone
        assert torch.equal(value, before[name])


def test_trained_transformer_keeps_its_loss():
    import torch

    from normkit.depth.transformer import Transformer

    model = Transformer("pre", layers=2, norm="layernorm").double()
    tokens = torch.from_numpy(np.random.default_rng(1).integers(0, 16, (8, 12)))
    optimizer = torch.optim.Adam(model.parameters(), 1e-2)
    for _ in range(20):
        loss = torch.nn.functional.cross_entropy(model(tokens).flatten(0, 1), tokens.flatten())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    converted = to_rmsnorm(model)
    assert model.final.weight.std() > 1e-3  # gains were trained
    np.testing.assert_allclose(converted(tokens).detach(), model(tokens).detach(), rtol=0, atol=1e-12)
    converted(tokens).square().mean().backward()  # and it can be trained on
    assert all(p.grad is not None and p.grad.isfinite().all() for p in converted.parameters())


def test_digit_net_keeps_its_logits():
    import torch

    from normkit.depth.transformer import DigitNet

    model = scrambled(DigitNet("pre", layers=3, norm="layernorm").double())
    images = torch.from_numpy(draw(6, 64))
    want = model(images).detach()
    assert want.std() > 0.1
    np.testing.assert_allclose(to_rmsnorm(model)(images).detach(), want, rtol=0, atol=1e-12 * float(want.abs().max()))


@pytest.mark.parametrize("placement", ["post", "deepnorm", "peri", "none", "scaled_sqrt_l", "mix"])
def test_transformers_of_other_placements_are_refused(placement):
    from normkit.depth.transformer import Transformer

    with pytest.raises(ValueError, match="cannot be converted"):
        to_rmsnorm(Transformer(placement, layers=4, norm="layernorm"))


# ---- bad input ------------------------------------------------------------------------------------------------------


def with_block(**changes):
    stack = random_stack(layers=1, width=4)
    return replace(stack, blocks=(stack.blocks[0]._replace(**changes),))


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: compress(np.ones((2, 4))), "mean zero"),
        (lambda: compress(np.full((2, 4), np.nan)), "mean zero"),
        (lambda: compress(np.zeros((2, 1))), "two entries"),
        (lambda: crms_norm(np.ones(3), eps=-1.0), "eps"),
        (lambda: crms_norm(np.ones((2, 0))), "empty"),
        (lambda: recenter(np.float64(1)), "axis"),
        (lambda: random_stack(width=1), "width"),
        (lambda: random_stack(layers=0), "layers"),
        (lambda: random_stack(placement="prre"), "did you mean 'pre'"),
        (lambda: replace(random_stack(), norm="batchnorm"), "unknown norm"),
        (lambda: replace(random_stack(), gain=None), "both gain and bias"),
        (lambda: replace(pre_rmsnorm(random_stack()), bias=np.ones(32)), "neither gain and bias"),
        (lambda: with_block(gain=np.ones(5)), r"blocks\[0\].gain must have shape \(4,\)"),
        (lambda: with_block(bias=np.full(4, np.inf)), r"blocks\[0\].bias must be finite"),
        (lambda: with_block(writer=Affine(np.ones((5, 64)), np.ones(5))), r"blocks\[0\].writer.weight"),
        (lambda: pre_rmsnorm(pre_rmsnorm(random_stack())), "has rmsnorm"),
        (lambda: mean_injection([np.nan]), "amounts"),
    ],
)
def test_bad_input_is_named(call, message):
    with pytest.raises(ValueError, match=message):
        call()


def test_models_that_have_no_layernorm_or_are_not_ours():
    import torch

    from normkit.depth.transformer import Transformer

    with pytest.raises(ValueError, match="no LayerNorm"):
        to_rmsnorm(Transformer("pre", layers=1))
    with pytest.raises(TypeError, match="Linear"):
        to_rmsnorm(torch.nn.Linear(3, 3))
    with pytest.raises(TypeError, match="floating"):
        crms_norm(np.ones((2, 3), dtype=int))


def test_lazy_home():
    import normkit.depth

    assert normkit.depth.equivalence is equivalence
