"""Progressive batch norm against torch's norms, fusing against the unfused nets, SLAB's attention against plain loops."""

import copy
import math

import pytest

torch = pytest.importorskip("torch")
from torch import nn  # noqa: E402

from normkit.attention import slab  # noqa: E402
from normkit.attention.slab import (  # noqa: E402
    DigitsModel,
    ProgressiveRepBatchNorm,
    RepBatchNorm,
    SimplifiedLinearAttention,
    fuse,
    train_digits,
)


def draw(*shape, seed=0, dtype=torch.float32):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(dtype)


def randomized(module, seed=1):
    """Any weights, and running statistics that a batch norm could have."""
    draws = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for p in module.parameters():
            p.normal_(generator=draws)
        for name, b in module.named_buffers():
            if name.endswith("running_mean"):
                b.normal_(generator=draws)
            elif name.endswith("running_var"):
                b.uniform_(0.1, 3, generator=draws)
    return module


def test_repbn_is_batch_norm_and_a_skip():
    x = 3 * draw(4, 5, 6) + 1
    norm = randomized(RepBatchNorm(6))
    rows = x.reshape(-1, 6)
    mean, var = rows.mean(0), rows.var(0, unbiased=False)
    wanted = (x - mean) / (var + 1e-5).sqrt() * norm.bn.weight + norm.bn.bias + norm.eta * x
    old = norm.bn.running_mean.clone()
    torch.testing.assert_close(norm(x), wanted)
    torch.testing.assert_close(norm.bn.running_mean, 0.9 * old + 0.1 * mean)
    assert RepBatchNorm(6).eta.item() == 1
    for wrong in (x[..., :5], x[0, 0]):
        with pytest.raises(ValueError, match=r"\(\.\.\., 6\)"):
            norm(wrong)


@pytest.mark.parametrize("warmup", [0, 3])
def test_gamma_falls_linearly_and_mixes_the_two(warmup):
    norm = ProgressiveRepBatchNorm(4, steps=5, warmup=warmup)
    norm.repbn.eta.data.fill_(0.3)
    x, seen = draw(8, 4), []
    for _ in range(warmup + 8):
        seen.append(norm.gamma)
        twin, gamma = copy.deepcopy(norm), norm.gamma
        torch.testing.assert_close(norm(x), gamma * twin.ln(x) + (1 - gamma) * twin.repbn(x))
    assert seen == pytest.approx([1.0] * warmup + [1, 0.8, 0.6, 0.4, 0.2, 0, 0, 0])
    assert norm.repbn.bn.num_batches_tracked == warmup + 8  # the statistics are gathered from the first step on


def test_first_step_is_layer_norm_and_evaluation_takes_no_step():
    norm, x = ProgressiveRepBatchNorm(6, steps=10), draw(3, 7, 6)
    torch.testing.assert_close(norm(x), nn.functional.layer_norm(x, (6,)))
    norm.eval()
    assert norm.gamma == pytest.approx(0.9)
    before = norm(x)
    assert torch.equal(norm(x), before)
    assert norm.gamma == pytest.approx(0.9)
    wanted = 0.9 * norm.ln(x) + 0.1 * norm.repbn(x)
    torch.testing.assert_close(before, wanted)
    again = ProgressiveRepBatchNorm(6, steps=10).eval()
    again.load_state_dict(norm.state_dict())
    assert torch.equal(again(x), before)
    for arguments in ((6, 0), (6, 10, -1)):
        with pytest.raises(ValueError):
            ProgressiveRepBatchNorm(*arguments[:2], warmup=(*arguments, 0)[2])


