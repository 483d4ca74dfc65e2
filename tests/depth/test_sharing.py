"""Shared blocks against torch's own layers, their gradients against separate copies, and three short trainings."""

import math

import pytest

torch = pytest.importorskip("torch")
from torch import nn  # noqa: E402

from normkit.depth import sharing  # noqa: E402

SIZES = {"layers": 3, "width": 6, "hidden": 10}


def disturbed(arm, seed=0, **sizes):
    """A stack in float64 whose every parameter, also each depth's norm, has a value of its own."""
    stack = sharing.Stack(arm, **(sizes or SIZES), seed=seed).double()
    draws = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for p in stack.parameters():
            p += 0.3 * torch.randn(p.shape, generator=draws, dtype=p.dtype)
    return stack


def normal(*shape, seed=1):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def plain(stack):
    """The same net from torch's modules, one set of modules a depth, nothing shared; and their parameters' names."""
    layers = []
    for k in range(stack.layers):
        norm = nn.LayerNorm(stack.width, eps=sharing.EPS).double()
        first, second = (nn.Linear(*w.shape[:0:-1]).double() for w in (stack.w1, stack.w2))
        layer = {"gain": norm.weight, "bias": norm.bias, "w1": first.weight, "b1": first.bias}
        layer |= {"w2": second.weight, "b2": second.bias}
        with torch.no_grad():
            for name, p in layer.items():
                own = getattr(stack, name)
                p.copy_(own[min(k, len(own) - 1)])
        layers.append((nn.Sequential(norm, first, nn.ReLU(), second), layer))
    return layers


def run(layers, x):
    for branch, _ in layers:
        x = x + branch(x)
    return x


@pytest.mark.parametrize("arm", sharing.ARMS)
def test_forward_and_gradients_are_those_of_separate_modules(arm):
    stack, x, g = disturbed(arm), normal(5, 6), normal(5, 6, seed=2)
    layers = plain(stack)
    expected = run(layers, x)
    torch.testing.assert_close(stack(x), expected, rtol=1e-12, atol=1e-12)
    (expected * g).sum().backward()
    (stack(x) * g).sum().backward()
    by_depth = sharing.gradient_by_depth(stack, x, g)
    for name, p in stack.named_parameters():
        copies = torch.stack([layer[name].grad for _, layer in layers])
        torch.testing.assert_close(by_depth[name], copies, rtol=1e-10, atol=1e-12)
        total = copies if len(p) > 1 else copies.sum(0, keepdim=True)  # the gradient of what is shared: the sum
        torch.testing.assert_close(p.grad, total, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("arm", sharing.ARMS)
def test_parameter_count_is_what_torch_counts(arm):
    for sizes in (SIZES, {"layers": 1, "width": 2, "hidden": 3}, {"layers": 8, "width": 32, "hidden": 64}):
        stack = sharing.Stack(arm, **sizes)
        assert sharing.parameter_count(arm, **sizes) == sum(p.numel() for p in stack.parameters())


def test_counts_of_the_usual_sizes():
    independent, shared, individual = map(sharing.parameter_count, sharing.ARMS)
    assert (independent, shared, individual) == (34_048, 4_256, 4_704)
    assert individual - shared == 2 * 32 * 7  # gain and bias for seven more depths


def test_individual_norms_start_as_the_shared_one_to_the_bit():
    x = normal(7, 6).float()
    independent, shared, individual = (sharing.Stack(arm, **SIZES, seed=4) for arm in sharing.ARMS)
    assert torch.equal(shared(x), individual(x))
    assert torch.equal(independent.w1[0], shared.w1[0])
    assert not torch.allclose(independent(x), shared(x))
    with torch.no_grad():
        individual.gain[1] *= 2
    assert not torch.allclose(shared(x), individual(x))
    deeper = sharing.Stack("independent", **SIZES | {"layers": 5}, seed=4)
    assert torch.equal(deeper.w2[:3], independent.w2)  # a block does not depend on how many there are
    assert not torch.equal(sharing.Stack("shared", **SIZES, seed=5).w1, shared.w1)


def test_independent_blocks_that_are_equal_are_the_shared_stack():
    shared, x = disturbed("shared"), normal(4, 6)
    independent = sharing.Stack("independent", **SIZES).double()
    with torch.no_grad():
        for name, p in independent.named_parameters():
            p.copy_(getattr(shared, name).expand(p.shape))
    torch.testing.assert_close(independent(x), shared(x), rtol=0, atol=0)
    # One step on the sum of the gradients keeps them equal; a step on each one's own tears them apart.
    (independent(x) ** 2).sum().backward()
    assert not torch.allclose(independent.w1.grad[0], independent.w1.grad[1])


@pytest.fixture(scope="module")
def trained():
    return [[sharing.train_sharing(arm, seed=seed, steps=200) for arm in sharing.ARMS] for seed in range(2)]


def test_sharing_costs_a_little_and_saves_much(trained):
    for independent, shared, individual in trained:
        for got in (independent, shared, individual):
            assert got.loss < 1.3  # all learn: they start at 2.3 to 2.8, and guessing costs about log 8 = 2.08
            assert got.start > math.log(8)
            assert got.parameters == sharing.parameter_count(got.arm)
        # Four seeds of 500 steps: 0.05 to 0.12 nats apart, with test sets of 4096 (standard error of a paired
        # difference below 0.01). Early on the gap is wider.
        assert 0 < shared.loss - independent.loss < 0.4
        assert independent.parameters > 7 * individual.parameters


def test_individual_norms_show_no_gain_here(trained):
    """The card's honest result: they specialize, and the loss does not tell (-0.007 to +0.004 in four seeds)."""
    for _, shared, individual in trained:
        assert shared.start == individual.start
        assert abs(shared.loss - individual.loss) < 0.05
        assert shared.norm_spread == 0
        assert individual.norm_spread > 0.02  # they could have stayed equal: every gain started at 1


def test_training_is_reproducible():
    a, b, c = (sharing.train_sharing("shared", seed=seed, steps=5, layers=2) for seed in (6, 6, 7))
    assert a == b
    assert a.loss != c.loss
    assert a.loss != a.start


def test_bad_input_is_an_error():
    with pytest.raises(ValueError, match="did you mean 'shared'"):
        sharing.parameter_count("share")
    with pytest.raises(ValueError, match="layers must be at least 1"):
        sharing.Stack("shared", layers=0)
    with pytest.raises(TypeError, match="hidden must be an integer"):
        sharing.parameter_count("shared", hidden=2.5)
    with pytest.raises(ValueError, match="steps"):
        sharing.train_sharing("shared", steps=0)
    stack, x = sharing.Stack("shared", **SIZES), torch.ones(2, 6)
    with pytest.raises(ValueError, match="x must have shape"):
        stack(torch.ones(2, 5))
    with pytest.raises(ValueError, match="cotangent must have the shape"):
        sharing.gradient_by_depth(stack, x, torch.ones(6))
    broken = x * math.nan
    with pytest.raises(ValueError, match="x must be finite"):
        sharing.gradient_by_depth(stack, broken, x)
    with pytest.raises(ValueError, match="cotangent must be finite"):
        sharing.gradient_by_depth(stack, x, broken)
