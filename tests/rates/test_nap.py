"""Normalize-and-Project: what it must leave alone, what it must hold, and the exact copy of plain SGD."""

import copy
import io

import optimizer_contract as contract
import pytest
import torch
from torch import nn

from normkit.rates.groups import Group, scale_invariant_groups
from normkit.rates.insertion import ChannelRMSNorm, insert_norms
from normkit.rates.nap import NormalizeAndProject

EPS32 = torch.finfo(torch.float32).eps
X = torch.randn(64, 10, generator=torch.Generator().manual_seed(5))
LABELS = X[:, :3].argmax(1)


def linear(n_in, n_out, bias=True):
    return nn.Linear(n_in, n_out, bias=bias)


def exact_norm(width):
    return nn.LayerNorm(width, eps=0.0)


NETS = {  # name: (layers, the scale-invariant groups on paper)
    "layer norm": (
        lambda: [linear(10, 16, False), exact_norm(16), nn.GELU(), linear(16, 16, False), exact_norm(16), nn.Tanh()],
        [Group("0.weight"), Group("3.weight")],
    ),
    "biases": (
        lambda: [linear(10, 16), exact_norm(16), nn.Tanh(), linear(16, 16), exact_norm(16), nn.Tanh()],
        [Group(("0.weight", "0.bias")), Group(("3.weight", "3.bias"))],
    ),
    "batch norm": (
        lambda: [linear(10, 16), nn.BatchNorm1d(16, eps=1e-30), nn.Tanh(), linear(16, 16), exact_norm(16), nn.Tanh()],
        [Group("0.weight", 0, 16), Group(("3.weight", "3.bias"))],
    ),
    "relu stack": (
        lambda: [linear(10, 16), nn.ReLU(), linear(16, 16), nn.ReLU(), linear(16, 16), exact_norm(16), nn.Tanh()],
        [
            Group(("4.weight", "4.bias")),
            Group(("2.weight", "2.bias", "4.bias")),
            Group(("0.weight", "0.bias", "2.bias", "4.bias")),
        ],
    ),
}


def network(name, dtype=torch.float64):
    with torch.random.fork_rng():
        torch.manual_seed(3)
        return nn.Sequential(*NETS[name][0](), linear(16, 3)).to(dtype)


def loss_at(model, step):
    rows = torch.randint(64, (32,), generator=torch.Generator().manual_seed(step))
    x = X[rows].to(next(model.parameters()))
    return nn.functional.cross_entropy(model(x), LABELS[rows])


def take_step(model, optimizer, step):
    optimizer.zero_grad()
    loss = loss_at(model, step)
    loss.backward()
    optimizer.step()
    return loss.item()


def lengths(nap):
    return torch.cat([n.double() for n in nap.norms().values()])


@pytest.mark.parametrize(("name", "every"), [*((name, 1) for name in NETS), ("layer norm", 7), ("batch norm", 7)])
def test_the_copied_schedule_reproduces_the_losses_of_plain_sgd(name, every):
    """SGD is equivariant: grad L(c w) = grad L(w) / c, so lr c^2 there moves c w to c times where lr moves w."""
    lr, plain = 0.1 if name == "relu stack" else 0.5, network(name)  # at 0.5 the stack is chaotic: rounding grows 10^6
    twin = copy.deepcopy(plain)
    groups = scale_invariant_groups(plain, X.double())
    assert groups == NETS[name][1]
    recorder = NormalizeAndProject(plain, gains="free", groups=groups)
    nap = NormalizeAndProject(twin, gains="free", groups=groups, every=every)
    sgd = torch.optim.SGD(plain.parameters(), lr)
    copied = torch.optim.SGD(nap.parameter_groups(lr), lr)
    nap.attach(copied)
    start, worst = lengths(nap), 0.0
    for step in range(300):
        nap.follow(copied, recorder.norms(), power=2)
        worst = max(worst, abs(take_step(plain, sgd, step) - take_step(twin, copied, step)))
    # Rounding of 2e-16 a step for 300 steps is 6e-14; an expanding trajectory may make ten times as much of it.
    assert worst < 1e-12
    assert (lengths(recorder) / start).max() > 1.05, "the plain run's lengths must have grown for the test to mean much"
    nap.project() if every == 1 else [nap.project() for _ in range(every)]
    torch.testing.assert_close(lengths(nap), start, rtol=1e-14, atol=0)