def test_gradients_of_the_mixture():
    norm = randomized(ProgressiveRepBatchNorm(3, steps=4)).double()
    for step in (0, 2, 4):

        def forward(x, step=step):
            norm.step.fill_(step)
            return norm(x)

        assert torch.autograd.gradcheck(forward, draw(5, 3, dtype=torch.float64).requires_grad_())


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("kind", ["bn", "plain bn", "repbn", "prepbn"])
def test_fused_layer_is_the_same_function(kind, bias):
    norm = {
        "bn": lambda: nn.BatchNorm1d(6),
        "plain bn": lambda: nn.BatchNorm1d(6, affine=False),
        "repbn": lambda: RepBatchNorm(6),
        "prepbn": lambda: ProgressiveRepBatchNorm(6, steps=2),
    }[kind]()
    randomized(norm).eval()
    if kind == "prepbn":
        norm.step.fill_(2)
    linear, x = randomized(nn.Linear(6, 9, bias=bias), seed=2), draw(50, 6, seed=3)
    wanted = copy.deepcopy(linear).double()(copy.deepcopy(norm).double()(x.double()))
    got = fuse(norm, linear)
    assert got.weight.dtype == torch.float32
    assert got.bias.shape == (9,)
    # one rounding of each weight and sums of 7 products: a few 6e-8 of the largest terms
    torch.testing.assert_close(got(x), wanted.float(), rtol=1e-5, atol=1e-5)
    assert (linear(x) - got(x)).abs().max() > 0.1  # not the layer that went in
    torch.testing.assert_close(fuse(norm.double(), linear.double())(x.double()), wanted, rtol=1e-12, atol=1e-12)


def test_what_cannot_be_fused_is_refused():
    linear = nn.Linear(6, 2)
    with pytest.raises(ValueError, match="gamma = 1"):
        fuse(ProgressiveRepBatchNorm(6, steps=3), linear)
    with pytest.raises(ValueError, match="width 5"):
        fuse(nn.BatchNorm1d(5), linear)
    with pytest.raises(ValueError, match="running statistics"):
        fuse(nn.BatchNorm1d(6, track_running_stats=False), linear)
    for norm, layer in ((nn.LayerNorm(6), linear), (nn.BatchNorm1d(6), nn.Conv1d(6, 2, 1))):
        with pytest.raises(TypeError, match=r"batch norm and an nn\.Linear"):
            fuse(norm, layer)


def by_hand(module, x):
    """SLAB's attention for one sequence and head at a time; the convolution as a loop over neighbors."""
    batch, tokens, width = x.shape
    size, grid = width // module.heads, module.grid if len(module.grid) == 2 else (1, *module.grid)
    reach = module.near.kernel_size[-1] // 2
    kernel = module.near.weight.reshape(size, -1, 2 * reach + 1)
    up = kernel.shape[1] // 2
    out = torch.zeros(batch, tokens, width)
    for b in range(batch):
        q, k, v = module.qkv(x[b]).split(width, -1)
        q, k = q.relu(), (k + module.position).relu()
        for h in range(module.heads):
            part = slice(h * size, (h + 1) * size)
            scores = q[:, part] @ k[:, part].T
            alike = scores.sum(-1, keepdim=True) == 0  # nothing matches: all alike
            scores = torch.where(alike, 1.0, scores)
            far = scores @ v[:, part] / scores.sum(-1, keepdim=True)
            for t in range(tokens):
                row, column = divmod(t, grid[1])
                near = module.near.bias.clone()
                for i in range(-up, up + 1):
                    for j in range(-reach, reach + 1):
                        if 0 <= row + i < grid[0] and 0 <= column + j < grid[1]:
                            there = (row + i) * grid[1] + column + j
                            near = near + kernel[:, i + up, j + reach] * v[there, part]
                out[b, t, part] = far[t] + near
    return module.out(out)


@pytest.mark.parametrize(("grid", "kernel"), [((3, 4), 3), ((2, 6), 5), ((12,), 5), ((12,), 1)])
def test_simplified_attention_by_hand(grid, kernel):
    module = randomized(SimplifiedLinearAttention(8, 2, grid, kernel=kernel))
    x = draw(2, 12, 8)
    with torch.no_grad():
        torch.testing.assert_close(module(x), by_hand(module, x), rtol=1e-4, atol=1e-5)
    with pytest.raises(ValueError, match="12 tokens"):
        module(x[:, :11])


def test_simplified_attention_refuses_even_kernels_and_deep_grids():
    for options in ({"grid": (4, 4), "kernel": 4}, {"grid": (2, 2, 2)}):
        with pytest.raises(ValueError, match="odd"):
            SimplifiedLinearAttention(8, 2, **options)


