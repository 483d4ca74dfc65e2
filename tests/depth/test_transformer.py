"""The small networks against the formulas of the placements written out, their weights' law, causality and errors."""

import math

import numpy as np
import pytest

torch = pytest.importorskip("torch")
from torch.nn import functional as F  # noqa: E402

from normkit.depth import PLACEMENTS  # noqa: E402
from normkit.depth.transformer import DigitNet, Transformer, generator  # noqa: E402
from normkit.files import digits  # noqa: E402

# Six blocks: floor(6/4) = 1 block is post in Mix-LN; counted as twelve additions, three would be, a block and a half.
SIZES = {"vocabulary": 7, "context": 9, "layers": 6, "width": 8, "heads": 2}
BRANCHES = {"attention": ("query", "key", "value", "out"), "mlp": ("up", "down")}


def disturbed(model, seed=3):
    """The model in float64 with every parameter moved: no gain is 1, no scalar and no matrix is at its start."""
    draws = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for p in model.double().parameters():
            p += 0.2 * torch.randn(p.shape, generator=draws, dtype=p.dtype)
    return model


def some_tokens(batch=3, count=9, vocabulary=7, seed=0):
    return torch.randint(vocabulary, (batch, count), generator=torch.Generator().manual_seed(seed))


def normalize(x, gain, bias=None):
    if bias is not None:
        centered = x - x.mean(-1, keepdim=True)
        return centered / torch.sqrt((centered**2).mean(-1, keepdim=True) + 1e-5) * gain + bias
    return x / torch.sqrt((x**2).mean(-1, keepdim=True) + 1e-6) * gain


def attend(x, w, heads, causal):
    """Head by head and query by query, from the definition."""
    size = x.shape[-1] // heads
    x = x + w.get("before_in", 0)
    q, k, v = (x @ w[name].T for name in ("query", "key", "value"))
    mixed = torch.zeros_like(x)
    for h in range(heads):
        part = slice(h * size, (h + 1) * size)
        for t in range(x.shape[1]):
            seen = t + 1 if causal else x.shape[1]
            scores = torch.einsum("bd,bsd->bs", q[:, t, part], k[:, :seen, part]) / math.sqrt(size)
            odds = torch.exp(scores - scores.amax(-1, keepdim=True))
            mixed[:, t, part] = torch.einsum("bs,bsd->bd", odds / odds.sum(-1, keepdim=True), v[:, :seen, part])
    return (mixed + w.get("before_out", 0)) @ w["out"].T


def mlp(x, w):
    h = (x + w.get("before_up", 0)) @ w["up"].T + w.get("before_gelu", 0)
    return (h * (1 + torch.erf(h / math.sqrt(2))) / 2 + w.get("before_down", 0)) @ w["down"].T


def add(placement, x, f, norm, output_norm, scale, block, blocks, additions):
    """The formulas; l counts blocks, `additions` is what the scaled placements divide by."""
    l = block + 1  # noqa: E741
    if placement == "mix":
        placement = "post" if l <= math.floor(blocks / 4) else "pre"
    formulas = {
        "none": lambda: x + f(x),
        "pre": lambda: x + f(norm(x)),
        "post": lambda: norm(x + f(x)),
        "peri": lambda: x + output_norm(f(norm(x))),
        "layernorm_scaling": lambda: x + f(norm(x) / math.sqrt(l)),
        "deepnorm": lambda: norm((2 * blocks) ** 0.25 * x + f(x)),
        "scaled_sqrt_l": lambda: x + f(x) / math.sqrt(additions),
        "scaled_l": lambda: x + f(x) / additions,
        "skipinit": lambda: x + scale * f(x),
        "fixup": lambda: x + scale * f(x),
    }
    return formulas[placement]()


def plain_sublayer(state, prefix, placement, x, block, blocks, additions, heads=0, causal=True):
    """One addition; attention where heads are given."""
    names = BRANCHES["attention" if heads else "mlp"]
    w = {name: state[f"{prefix}branch.{name}.weight"] for name in names}
    if placement == "fixup":
        scalars = ("before_in", "before_out") if heads else ("before_up", "before_gelu", "before_down")
        w |= {name: state[f"{prefix}branch.{name}.bias"] for name in scalars}
    norm, output_norm = (
        lambda y, key=key: normalize(y, state[f"{prefix}{key}.weight"], state.get(f"{prefix}{key}.bias"))
        for key in ("norm", "output_norm")
    )
    branch = (lambda y: attend(y, w, heads, causal)) if heads else (lambda y: mlp(y, w))
    return add(placement, x, branch, norm, output_norm, state.get(f"{prefix}scale"), block, blocks, additions)