def test_without_the_schedule_the_losses_differ():
    plain, twin = network("layer norm"), network("layer norm")
    nap = NormalizeAndProject(twin, gains="free", inputs=X)
    optimizers = [torch.optim.SGD(m.parameters(), 0.5) for m in (plain, twin)]
    nap.attach(optimizers[1])
    for step in range(30):
        losses = take_step(plain, optimizers[0], step), take_step(twin, optimizers[1], step)
    assert abs(losses[0] - losses[1]) > 1e-4


def test_adam_follows_to_first_order():
    """Adam's step ignores the gradient's scale: lr (length / length) makes the first angle equal, later ones nearly."""
    plain, twin = network("layer norm"), network("layer norm")
    with torch.no_grad():
        for i in (0, 3):
            twin[i].weight.mul_(2)  # the same function; half the angle at the same lr
    nap = NormalizeAndProject(twin, gains="free", inputs=X)
    recorder = NormalizeAndProject(plain, gains="free", groups=nap.groups)
    adam = torch.optim.Adam(plain.parameters(), 1e-3, eps=1e-30)
    copied = torch.optim.Adam(nap.parameter_groups(1e-3), eps=1e-30)
    nap.follow(copied, recorder.norms(), power=1)
    assert [g["lr"] for g in copied.param_groups] == pytest.approx([2e-3, 2e-3, 1e-3], rel=1e-12)
    take_step(plain, adam, 0), take_step(twin, copied, 0)
    for i in (0, 3):
        torch.testing.assert_close(twin[i].weight, 2 * plain[i].weight, rtol=1e-12, atol=1e-15)


@pytest.mark.parametrize("name", NETS)
def test_projection_keeps_the_function_and_brings_every_length_back(name):
    model = network(name)
    nap = NormalizeAndProject(model, gains="free", inputs=X)
    optimizer, start = torch.optim.AdamW(model.parameters(), 0.05), lengths(nap)
    for step in range(5):
        take_step(model, optimizer, step)
    assert ((lengths(nap) / start - 1).abs() > 1e-3).any()
    before = model(X.double())
    nap.project()
    torch.testing.assert_close(model(X.double()), before, rtol=1e-11, atol=1e-12)
    torch.testing.assert_close(lengths(nap), start, rtol=1e-14, atol=0)
    once = copy.deepcopy(model.state_dict())
    nap.project()
    for key, value in model.state_dict().items():
        torch.testing.assert_close(value, once[key], rtol=1e-15 * 4, atol=0, msg=f"{key}: projecting twice is once")


@pytest.mark.parametrize("steps", [2000, pytest.param(100_000, marks=pytest.mark.slow)])
def test_float32_does_not_drift(steps):
    """Each length is measured afresh, so errors do not add up: a sum of n squares in blocks, a division, a product."""
    model = nn.Sequential(linear(6, 8, False), nn.LayerNorm(8), linear(8, 4), nn.BatchNorm1d(4))
    nap = NormalizeAndProject(model, groups=[Group("0.weight"), Group("2.weight", 0, 4)])
    radii = [r.double() for r in nap.radii]
    draw = torch.Generator().manual_seed(0)
    noise = [[torch.randn(p.shape, generator=draw) / 10 for p in (model[0].weight, model[2].weight)] for _ in range(64)]
    weights = [model[0].weight.data, model[2].weight.data]
    for step in range(steps):
        torch._foreach_add_(weights, noise[step % 64])
        nap.project()
    for group, radius in zip(nap.groups, radii, strict=True):
        exact = group.norms({n: p.detach().double() for n, p in model.named_parameters()})
        # At most 48 squares are added: (48 / 2 + 3) roundings of eps / 2 in the length, 2 in the factor and product.
        assert ((exact / radius - 1).abs() < 15 * EPS32).all()


