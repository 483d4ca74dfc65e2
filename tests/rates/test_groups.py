"""Scale-invariant groups of networks built by hand: what they must be follows from homogeneity, on paper."""

import copy

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional
from torch.nn.utils.parametrizations import spectral_norm, weight_norm

from normkit.rates.groups import Group, scale_invariant_groups
from normkit.rates.radial import null_vectors


class Net(nn.Module):
    """A network from its parts and a function net(parts, *inputs)."""

    def __init__(self, function, **parts):
        super().__init__()
        self.function = function
        for name, part in parts.items():
            setattr(self, name, part)

    def forward(self, *inputs):
        return self.function(self, *inputs)


def noise(seed=0):
    return torch.Generator().manual_seed(seed)


def matrix(*shape, seed=0):
    return nn.Parameter(torch.randn(shape, generator=noise(seed)) * shape[-1] ** -0.5)


def plain(n_in, n_out):
    return nn.Linear(n_in, n_out, bias=False)


X = torch.randn(32, 10, generator=noise(9))
IMAGES = torch.randn(6, 3, 9, 9, generator=noise(8))


@pytest.fixture(autouse=True)
def _same_initial_weights():
    with torch.random.fork_rng():
        torch.manual_seed(11)
        yield


def found(model, inputs=None, **kwargs):
    return {(g.names, g.dim, g.parts, g.index) for g in scale_invariant_groups(model, inputs, **kwargs)}


def whole(*names):
    return (names, None, 1, (0,))


def cut(names, dim, parts, index=None):
    return ((names,) if isinstance(names, str) else names, dim, parts, tuple(range(parts) if index is None else index))


def standardized(net, x):
    mean, spread = net.w.mean((1, 2, 3), keepdim=True), net.w.std((1, 2, 3), keepdim=True)
    return functional.conv2d(x, (net.w - mean) / spread, net.b).relu().mean((2, 3))


def layers(*modules):
    return lambda: nn.Sequential(*(m() for m in modules))


def lin(n_in, n_out, bias=True):
    return lambda: nn.Linear(n_in, n_out, bias=bias)