def plain_end(state, placement, x):
    if placement not in ("post", "deepnorm"):
        x = normalize(x, state["final.weight"], state.get("final.bias"))
    return x @ state["head.weight"].T


def plain_transformer(state, placement, tokens, layers, heads, causal):
    x = state["token.weight"][tokens] + state["position.weight"][: tokens.shape[1]]
    for i in range(layers):
        for part, h in enumerate((heads, 0)):
            prefix = f"blocks.{i}.parts.{part}."
            x = plain_sublayer(state, prefix, placement, x, i, layers, 2 * layers, h, causal)
    return plain_end(state, placement, x)


@pytest.mark.parametrize("norm", ["rmsnorm", "layernorm"])
@pytest.mark.parametrize("placement", PLACEMENTS)
def test_transformer_is_its_formula(placement, norm):
    model = disturbed(Transformer(placement, norm=norm, **SIZES))
    tokens = some_tokens()
    expected = plain_transformer(model.state_dict(), placement, tokens, SIZES["layers"], SIZES["heads"], True)
    assert expected.shape == (3, 9, 7) and expected.std() > 0.1
    # float64, a few hundred roundings of numbers of size 1 to 100
    torch.testing.assert_close(model(tokens), expected, rtol=0, atol=1e-10)


@pytest.mark.parametrize(("heads", "causal", "count"), [(1, True, 9), (4, True, 5), (2, False, 9), (8, False, 1)])
def test_heads_masks_and_short_inputs(heads, causal, count):
    model = disturbed(Transformer("pre", causal=causal, **{**SIZES, "layers": 2, "heads": heads}))
    tokens = some_tokens(count=count)
    expected = plain_transformer(model.state_dict(), "pre", tokens, 2, heads, causal)
    torch.testing.assert_close(model(tokens), expected, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("norm", ["rmsnorm", "layernorm"])
@pytest.mark.parametrize("placement", PLACEMENTS)
def test_digitnet_is_its_formula(placement, norm):
    model = disturbed(DigitNet(placement, layers=6, width=8, norm=norm))
    images = torch.tensor(digits()[0][:20])
    state = model.state_dict()
    x = images @ state["first.weight"].T
    for i in range(6):
        x = plain_sublayer(state, f"blocks.{i}.", placement, x, i, 6, additions=6)  # a block is one addition here
    expected = plain_end(state, placement, x)
    assert expected.shape == (20, 10)
    torch.testing.assert_close(model(images), expected, rtol=0, atol=1e-10)


def test_blocks_count_for_lns_and_mix():
    x = torch.randn(2, 5, 8, generator=torch.Generator().manual_seed(0))
    for i, block in enumerate(Transformer("layernorm_scaling", **SIZES).blocks):
        for part in block.parts:
            seen = []
            part.branch.register_forward_pre_hook(lambda _, args, seen=seen: seen.append(args[0]))
            part(x)
            # mean square of N(x)/sqrt(l); eps is 1e-6 of it and float32's rounding less
            assert seen[0].square().mean().item() == pytest.approx(1 / (i + 1), rel=1e-5)
    normalized = [
        all(part(x).square().mean(-1).allclose(torch.ones(2, 5), rtol=1e-5) for part in block.parts)
        for block in Transformer("mix", **SIZES).blocks
    ]
    assert normalized == [True] + [False] * 5


@pytest.mark.parametrize(
    ("placement", "factor"), [("scaled_sqrt_l", 12**-0.5), ("scaled_l", 1 / 12), ("skipinit", 0.0)]
)
def test_additions_count_for_the_scaled_placements(placement, factor):
    x = torch.randn(2, 5, 8, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    for block in Transformer(placement, **SIZES).double().blocks:
        for part in block.parts:
            assert part.branch(x).std() > 0.05
            torch.testing.assert_close(part(x) - x, factor * part.branch(x), rtol=1e-12, atol=1e-12)


def test_deepnorm_weights_are_betas_times_the_usual_ones():
    usual, scaled = (Transformer(p, **SIZES).state_dict() for p in ("post", "deepnorm"))
    assert usual.keys() == scaled.keys()
    beta = (8 * SIZES["layers"]) ** -0.25
    changed = {key.split(".")[-2] for key in usual if not torch.equal(usual[key], scaled[key])}
    assert changed == {"value", "out", "up", "down"}
    for key, weight in usual.items():
        factor = beta if key.split(".")[-2] in changed else 1.0
        torch.testing.assert_close(scaled[key], factor * weight, rtol=1e-6, atol=0)  # a rounding or two in float32


def test_fixup_starts_with_zero_last_matrices_and_counts_additions():
    usual, fixup = (Transformer(p, **SIZES).state_dict() for p in ("none", "fixup"))
    factors = {"value": 12**-0.5, "up": 12**-0.5, "out": 0.0, "down": 0.0}  # L^(-1/(2m-2)), m = 2 matrices, L = 12
    for key, weight in usual.items():
        torch.testing.assert_close(fixup[key], factors.get(key.split(".")[-2], 1.0) * weight, rtol=1e-6, atol=0)
    assert all(v == 1 for key, v in fixup.items() if key.endswith("scale"))
    assert all(v == 0 for key, v in fixup.items() if key.endswith("bias"))
    assert sum(key.endswith("bias") for key in fixup) == 5 * SIZES["layers"]  # 2 in attention, 3 in the MLP
    net, start = Transformer("fixup", **SIZES), Transformer("skipinit", **SIZES)
    # both are the identity at the start, with the same embeddings and head
    tokens = some_tokens()
    assert torch.equal(net(tokens), net.head(net.final(net.embed(tokens))))
    assert torch.equal(net(tokens), start(tokens))


def test_matrices_are_normal_with_variance_one_over_fan_in():
    z = {}
    for key, w in Transformer("pre", vocabulary=64, layers=2, width=64, heads=2).state_dict().items():
        if w.ndim == 2:
            z[key] = w.double().flatten() * (2**0.5 if key.startswith(("token", "position")) else w.shape[1] ** 0.5)
    assert len(z) == 2 + 2 * 6 + 1
    for key, sample in z.items():
        n = len(sample)  # sd of the mean n^-1/2, of the mean square (2/n)^1/2, of the fourth moment (96/n)^1/2
        for power, expected, sd in ((1, 0, 1), (2, 1, 2), (4, 3, 96)):
            assert (sample**power).mean().item() == pytest.approx(expected, abs=5 * (sd / n) ** 0.5), (key, power)
    for a in z:
        for b in z:
            if a < b:  # no two matrices share their draws: correlation has sd n^-1/2
                n = min(len(z[a]), len(z[b]))
                assert abs((z[a][:n] * z[b][:n]).mean().item()) < 5 / n**0.5, (a, b)


def test_stream_enters_with_variance_one_also_when_the_tables_have_one_size():
    model = Transformer("pre", vocabulary=16, context=16, layers=1, width=2048)
    tokens = torch.arange(16)[:, None].expand(16, 16)
    # The two tables' mean squares have sd 0.5 (2 / (16 * 2048))^1/2 = 0.004 each, their means' product adds 0.0014.
    # Over all pairs; equal tables would give 1 + 1/16.
    assert model.embed(tokens).square().mean().item() == pytest.approx(1, abs=5 * 0.006)
    # On the diagonal, token i at position i: sd (2 / (16 * 2048))^1/2; equal tables would give 2.
    assert model.embed(torch.arange(16)).square().mean().item() == pytest.approx(1, abs=5 * 0.008)


@pytest.mark.parametrize("placement", ["pre", "post", "peri", "skipinit"])
@pytest.mark.parametrize("make", [Transformer, DigitNet])
def test_a_block_starts_the_same_whatever_the_depth(make, placement):
    short, long = (make(placement, layers=n).state_dict() for n in (2, 5))
    assert short.keys() < long.keys()
    assert all(torch.equal(short[key], long[key]) for key in short)
    matrices = [v for key, v in long.items() if key.endswith(("up.weight", "query.weight"))]
    assert not any(torch.equal(a, b) for i, a in enumerate(matrices) for b in matrices[:i] if a.shape == b.shape)


@pytest.mark.parametrize("make", [Transformer, DigitNet])
def test_only_the_seed_decides(make):
    torch.manual_seed(1)
    first = make("pre", layers=2, seed=4).state_dict()
    torch.manual_seed(2)
    again, other = make("pre", layers=2, seed=4).state_dict(), make("pre", layers=2, seed=5).state_dict()
    assert all(torch.equal(first[key], again[key]) for key in first)
    assert not any(torch.equal(first[key], other[key]) for key in first if first[key].ndim == 2)
    a, b, c = (torch.rand(4, generator=generator(*path)) for path in ((0, "a", 1), (0, "a", 1), (0, "a", 2)))
    assert torch.equal(a, b) and not torch.equal(a, c)


@pytest.mark.parametrize("make", [Transformer, DigitNet])
def test_torchs_own_random_stream_is_left_alone(make):
    """A script's own draws must not depend on whether it built, or converted, one of these nets before."""
    from normkit.depth.equivalence import to_rmsnorm

    before = torch.get_rng_state()
    to_rmsnorm(make("pre", layers=2, norm="layernorm"))
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize("placement", ["pre", "deepnorm", "mix"])
def test_no_logit_depends_on_a_later_token(placement):
    model = disturbed(Transformer(placement, **SIZES))
    tokens = some_tokens(batch=1)
    logits = model(tokens)
    for t in range(9):
        changed = tokens.clone()
        changed[0, t] = (changed[0, t] + 1) % 7
        change = (model(changed) - logits).abs().amax((0, 2))
        assert (change[:t] <= 1e-12).all()  # rounding in float64; a leak would be as large as what follows
        assert (change[t:] > 1e-6).all()
    both_ways = disturbed(Transformer(placement, causal=False, **SIZES))
    assert ((both_ways(changed) - both_ways(tokens)).abs().amax((0, 2)) > 1e-6).all()


@pytest.mark.parametrize("make", [Transformer, DigitNet])
@pytest.mark.parametrize("placement", PLACEMENTS)
def test_post_and_deepnorm_have_no_norm_at_the_end(make, placement):
    keys = make(placement, layers=2).state_dict()
    assert ("final.weight" in keys) == (placement not in ("post", "deepnorm"))
    assert len(make(placement, layers=3).blocks) == 3
    inside = [key for key in keys if key.startswith("blocks.") and "norm.weight" in key]
    branches = 4 if make is Transformer else 2
    wanted = {"none": 0, "scaled_sqrt_l": 0, "scaled_l": 0, "skipinit": 0, "fixup": 0, "peri": 2}.get(placement, 1)
    assert len(inside) == wanted * branches
    scalars = [v for key, v in keys.items() if key.endswith("scale")]
    assert scalars == {"skipinit": [0.0] * branches, "fixup": [1.0] * branches}.get(placement, [])


def test_names_are_read_as_everywhere():
    assert Transformer("LNS", layers=1).placement == DigitNet("layernorm-scaling", layers=1).placement
    assert isinstance(Transformer("pre", layers=1, norm="layernorm").final, torch.nn.LayerNorm)


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"placement": "perri"}, ValueError, "did you mean 'peri'"),
        ({"norm": "layer_norm"}, ValueError, "did you mean 'layernorm'"),
        ({"heads": 3}, ValueError, "heads must divide width, got 3 heads and width 32"),
        ({"heads": 0}, ValueError, "heads must be at least 1"),
        ({"layers": 0}, ValueError, "layers must be at least 1"),
        ({"width": 0}, ValueError, "width must be at least 1"),
        ({"context": -1}, ValueError, "context must be at least 1"),
        ({"vocabulary": 0}, ValueError, "vocabulary must be at least 1"),
        ({"layers": 2.5}, TypeError, "layers must be an integer"),
        ({"seed": -1}, ValueError, "seed must be a non-negative integer"),
    ],
)
def test_impossible_networks_are_refused(options, error, message):
    options = {"placement": "pre", "layers": 1, **options}
    with pytest.raises(error, match=message):
        Transformer(**options)
    if not options.keys() & {"heads", "context", "vocabulary"}:
        with pytest.raises(error, match=message):
            DigitNet(**options)