def test_every_and_the_gains():
    model = network("biases")
    nap = NormalizeAndProject(model, every=3, inputs=X)
    model[0].weight.data.mul_(2)
    model[1].weight.data.mul_(3)
    model[1].bias.data.fill_(1)
    for expected in (False, False, True, True):
        nap.project()
        norm = Group(("1.weight", "1.bias")).norms(model).item()
        assert (abs(norm - 4) < 1e-12) is expected  # sqrt(d), d = 16
        assert torch.allclose(lengths(nap), torch.cat(nap.radii)) is expected
    torch.testing.assert_close(model[1].weight / model[1].bias, torch.full((16,), 3.0).double())  # jointly

    decayed = network("batch norm")
    decayed[1].weight.data.fill_(3)
    decayed[1].bias.data.fill_(1)
    nap = NormalizeAndProject(decayed, gains="decay", gain_decay=0.1, inputs=X)
    for _ in range(2):
        nap.project()
    torch.testing.assert_close(decayed[1].weight, torch.full((16,), 1 + 2 * 0.9**2).double())
    torch.testing.assert_close(decayed[1].bias, torch.full((16,), 0.9**2).double())
    free = network("biases")
    free[1].weight.data.fill_(3)
    NormalizeAndProject(free, gains="free", inputs=X).project()
    assert (free[1].weight == 3).all()
    rms = nn.Sequential(linear(10, 16), nn.RMSNorm(16), nn.Tanh(), linear(16, 2))
    nap = NormalizeAndProject(rms)  # its inputs are guessed
    rms[1].weight.data.mul_(7)
    nap.project()
    torch.testing.assert_close(rms[1].weight, torch.ones(16))


def test_groups_with_gains_are_left_to_the_gains_option():
    layers = [linear(10, 16, False), exact_norm(16), nn.ReLU(), linear(16, 16, False), exact_norm(16), nn.Tanh()]
    model = nn.Sequential(*layers).double()
    found = scale_invariant_groups(model, X)
    assert Group(("1.weight", "1.bias")) in found  # ReLU passes their factor on, to the second norm
    assert NormalizeAndProject(model, groups=found).groups == [Group("0.weight"), Group("3.weight")]


def attach(kind, **options):
    def build(model, lr):
        nap = NormalizeAndProject(model, inputs=contract.batch(0)[0], **options)
        optimizer = kind(nap.parameter_groups(lr))
        nap.attach(optimizer)
        return [optimizer, nap]

    return build


ALONE = (contract.check_groups_keep_their_own_settings, contract.check_zero_rate_moves_nothing)
CHECKS = [value for key, value in vars(contract).items() if key.startswith("check_") and value not in ALONE]


@pytest.mark.parametrize("check", CHECKS, ids=lambda check: check.__name__)
@pytest.mark.parametrize("kind", [torch.optim.SGD, torch.optim.Adam, torch.optim.RMSprop])
def test_the_common_optimizer_contract(kind, check):
    check(attach(kind, every=2))


def test_a_zero_rate_moves_nothing():
    # The gains of the contract's net are not of length sqrt(d), so they must be free; lengths come back to rounding.
    contract.check_zero_rate_moves_nothing(attach(torch.optim.SGD, gains="free"), rtol=1e-15)


def test_a_resumed_run_is_the_same_run():
    def start():
        model = network("batch norm")
        nap = NormalizeAndProject(model, every=3, inputs=X)
        optimizer = torch.optim.AdamW(nap.parameter_groups(0.02))
        return model, nap.attach(optimizer), optimizer

    model, nap, optimizer = start()
    for step in range(4):
        take_step(model, optimizer, step)
    file = io.BytesIO()
    torch.save([part.state_dict() for part in (model, nap, optimizer)], file)
    straight = [take_step(model, optimizer, step) for step in range(4, 12)]
    file.seek(0)
    fresh = start()
    fresh[0][0].weight.data.mul_(3)  # what it starts with must not matter
    for part, state in zip(fresh, torch.load(file), strict=True):
        part.load_state_dict(state)
    assert [take_step(fresh[0], fresh[2], step) for step in range(4, 12)] == straight
    with pytest.raises(ValueError, match="other scale-invariant groups"):
        NormalizeAndProject(network("biases"), inputs=X).load_state_dict(nap.state_dict())