# On paper. The bias before batch norm has no effect; before layer norm it scales with its matrix; ReLU passes factors
# on, tanh and GELU do not; the head's length is the size of the outputs.
EXPECTED = {
    "no norm, relu": (layers(lin(10, 16), nn.ReLU, lin(16, 16), nn.ReLU, lin(16, 4)), X, set()),
    "no norm, linear": (layers(lin(10, 16, False), lin(16, 4, False)), X, set()),
    "layer norm": (
        layers(lin(10, 16), lambda: nn.LayerNorm(16), nn.Tanh, lin(16, 16, False), lambda: nn.RMSNorm(16), lin(16, 4)),
        X,
        {whole("0.weight", "0.bias"), whole("3.weight")},
    ),
    "batch norm": (
        layers(lin(10, 16), lambda: nn.BatchNorm1d(16), nn.Dropout, nn.Tanh, lin(16, 4)),
        X,
        {cut("0.weight", 0, 16)},
    ),
    "relu stack": (
        layers(lin(10, 16), nn.ReLU, lin(16, 16), nn.ReLU, lin(16, 16), lambda: nn.LayerNorm(16), lin(16, 4)),
        X,
        {
            whole("4.weight", "4.bias"),
            whole("2.weight", "2.bias", "4.bias"),
            whole("0.weight", "0.bias", "2.bias", "4.bias"),
        },
    ),
    "relu stack without biases": (
        layers(lin(10, 16, False), nn.ReLU, lin(16, 16, False), lambda: nn.LayerNorm(16), lin(16, 4)),
        X,
        {whole("0.weight"), whole("2.weight")},
    ),
    "gain and offset before relu": (
        layers(lin(10, 16), lambda: nn.BatchNorm1d(16), nn.ReLU, lin(16, 16, False), lambda: nn.LayerNorm(16), nn.Tanh),
        X,
        {cut("0.weight", 0, 16), whole("1.weight", "1.bias"), whole("3.weight")},
    ),
    "group norm": (
        layers(lambda: nn.Conv2d(3, 8, 3), lambda: nn.GroupNorm(4, 8), nn.Tanh, lambda: nn.Conv2d(8, 2, 3)),
        IMAGES,
        {cut(("0.weight", "0.bias"), 0, 4)},
    ),
    "instance norm": (
        layers(lambda: nn.Conv2d(3, 8, 3), lambda: nn.InstanceNorm2d(8), nn.Tanh, lambda: nn.Conv2d(8, 2, 3)),
        IMAGES,
        {cut("0.weight", 0, 8)},
    ),
    "depthwise convolution": (
        layers(lambda: nn.Conv1d(4, 4, 3, groups=4), lambda: nn.BatchNorm1d(4), nn.Tanh, lambda: nn.Conv1d(4, 3, 1)),
        torch.randn(6, 4, 12, generator=noise(1)),
        {cut("0.weight", 0, 4)},
    ),
    "weight standardization": (lambda: Net(standardized, w=matrix(6, 3, 3, 3), b=matrix(6)), IMAGES, {cut("w", 0, 6)}),
    "weight and spectral norm": (
        lambda: nn.Sequential(weight_norm(nn.Linear(10, 16)), nn.Tanh(), spectral_norm(nn.Linear(16, 4))),
        X,
        {cut("0.parametrizations.weight.original1", 0, 16), whole("2.parametrizations.weight.original")},
    ),
    "unit columns": (
        lambda: Net(lambda n, x: x @ functional.normalize(n.w, dim=0) * n.g, w=matrix(10, 16), g=matrix(16)),
        X,
        {cut("w", 1, 16)},
    ),
    "tied, once free": (
        lambda: Net(lambda n, x: n.norm(x @ n.w.T) @ n.w, w=matrix(16, 10), norm=nn.LayerNorm(16)),
        X,
        set(),
    ),
    "tied, twice normed": (
        lambda: Net(lambda n, x: n.norm(n.norm(x @ n.w.T).tanh() @ n.w.T), w=matrix(10, 10), norm=nn.LayerNorm(10)),
        X,
        {whole("w")},
    ),
    "equivariant, then its direction": (
        lambda: Net(lambda n, x: functional.normalize(n.b(n.a(x).relu()), dim=-1), a=plain(10, 16), b=plain(16, 4)),
        X,
        {whole("a.weight"), whole("b.weight")},
    ),
    "squared relu": (
        lambda: Net(lambda n, x: n.h(n.norm(n.a(x).relu() ** 2)), a=plain(10, 16), h=plain(16, 3), norm=nn.RMSNorm(16)),
        X,
        {whole("a.weight")},
    ),
    "a parameter without influence": (
        lambda: Net(lambda n, x: n.norm(x @ n.w.T).tanh(), w=matrix(8, 10), idle=matrix(8, 8), norm=nn.LayerNorm(8)),
        X,
        {whole("w")},
    ),
    "a scalar loss": (
        lambda: Net(lambda n, x: n.h(n.norm(n.a(x)).tanh()).square().mean(), a=nn.Linear(10, 16), h=plain(16, 3), norm=nn.LayerNorm(16)),
        X,
        {whole("a.weight", "a.bias")},
    ),
    "recurrent": (lambda: Net(lambda n, x: n.r(x)[0], r=nn.LSTM(10, 8, batch_first=True)), X[None], set()),
    "invariant at initialization only": (
        lambda: Net(lambda n, x: n.norm(x @ n.w.T) + n.g * (x @ n.w.T), w=matrix(16, 10), g=nn.Parameter(torch.zeros(())), norm=nn.LayerNorm(16)),
        X,
        set(),
    ),
    "one row of many": (
        lambda: Net(lambda n, x: torch.cat([x @ n.w[1:].T, functional.normalize(x @ n.w[:1].T, dim=0)], 1), w=matrix(4, 10)),
        X,
        {cut("w", 0, 4, [0])},
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", EXPECTED)
def test_groups_are_those_on_paper(name):
    make, inputs, expected = EXPECTED[name]
    for seed in (0, 1):
        assert found(make(), inputs, seed=seed) == expected


class Attention(nn.Module):
    """Pre-LN block with query-key norm, per head or over all heads, on a fused qkv matrix."""

    def __init__(self, width, heads, per_head, bias):
        super().__init__()
        self.heads, self.per_head = heads, per_head
        self.before, self.between = nn.LayerNorm(width), nn.LayerNorm(width)
        self.qkv, self.out = nn.Linear(width, 3 * width, bias=bias), nn.Linear(width, width)
        self.qk = nn.LayerNorm(width // heads if per_head else width, elementwise_affine=False)
        self.up, self.down, self.drop = nn.Linear(width, 2 * width), nn.Linear(2 * width, width), nn.Dropout(0.1)

    def forward(self, x):
        q, k, v = self.qkv(self.before(x)).chunk(3, -1)
        if not self.per_head:
            q, k = self.qk(q), self.qk(k)
        q, k, v = (t.unflatten(-1, (self.heads, -1)).transpose(1, 2) for t in (q, k, v))
        if self.per_head:
            q, k = self.qk(q), self.qk(k)
        mixed = functional.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2)
        x = x + self.drop(self.out(mixed))
        return x + self.down(functional.gelu(self.up(self.between(x))))


def transformer(per_head=True, bias=False, width=16, heads=4):
    blocks = nn.Sequential(*(Attention(width, heads, per_head, bias) for _ in range(2)))
    return nn.Sequential(nn.Embedding(30, width), blocks, nn.LayerNorm(width), nn.Linear(width, 30))


# The final norm does not feel the length of the residual stream: what writes to it scales together.
STREAM = whole(
    "0.weight", *(f"1.{i}.{name}.{kind}" for i in range(2) for name in ("out", "down") for kind in ("weight", "bias"))
)


@pytest.mark.parametrize(("per_head", "parts", "index"), [(True, 12, range(8)), (False, 3, (0, 1))])
@pytest.mark.parametrize("bias", [True, False])
def test_the_values_of_a_fused_qkv_are_not_invariant(per_head, parts, index, bias):
    names = lambda i: tuple(f"1.{i}.qkv.{kind}" for kind in ("weight", "bias")[: 1 + bias])  # noqa: E731
    tokens = torch.randint(30, (4, 9), generator=noise())
    expected = {cut(names(i), 0, parts, index) for i in range(2)} | {STREAM}
    assert found(transformer(per_head, bias), tokens) == expected


def test_hugging_face_gpt2_keeps_its_weights_transposed():
    transformers = pytest.importorskip("transformers")
    config = transformers.GPT2Config(vocab_size=60, n_embd=32, n_layer=2, n_head=4, bos_token_id=1, eos_token_id=1)
    model = transformers.GPT2Model(config)
    writers = [
        f"h.{i}.{part}.c_proj.{kind}" for i in range(2) for part in ("attn", "mlp") for kind in ("weight", "bias")
    ]
    assert found(model) == {whole("wte.weight", "wpe.weight", *writers)}  # its inputs come from dummy_inputs
    # The output head is tied to wte, so that the logits feel the length of the stream.
    assert found(transformers.GPT2LMHeadModel(config)) == set()

    class Queries(nn.Module):  # query-key norm on the fused (in, out) matrix: blocks of columns, and of the bias
        def __init__(self):
            super().__init__()
            self.fused = transformers.pytorch_utils.Conv1D(24, 10)

        def forward(self, x):
            q, k, v = self.fused(x).chunk(3, -1)
            q, k = (functional.layer_norm(t, t.shape[-1:]) for t in (q, k))
            return functional.scaled_dot_product_attention(q, k, v)

    assert found(Queries(), X[None]) == {cut(("fused.weight", "fused.bias"), 1, 3, (0, 1))}


def test_eps_decides_whether_a_weight_is_invariant():
    # Preactivations have variance 1/3 (Linear's initial weights); cos(w, grad) grows with eps / variance.
    model = lambda eps: nn.Sequential(plain(10, 16), nn.LayerNorm(16, eps=eps), nn.Tanh())  # noqa: E731
    for eps in (1e-8, 1e-5, 1e-4):
        assert found(model(eps), X) == {whole("0.weight")}
    assert found(model(1e-1), X) == set()
    assert found(model(1e-4), X, tolerance=1e-6) == set()
    assert found(model(1e-1), X, tolerance=0.3) == {whole("0.weight")}


def test_a_bias_that_is_small_beside_its_matrix_still_belongs_to_it():
    pixels = 255 * torch.rand(32, 100, generator=noise())
    model = nn.Sequential(nn.Linear(100, 16), nn.LayerNorm(16), nn.Tanh())
    assert found(model, pixels) == {whole("0.weight", "0.bias")}
    with torch.no_grad():
        model[0].bias.zero_()
    assert found(model, pixels) == {whole("0.weight", "0.bias")}


def test_unseen_tokens_go_with_the_seen_ones():
    model = nn.Sequential(nn.Embedding(100, 16, padding_idx=0), nn.LayerNorm(16), nn.Tanh())
    assert found(model, torch.tensor([[1, 2, 5, 7]])) == {cut("0.weight", 0, 100)}
    padded = torch.tensor([[1, 2, 0]])
    assert found(nn.Sequential(nn.Embedding(3, 16, sparse=True), nn.LayerNorm(16)), padded) == {cut("0.weight", 0, 3)}


@pytest.mark.parametrize("name", [k for k, (_, _, expected) in EXPECTED.items() if expected])
def test_scaling_by_hand_leaves_the_outputs_alone(name):
    make, inputs, expected = EXPECTED[name]
    model = make().double().train()
    inputs = inputs.double()

    def outputs(network):
        with torch.random.fork_rng(), torch.no_grad():
            torch.manual_seed(0)
            return network(inputs)

    for names, dim, parts, index in expected:
        twin = copy.deepcopy(model)
        for n in names:
            p = dict(twin.named_parameters())[n]
            for i in index:
                size = p.shape[dim or 0] // parts
                place = (
                    slice(None)
                    if dim is None
                    else (slice(None),) * min(dim, p.ndim - 1) + (slice(i * size, (i + 1) * size),)
                )
                p.data[place] *= 3.0 + 2 * i
        # Up to eps / variance = 1e-5 / 0.1, and squared activations are smaller.
        torch.testing.assert_close(outputs(twin), outputs(model), rtol=0, atol=3e-3)


def test_the_model_is_left_as_it_was():
    model = nn.Sequential(spectral_norm(nn.Linear(10, 16)), nn.BatchNorm1d(16), nn.Dropout(), nn.Linear(16, 4)).eval()
    model[3].weight.requires_grad_(False)
    before, state = copy.deepcopy(model.state_dict()), torch.random.get_rng_state()
    groups = scale_invariant_groups(model, X)
    assert {g.names for g in groups} == {("0.parametrizations.weight.original",)}
    assert all(torch.equal(before[k], v) for k, v in model.state_dict().items())
    assert torch.equal(state, torch.random.get_rng_state())
    assert not model.training and not model[3].weight.requires_grad and model[3].bias.grad is None
    assert scale_invariant_groups(model, X) == groups


def test_frozen_and_half_precision_weights_are_found_too():
    model = nn.Sequential(plain(10, 16), nn.LayerNorm(16), nn.Tanh()).to(torch.bfloat16).requires_grad_(False)
    assert found(model, X) == {whole("0.weight")}


def test_modules_that_keep_a_computed_weight():
    with pytest.warns(FutureWarning, match="weight_norm"):
        model = nn.Sequential(torch.nn.utils.weight_norm(nn.Linear(10, 16)), nn.Tanh(), nn.Linear(16, 2))
    model(X)  # leaves a tensor behind that deepcopy refuses
    assert found(model, X) == {cut("0.weight_v", 0, 16)}


def test_outputs_of_all_kinds_and_inputs_of_all_kinds():
    parts = {"a": plain(10, 16), "norm": nn.LayerNorm(16)}
    both = Net(lambda n, x: {"direction": n.norm(n.a(x)), "length": (n.a(x),)}, **parts)
    assert found(both, (X,)) == set()
    one = Net(lambda n, x: (n.norm(n.a(x)), X.argmax(), "text"), **parts)
    assert found(one, [X]) == {whole("a.weight")}
    none = Net(lambda n, x: n.a(x) > 0, **parts)
    with pytest.raises(ValueError, match="no floating tensor"):
        scale_invariant_groups(none, X)
    assert found(Net(lambda n, x: n.norm(n.a(x)).detach(), **parts), X) == set()


def test_a_gradient_that_is_not_finite_is_no_evidence():
    # The length of v[1] - v[1] is 0 with gradient 0 / 0; w is behind a norm all the same.
    parts = {"w": matrix(16, 10), "v": matrix(16, 16), "norm": nn.LayerNorm(16)}
    model = Net(lambda n, x: n.norm(x @ n.w.T).tanh() + (n.v - n.v).square().sum().sqrt(), **parts)
    assert found(model, X) == {whole("w")}


def test_noise_of_a_layer_in_float32_does_not_hide_a_joint_group():
    # The bias of the keys has no influence but rounding: softmax does not feel what all scores have in common.
    def attend(net, x):
        x = net.a(x)
        q, k = net.q(x).float(), net.k(x).float()
        return net.norm(x + (q @ k.mT).softmax(-1).to(x) @ net.v(x)).tanh()

    parts = {
        "a": nn.Linear(10, 12),
        "q": nn.Linear(12, 4),
        "k": nn.Linear(12, 4),
        "v": plain(12, 12),
        "norm": nn.LayerNorm(12),
    }
    stream = found(Net(attend, **parts), X.reshape(4, 8, 10))
    assert stream == set()  # the scores feel the length of x
    parts["n"] = nn.LayerNorm(12)
    model = Net(lambda n, x: n.norm(n.a(x) + attend_to(n, n.n(n.a(x)))).tanh(), **parts)
    assert found(model, X.reshape(4, 8, 10)) == {whole("a.weight", "a.bias", "v.weight")}


def attend_to(net, x):
    scores = net.q(x).float() @ net.k(x).float().mT
    return scores.softmax(-1).to(x) @ net.v(x)


@pytest.mark.parametrize("name", ["layer norm", "group norm", "depthwise convolution", "tied, twice normed"])
def test_inputs_are_guessed(name):
    make, _, expected = EXPECTED[name]
    assert found(make()) == expected


def test_errors_say_what_to_do():
    with pytest.raises(TypeError, match="Module"):
        scale_invariant_groups(lambda x: x)
    with pytest.raises(ValueError, match="pass inputs="):
        scale_invariant_groups(Net(lambda n, x, y: n.a(x) + y, a=nn.Linear(3, 3)))
    with pytest.raises(ValueError, match="forward takes"):
        scale_invariant_groups(nn.Linear(3, 3), torch.ones(2, 5))
    with pytest.raises(ValueError, match=r"tolerance must be between 0 and 1, got 2"):
        scale_invariant_groups(nn.Linear(3, 3), tolerance=2)
    with pytest.raises(ValueError, match="not initialized"):
        scale_invariant_groups(nn.LazyLinear(3))
    broken = nn.Linear(3, 3)
    broken.weight.data[1, 1] = float("nan")
    with pytest.raises(ValueError, match="'weight' is not finite"):
        scale_invariant_groups(broken)
    with pytest.raises(ValueError, match="output is not finite"):
        scale_invariant_groups(Net(lambda n, x: n.a(x) / 0, a=nn.Linear(3, 3)), torch.ones(2, 3))


def test_a_group_measures_and_scales_its_parts():
    w, b = torch.arange(12.0).reshape(6, 2), torch.ones(6)
    rows = Group("w", 0, 3, (0, 2))
    torch.testing.assert_close(rows.norms({"w": w}), torch.tensor([14.0, 366.0]).sqrt())  # 0+1+4+9; 64+81+100+121
    model = nn.ParameterDict({"w": w.clone(), "b": b.clone()})
    rows.scale_(model, torch.tensor([2.0, 1.0]))
    torch.testing.assert_close(rows.norms(model), torch.tensor([2.0, 1.0]))
    torch.testing.assert_close(model["w"][2:4], w[2:4])
    torch.testing.assert_close(model["w"][:2], w[:2] * (2 / 14**0.5))
    both = Group(("w", "b"), 0, 6)
    torch.testing.assert_close(both.norms({"w": w, "b": b}), (w.square().sum(1) + 1).sqrt())
    columns = Group("w", 1, 2)
    torch.testing.assert_close(columns.norms({"w": w}), w.norm(dim=0))
    zero = {"w": torch.zeros(2, 2)}
    Group("w").scale_(zero, 3.0)
    assert not zero["w"].any()
    assert Group("w", 0, 6).kind({"w": w}) == "rows" and columns.kind({"w": w}) == "columns"
    assert rows.kind({"w": w}) == "blocks" and both.kind({"w": w, "b": b}) == "joint" and Group("w").kind({}) == "layer"
    assert "3 equal parts along rows, of these 0, 2" in str(rows) and "w + b" in str(both)
    with pytest.raises(ValueError, match="no parameter 'v'"):
        Group("v").norms({"w": w})
    for bad in ((("w",), None, 2), (("w",), 2, 2), ((), 0, 2), (("w",), 0, 2, (2,)), (("w",), 0, 2, ())):
        with pytest.raises(ValueError, match="group"):
            Group(*bad)


def test_null_vectors_of_a_matrix_made_for_it():
    draw = np.random.default_rng(0)
    c = draw.standard_normal((40, 7))
    columns = np.column_stack(
        [c[:, 0], c[:, 1], -c[:, 0], -c[:, 1] + 1e-3 * c[:, 6], c[:, 2], c[:, 3], -c[:, 2] - c[:, 3]]
    )
    assert null_vectors(columns, 0.02) == [(0, 2), (1, 3), (4, 5, 6)]
    assert null_vectors(columns, 1e-5) == [(0, 2), (4, 5, 6)]
    assert null_vectors(c, 0.02) == []
    mixed = np.column_stack([c[:, 0], c[:, 1], c[:, 0] + c[:, 1]])  # null vector (1, 1, -1): no scaling of a group
    assert null_vectors(mixed, 0.02) == []
    assert null_vectors(np.column_stack([c[:, 0], np.zeros(40), -c[:, 0]]), 0.02) == [(0, 2)]


class AddsNormalized(nn.Module):
    """A small embedding beside a normalized branch: OLMo 2's residual stream. Only the branch's matrix is invariant."""

    def __init__(self):
        super().__init__()
        self.embed, self.branch = nn.Embedding(20, 32), nn.Linear(32, 32, bias=False)
        self.head = nn.Linear(32, 20, bias=False)
        nn.init.normal_(self.embed.weight, std=0.01)

    def forward(self, ids):
        x = self.embed(ids)
        return self.head(x + torch.nn.functional.rms_norm(self.branch(x), (32,), eps=1e-12))


@pytest.mark.parametrize("seed", range(3))
def test_small_terms_of_a_sum_are_no_invariants(seed):
    torch.manual_seed(seed)  # the embedding moves the output by 1 %: less than the tolerance
    assert [g.names for g in scale_invariant_groups(AddsNormalized(), torch.arange(20).view(4, 5))] == [
        ("branch.weight",)
    ]


@pytest.mark.parametrize("act", [nn.Tanh, nn.Sigmoid, nn.Softsign])
@pytest.mark.parametrize("gain", [30, 100, 300])
def test_saturated_activations_are_no_invariants(act, gain):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(10, 32), act(), nn.Linear(32, 32), act(), nn.Linear(32, 3))
    for layer in model[0], model[2]:
        layer.weight.data *= gain
    assert scale_invariant_groups(model, torch.randn(64, 10)) == []


def test_an_eps_of_one_per_cent_is_still_forgiven():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(16, 16, bias=False), nn.LayerNorm(16, eps=3e-3), nn.ReLU(), nn.Linear(16, 4))
    assert [g.names for g in scale_invariant_groups(model, torch.randn(32, 16))] == [("0.weight",)]