def test_patches_are_two_by_two_blocks_of_the_image():
    model = DigitsModel()
    seen = []
    model.embed.register_forward_hook(lambda module, args, out: seen.append(args[0]))
    image = torch.arange(64.0)
    model.eval()(image[None])
    square = image.reshape(8, 8)
    assert seen[0][0, 0].tolist() == [0, 1, 8, 9]
    assert seen[0][0, 6].tolist() == square[2:4, 4:6].flatten().tolist()


@pytest.mark.parametrize("norm", ["batchnorm", "prepbn"])
@pytest.mark.parametrize("attention", slab.ATTENTIONS)
def test_a_trained_model_without_its_norms_answers_the_same(norm, attention):
    found = train_digits(norm, attention=attention, lr=1e-2, steps=40)
    assert found.loss < 0.9 * math.log(10)
    assert found.accuracy > 0.3
    fused, x = found.model.fused(), draw(20, 64)
    assert not any(isinstance(m, nn.BatchNorm1d | nn.LayerNorm) for m in fused.modules())
    assert any(isinstance(m, nn.BatchNorm1d) for m in found.model.modules())  # the model itself keeps them
    with torch.no_grad():
        wanted = found.model(x)
        torch.testing.assert_close(fused(x), wanted, rtol=0, atol=1e-5 * wanted.abs().max().item())
        changed = copy.deepcopy(found.model)
        changed.norm = nn.Identity()
        assert (changed(x) - wanted).abs().max() > 0.1  # the norms were doing something


def test_training_repeats_and_layer_norm_cannot_be_fused():
    first, second = (train_digits("layernorm", steps=5) for _ in range(2))
    assert first.loss == second.loss != train_digits("layernorm", steps=5, seed=1).loss
    with pytest.raises(TypeError):
        first.model.fused()
    with pytest.raises(ValueError, match="gamma"):
        DigitsModel("prepbn").fused()
    for wrong in ({"norm": "groupnorm"}, {"attention": "none"}, {"lr": -1.0}, {"steps": 0}):
        with pytest.raises(ValueError):
            train_digits(**wrong)


def test_norm_of_flat_rows_in_double_and_bfloat16():
    x = draw(30, 6, dtype=torch.float64)
    norm = randomized(ProgressiveRepBatchNorm(6, steps=4)).double()
    norm.step.fill_(1)
    wanted = 0.75 * norm.ln(x) + 0.25 * (
        nn.functional.batch_norm(x, None, None, norm.repbn.bn.weight, norm.repbn.bn.bias, True)
    )
    torch.testing.assert_close(norm(x), wanted + 0.25 * norm.repbn.eta * x, rtol=1e-10, atol=1e-12)
    norm.step.fill_(1)
    low = copy.deepcopy(norm).bfloat16()
    got = low(x.bfloat16())
    assert got.dtype == torch.bfloat16
    # 8 bits of mantissa in x, in the weights and in each of about five operations on numbers of size 1 to 5
    torch.testing.assert_close(got.double(), wanted + 0.25 * norm.repbn.eta * x, rtol=0.1, atol=0.15)


def test_gradient_of_simplified_attention():
    module = randomized(SimplifiedLinearAttention(4, 2, (2, 2), kernel=3)).double()
    x = draw(2, 4, 4, dtype=torch.float64).requires_grad_()
    parameters = [p.detach().requires_grad_() for p in module.parameters()]
    names = [n for n, _ in module.named_parameters()]

    def forward(x, *values):
        return torch.func.functional_call(module, dict(zip(names, values, strict=True)), (x,))

    assert torch.autograd.gradcheck(forward, (x, *parameters))


def test_hidden_tokens_reach_others_by_the_convolution_alone():
    """The mask hides keys of the attention; SLAB's local branch has no mask."""
    module = randomized(SimplifiedLinearAttention(8, 2, (12,), kernel=3))
    x, seen = draw(1, 12, 8), torch.arange(12)[None] != 6
    changed = x.clone()
    changed[:, 6] += 1
    with torch.no_grad():
        difference = (module(x, seen) - module(changed, seen)).abs().amax((0, -1))
    assert (difference[[0, 1, 2, 3, 4, 8, 9, 10, 11]] < 1e-5).all()
    assert (difference[5:8] > 1e-3).all()