@pytest.mark.parametrize("kind", ["layernorm", "rmsnorm"])
def test_norms_are_put_before_every_nonlinearity_that_lacks_one(kind):
    model = nn.Sequential(
        linear(10, 16),
        nn.ReLU(),
        linear(16, 16),
        nn.BatchNorm1d(16),
        nn.GELU(),
        nn.Sequential(linear(16, 8), nn.Tanh()),
    )
    bias = model[0].bias.detach().clone()
    nap = NormalizeAndProject(model.double(), normalize=kind, inputs=X)
    assert nap.inserted == ["1.norm", "5.1.norm"]
    assert model[0].bias is None and model[5][0].bias is None and model[2].bias is not None
    assert type(model[1].norm) is (nn.LayerNorm if kind == "layernorm" else nn.RMSNorm)
    norm = nn.functional.layer_norm if kind == "layernorm" else nn.functional.rms_norm
    offset = bias.double() if kind == "layernorm" else 0
    eps = 1e-5 if kind == "layernorm" else 1e-6
    torch.testing.assert_close(model[1](X.double() @ torch.ones(10, 16).double()), (norm(X.double() @ torch.ones(10, 16).double(), (16,), eps=eps) + offset).relu())  # fmt: skip
    assert {g.names for g in nap.groups} == {("0.weight",), ("2.weight",), ("5.0.weight",)}


def test_images_are_normalized_over_channels_and_places():
    def convolutions():
        return nn.Sequential(
            nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Conv2d(4, 4, 3), nn.SiLU(), nn.Flatten(), nn.Linear(64, 2)
        )

    images = 5 * torch.randn(6, 3, 8, 8, generator=torch.Generator().manual_seed(1))
    model = convolutions()
    nap = NormalizeAndProject(model, normalize="layernorm", inputs=images)
    assert isinstance(model[1].norm, nn.GroupNorm) and model[1].norm.num_groups == 1
    assert {g.names for g in nap.groups} == {("0.weight",), ("2.weight",)}
    model = convolutions()
    nap = NormalizeAndProject(model, normalize="rmsnorm")
    assert isinstance(model[1].norm, ChannelRMSNorm)
    assert {g.names for g in nap.groups} == {("0.weight",), ("2.weight",)}
    y = model[1].norm(model[0](images))
    torch.testing.assert_close(y.square().mean((1, 2, 3)), torch.ones(6), rtol=1e-4, atol=0)  # eps 1e-6 and rounding


def test_errors_say_what_to_do():
    plain = nn.Sequential(linear(10, 16), nn.ReLU(), linear(16, 3))
    with pytest.raises(ValueError, match="nothing to project: it has no normalization layers"):
        NormalizeAndProject(plain, inputs=X)
    for options, message in [
        ({"normalize": "batch"}, "normalize must be"),
        ({"every": 0}, "every must be at least 1"),
        ({"gains": "clip"}, "unknown gains 'clip'"),
        ({"gain_decay": 2.0}, "gain_decay"),
    ]:
        with pytest.raises(ValueError, match=message):
            NormalizeAndProject(network("biases"), inputs=X, **options)
    relu = nn.ReLU()
    with pytest.raises(ValueError, match="'1' is called 2 times"):
        insert_norms(nn.Sequential(linear(10, 16), relu, linear(16, 16), relu), "layernorm", X)
    with pytest.raises(ValueError, match="calls no nonlinearity module"):
        insert_norms(nn.Sequential(linear(10, 16)), "layernorm", X)
    zero = network("layer norm")
    zero[0].weight.data.zero_()
    with pytest.raises(ValueError, match=r"0\.weight has length 0"):
        NormalizeAndProject(zero, inputs=X)
    model = network("batch norm")
    nap = NormalizeAndProject(model, inputs=X)
    plain_sgd, own = torch.optim.SGD(model.parameters(), 0.1), torch.optim.SGD(nap.parameter_groups(0.1))
    with pytest.raises(ValueError, match="parameter_groups"):
        nap.follow(plain_sgd, nap.norms())
    with pytest.raises(ValueError, match="attach"):
        nap.follow(own, nap.norms())
    with pytest.raises(ValueError, match="not of this network's groups"):
        nap.follow(own, {Group("w"): torch.ones(1)})
    nap.attach(own)
    with pytest.raises(ValueError, match="already attached"):
        nap.attach(own)
    nap.detach()
    take_step(model, own, 0)
    assert nap.step == 0, "a detached optimizer does not project"
    assert "0.weight" in repr(nap)


def test_half_precision_comes_back_to_its_own_rounding():
    model = nn.Sequential(linear(64, 64, False), nn.LayerNorm(64), nn.Tanh()).to(torch.bfloat16)
    nap = NormalizeAndProject(model, groups=[Group("0.weight")])
    radius = nap.radii[0].item()
    model[0].weight.data.mul_(1.3)
    nap.project()
    # Entries round by up to 2^-9 each, independently: their length, of 4096 entries, by far less.
    assert nap.radii[0].dtype is torch.float32 and abs(nap.norms()[nap.groups[0]].item() / radius - 1) < 2**-9