class PreActivation(nn.Module):
    """A residual network of BatchNorms: the stream is read through them only, so stem and branch ends double together."""

    def __init__(self):
        super().__init__()
        branch = nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 8, 3, padding=1)
        self.stem = nn.Conv2d(3, 8, 3, padding=1)
        self.blocks = nn.ModuleList(nn.Sequential(*map(copy.deepcopy, branch * 2)) for _ in range(3))
        for end in (m for m in self.modules() if isinstance(m, nn.Conv2d)):
            end.reset_parameters()
        self.norm, self.head = nn.BatchNorm2d(8), nn.Linear(8, 5)

    def forward(self, x):
        x = self.stem(x)
        for block in self.blocks:
            x = x + block(x)
        return self.head(self.norm(x).mean((2, 3)))


@pytest.mark.parametrize("seed", range(4))
def test_a_residual_stream_behind_batch_norms_is_found_in_spite_of_eps(seed):
    torch.manual_seed(seed)
    found = {g.names for g in scale_invariant_groups(PreActivation(), torch.randn(16, 3, 8, 8))}
    assert ("stem.weight", *(f"blocks.{i}.5.weight" for i in range(3))) in found
    assert {(f"blocks.{i}.2.weight",) for i in range(3)} <= found  # row by row


def normalized_net():
    torch.manual_seed(0)
    return nn.Sequential(plain(10, 16), nn.LayerNorm(16), nn.ReLU(), nn.Linear(16, 3))


ORDINARY = normalized_net()


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
def test_groups_are_found_where_gradients_are_switched_off(mode):
    with mode():
        for x in (torch.randn(8, 10), None):
            assert [g.names for g in scale_invariant_groups(ORDINARY, x)] == [("0.weight",)]
        assert not torch.is_grad_enabled()


def test_a_compiled_model_s_groups_can_be_measured_and_scaled():
    model = normalized_net()
    wrapped, x = torch.compile(model, backend="eager"), torch.randn(8, 10)
    (group,) = scale_invariant_groups(wrapped, x)
    assert group.names == ("0.weight",) and group.kind(wrapped) == "layer"
    group.scale_(wrapped, 3.0)
    assert torch.linalg.vector_norm(model[0].weight.detach()).item() == pytest.approx(3, rel=1e-6)


class OneNumber(nn.Module):
    def __init__(self):
        super().__init__()
        self.gain = nn.Parameter(torch.tensor(2.0))

    def forward(self, x):
        return self.gain * x


@pytest.mark.parametrize("model", [nn.ReLU(), OneNumber()])
def test_a_model_without_weights_has_no_groups(model):
    assert scale_invariant_groups(model, torch.randn(4, 4)) == []