def test_inputs_longer_than_the_context_are_refused():
    model = Transformer("pre", context=4, layers=1)
    assert model(torch.zeros(1, 4, dtype=torch.long)).shape == (1, 4, 16)
    with pytest.raises(ValueError, match="inputs have 5 tokens, the model's context is 4"):
        model(torch.zeros(1, 5, dtype=torch.long))


def test_digitnet_learns_the_digits():
    images, labels = (torch.tensor(a) for a in digits())
    images = images.float()
    model = DigitNet("pre", layers=4, width=32)
    adam = torch.optim.Adam(model.parameters(), lr=5e-3)
    for _ in range(60):
        loss = F.cross_entropy(model(images[:1000]), labels[:1000])
        adam.zero_grad()
        loss.backward()
        adam.step()
    with torch.no_grad():
        right = (model(images[1000:]).argmax(-1) == labels[1000:]).numpy()
    # Chance is 0.1; the nearest class mean, no learning by gradient, is the mark to reach.
    means = np.stack([digits()[0][:1000][digits()[1][:1000] == c].mean(0) for c in range(10)])
    nearest = ((digits()[0][1000:, None] - means) ** 2).sum(-1).argmin(-1) == digits()[1][1000:]
    assert right.mean() > nearest.mean() - 2 * 0.012  # sd of a share of 0.87 to 0.89 of 797 images