def test_padding_rows_of_length_zero_stay():
    model = nn.Sequential(nn.Embedding(8, 6, padding_idx=0), nn.LayerNorm(6), nn.Tanh(), linear(6, 2))
    nap = NormalizeAndProject(model, inputs=torch.arange(8)[None], gains="free")
    assert nap.groups == [Group("0.weight", 0, 8)]
    before = model[0].weight.detach().clone()
    model[0].weight.data.mul_(torch.arange(8.0)[:, None])
    nap.project()
    assert not model[0].weight[0].any()
    torch.testing.assert_close(model[0].weight.detach(), before)


@pytest.mark.parametrize("model", [None, "net", 3])
def test_what_is_no_module_is_refused(model):
    with pytest.raises(TypeError, match=r"needs a torch.nn.Module, got"):
        NormalizeAndProject(model)


@pytest.mark.parametrize("groups", ["0.weight", 3, [("0.weight",)]])
def test_groups_that_are_no_groups_are_refused(groups):
    with pytest.raises(TypeError, match="groups must be a list as scale_invariant_groups returns"):
        NormalizeAndProject(nn.Sequential(nn.Linear(3, 4), nn.LayerNorm(4)), groups=groups)


def test_a_gain_decay_that_is_no_number_is_refused():
    with pytest.raises(TypeError, match="gain_decay must be a number"):
        NormalizeAndProject(nn.Sequential(nn.Linear(3, 4), nn.LayerNorm(4)), gain_decay="0.1")


def test_a_compiled_model_is_projected():
    torch.manual_seed(0)
    model = torch.compile(nn.Sequential(nn.Linear(3, 4, bias=False), nn.LayerNorm(4)), backend="eager")
    nap = NormalizeAndProject(model, inputs=torch.randn(8, 3))
    weight = next(model.parameters())
    start = torch.linalg.vector_norm(weight.detach())
    with torch.no_grad():
        weight.mul_(5)
    nap.project()
    torch.testing.assert_close(torch.linalg.vector_norm(weight.detach()), start)


def small():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(3, 4, bias=False), nn.LayerNorm(4))
    return model, NormalizeAndProject(model, inputs=torch.randn(8, 3))


@pytest.mark.parametrize("length", [torch.nan, torch.inf, 0.0])
def test_a_diverged_run_is_not_followed(length):
    _, nap = small()
    optimizer = torch.optim.SGD(nap.parameter_groups(0.1))
    with pytest.raises(ValueError, match="has that run diverged"):
        nap.follow(optimizer, {g: torch.full_like(n, length) for g, n in nap.norms().items()})
    with pytest.raises(ValueError, match="power must be a finite number"):
        nap.follow(optimizer, nap.norms(), power=torch.nan)
    assert [g["lr"] for g in optimizer.param_groups] == [0.1, 0.1]


def test_what_is_no_optimizer_no_rate_and_no_state_is_refused():
    model, nap = small()
    with pytest.raises(TypeError, match=r"attach needs a torch.optim.Optimizer, got Sequential"):
        nap.attach(model)
    with pytest.raises(TypeError, match="lr must be a number"):
        nap.parameter_groups("0.1")
    with pytest.raises(ValueError, match="lr must be a finite non-negative"):
        nap.parameter_groups(-0.1)
    for state in None, {}, {"step": 3}:
        with pytest.raises(ValueError, match="no state of a NormalizeAndProject"):
            nap.load_state_dict(state)
    state = nap.state_dict()
    with pytest.raises(ValueError, match="radii are not finite"):
        nap.load_state_dict(state | {"radii": [r * torch.nan for r in state["radii"]]})


@pytest.mark.parametrize("radii", [-1.0, 0.0, torch.nan, torch.inf, torch.ones(3)])
def test_a_group_is_not_scaled_to_an_impossible_radius(radii):
    model, nap = small()
    before = model[0].weight.detach().clone()
    with pytest.raises(ValueError, match="radii must be a positive finite number"):
        nap.groups[0].scale_(model, radii)
    assert torch.equal(model[0].weight, before)
