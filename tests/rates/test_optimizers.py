"""SGDP and AdamP: the common optimizer test, plain NumPy versions of the published algorithms, and their geometry."""

import copy
import math

import numpy as np
import optimizer_contract as contract
import pytest
import torch
from torch import nn

from normkit.rates.optimizers import SGDP, AdamP, projected
from normkit.rng import stream


def draw(name, *shape, seed=0):
    return stream(seed, "test_optimizers", name).normal(size=shape)


def tensor(name, *shape, seed=0):
    return torch.from_numpy(draw(name, *shape, seed=seed))


# ---- the common optimizer test --------------------------------------------------------------------------------------

BUILDERS = {
    "torch SGD": lambda p, lr: torch.optim.SGD(p, lr=lr, momentum=0.9),
    "torch Adam": lambda p, lr: torch.optim.Adam(p, lr=lr),
    "SGDP": lambda p, lr: SGDP(p, lr=lr, momentum=0.9, weight_decay=1e-3),
    "SGDP of the paper": lambda p, lr: SGDP(p, lr=lr, momentum=0.9, dampening=0.1, project_buffer=False),
    "SGDP nesterov": lambda p, lr: SGDP(p, lr=lr, momentum=0.9, nesterov=True, weight_decay=1e-3),
    "AdamP": lambda p, lr: AdamP(p, lr=lr, weight_decay=1e-2),
    "AdamP nesterov": lambda p, lr: AdamP(p, lr=lr, nesterov=True),
}
ours = pytest.mark.parametrize("build", [b for name, b in BUILDERS.items() if "torch" not in name])


@pytest.mark.parametrize("check", contract.ATTACHED, ids=lambda c: c.__name__)
@pytest.mark.parametrize("build", BUILDERS.values(), ids=BUILDERS)
def test_contract(build, check):
    check(lambda model, lr: [build(model.parameters(), lr)])


@pytest.mark.parametrize("build", BUILDERS.values(), ids=BUILDERS)
def test_contract_groups(build):
    contract.check_groups_keep_their_own_settings(build)


def held(model, lr, optimizer=torch.optim.SGD, **options):
    nap = pytest.importorskip("normkit.rates.nap").NormalizeAndProject(model, inputs=contract.batch(0)[0], **options)
    optimizer = optimizer(model.parameters(), lr=lr)
    nap.attach(optimizer)
    return [optimizer, nap]


@pytest.mark.parametrize("check", contract.ATTACHED, ids=lambda c: c.__name__)
@pytest.mark.parametrize("options", [{}, {"optimizer": AdamP}, {"every": 2, "gains": "free"}])
def test_contract_of_normalize_and_project(check, options):
    if check is contract.check_zero_rate_moves_nothing:  # gains have another length than they start with
        check(lambda model, lr: held(model, lr, **{**options, "gains": "free"}), rtol=1e-14)
    else:
        check(lambda model, lr: held(model, lr, **options))


class Forgetful(torch.optim.SGD):
    """Breaks the contract on purpose: writes to the gradients, forgets its momentum, swallows the closure's loss."""

    def step(self, closure=None):
        if closure is not None:
            with torch.enable_grad():
                closure()
        super().step()
        for p in self.param_groups[0]["params"]:
            if p.grad is not None:
                p.grad.mul_(0.5)

    def state_dict(self):
        return {"state": {}, "param_groups": super().state_dict()["param_groups"]}


@pytest.mark.parametrize(
    "check", [contract.check_closure, contract.check_resume_is_identical, contract.check_gradients_are_only_read]
)
def test_the_contract_notices_a_broken_optimizer(check):
    with pytest.raises((AssertionError, AttributeError)):
        check(lambda model, lr: [Forgetful(model.parameters(), lr=lr, momentum=0.9)])


# ---- the published algorithms, again, in float64 NumPy with loops over rows ------------------------------------------


def numpy_projection(w, g, d, delta, eps):
    """(d projected, ratio applies): rows, then the whole; as the paper's algorithm reads, one row at a time."""
    if w.ndim > 1:
        for rows in (w.shape[0], 1):
            ws, gs, ds = (a.reshape(rows, -1) for a in (w, g, d))
            cosines = [
                abs(b @ a) / (max(math.sqrt(a @ a), eps) * max(math.sqrt(b @ b), eps))
                for a, b in zip(ws, gs, strict=True)
            ]
            if max(cosines) < delta / math.sqrt(ws.shape[1]):
                units = [a / (math.sqrt(a @ a) + eps) for a in ws]
                return np.stack([b - (b @ u) * u for b, u in zip(ds, units, strict=True)]).reshape(w.shape), True
    return d, False


class NumpySGDP:
    def __init__(
        self, lr, momentum=0, dampening=0, weight_decay=0, nesterov=False, delta=0.1, wd_ratio=0.1, project_buffer=True
    ):
        self.__dict__.update(locals())
        self.buffer = 0.0

    def step(self, w, g):
        self.buffer = self.momentum * self.buffer + (1 - self.dampening) * g
        d = g + self.momentum * self.buffer if self.nesterov else self.buffer
        d, hit = numpy_projection(w, g, d, self.delta, 1e-8)
        if self.project_buffer and not self.nesterov:
            self.buffer = d
        decay = self.lr * self.weight_decay * (self.wd_ratio if hit else 1) / (1 - self.momentum)
        return (1 - decay) * w - self.lr * d


class NumpyAdamP:
    def __init__(self, lr=1e-3, betas=(0.9, 0.999), weight_decay=0, delta=0.1, wd_ratio=0.1, nesterov=False):
        self.__dict__.update(locals())
        self.t, self.m, self.v = 0, 0.0, 0.0

    def step(self, w, g):
        b1, b2 = self.betas
        self.t, self.m, self.v = self.t + 1, b1 * self.m + (1 - b1) * g, b2 * self.v + (1 - b2) * g * g
        ahead = b1 * self.m + (1 - b1) * g if self.nesterov else self.m
        d = ahead / (1 - b1**self.t) / (np.sqrt(self.v / (1 - b2**self.t)) + 1e-8)
        d, hit = numpy_projection(w, g, d, self.delta, 1e-8)
        return (1 - self.lr * self.weight_decay * (self.wd_ratio if hit else 1)) * w - self.lr * d


def invariances(w):
    """Losses of w (6, 5): per-row scale invariant, scale invariant as a whole, not scale invariant; on fixed targets."""
    target = tensor("target", 6, 5)
    return {
        "rows": lambda: (w / w.norm(dim=1, keepdim=True) * target).sum(),
        "whole": lambda: ((w / w.norm() - target) ** 2).sum(),
        "none": lambda: ((w - target) ** 2).sum(),
    }


OPTIONS = [
    (SGDP, NumpySGDP, {"lr": 0.05}),
    (SGDP, NumpySGDP, {"lr": 0.05, "momentum": 0.9, "weight_decay": 0.02}),
    (SGDP, NumpySGDP, {"lr": 0.02, "momentum": 0.8, "dampening": 0.3, "weight_decay": 0.1, "wd_ratio": 0.5}),
    (SGDP, NumpySGDP, {"lr": 0.02, "momentum": 0.9, "nesterov": True, "delta": 0.5}),
    (SGDP, NumpySGDP, {"lr": 0.05, "momentum": 0.9, "weight_decay": 0.02, "project_buffer": False}),
    (AdamP, NumpyAdamP, {}),
    (AdamP, NumpyAdamP, {"lr": 0.02, "weight_decay": 0.1, "betas": (0.8, 0.95)}),
    (AdamP, NumpyAdamP, {"lr": 0.02, "nesterov": True, "delta": 0.7, "weight_decay": 0.3, "wd_ratio": 0.0}),
]


@pytest.mark.parametrize("kind", ["rows", "whole", "none"])
@pytest.mark.parametrize(("optimizer", "plain", "options"), OPTIONS)
def test_hundreds_of_steps_agree_with_the_published_algorithm(optimizer, plain, options, kind):
    w = nn.Parameter(tensor("w", 6, 5))
    loss, torch_side, numpy_side = invariances(w)[kind], optimizer([w], **options), plain(**options)
    v, hits = w.detach().numpy().copy(), 0
    for step in range(300):
        noise = 0.1 * draw(f"noise {step}", 6, 5)
        w.grad = None
        loss().backward()
        if kind == "none":
            w.grad += torch.from_numpy(noise)
        g = w.grad.numpy().copy()
        hits += numpy_projection(v, g, g, options.get("delta", 0.1), 1e-8)[1]
        v = numpy_side.step(v, g)
        torch_side.step()
        # One step's rounding is 1e-16 relative; Adam divides by sqrt(v) >> 1e-8, which can magnify it 1e3-fold.
        np.testing.assert_allclose(w.detach().numpy(), v, rtol=1e-11, atol=1e-12)
        v = (
            w.detach().numpy().copy()
        )  # both see the same gradients: the loss is not chaotic, the comparison stays sharp
    assert hits > 250 if kind != "none" else hits < 150


def test_released_buffer_and_papers_buffer_part_ways_on_the_third_step():
    """Step 1: the gradient is tangent already. Step 2: one update, two buffers. From step 3 the weights differ."""
    runs = []
    for project_buffer in (True, False):
        w = nn.Parameter(tensor("w", 6, 5))
        optimizer = SGDP([w], lr=0.1, momentum=0.9, project_buffer=project_buffer)
        path = []
        for _ in range(3):
            optimizer.zero_grad()
            invariances(w)["rows"]().backward()
            before = w.detach().clone()
            optimizer.step()
            radial = (optimizer.state[w]["momentum"] * before).sum(1).abs().max().item()
            path.append((w.detach().clone(), radial))
        runs.append(path)
    (a1, _), (a2, ra), (a3, _) = runs[0]
    (b1, _), (b2, rb), (b3, _) = runs[1]
    assert torch.equal(a1, b1) and torch.equal(a2, b2) and not torch.allclose(a3, b3, rtol=1e-6, atol=0)
    assert ra < 1e-7 < 1e-3 < rb  # eps = 1e-8 in |w| + eps leaves 1e-8 of the radial part


def test_a_checkpoint_without_our_option_means_the_released_behavior():
    w = nn.Parameter(tensor("w", 3, 4))
    optimizer = SGDP([w], lr=0.1, momentum=0.9, project_buffer=False)
    state = copy.deepcopy(optimizer.state_dict())
    del state["param_groups"][0]["project_buffer"]
    optimizer.load_state_dict(state)
    assert optimizer.param_groups[0]["project_buffer"] is True


# ---- against torch ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("shape", "delta"), [((40,), 0.1), ((), 0.1), ((8, 5), 0.0), ((4, 3, 2, 2), 0.0)])
@pytest.mark.parametrize("weight_decay", [0.0, 0.1])
def test_adamp_is_adamw_for_vectors_and_for_delta_zero(shape, delta, weight_decay):
    ours, theirs = (nn.Parameter(tensor("w", *shape)) for _ in range(2))
    one = AdamP([ours], lr=1e-2, weight_decay=weight_decay, delta=delta)
    two = torch.optim.AdamW([theirs], lr=1e-2, weight_decay=weight_decay)
    for step in range(200):
        ours.grad, theirs.grad = (tensor("g", *shape, seed=step) for _ in range(2))
        one.step(), two.step()
    torch.testing.assert_close(ours, theirs, rtol=1e-12, atol=1e-13)


@pytest.mark.parametrize("nesterov", [False, True])
def test_sgdp_without_projection_is_sgd(nesterov):
    ours, theirs = (nn.Parameter(tensor("w", 8, 5)) for _ in range(2))
    one = SGDP([ours], lr=1e-2, momentum=0.9, nesterov=nesterov, delta=0)
    two = torch.optim.SGD([theirs], lr=1e-2, momentum=0.9, nesterov=nesterov)
    for step in range(50):
        ours.grad, theirs.grad = (tensor("g", 8, 5, seed=step) for _ in range(2))
        one.step(), two.step()
    torch.testing.assert_close(ours, theirs, rtol=1e-12, atol=1e-13)


# ---- geometry ---------------------------------------------------------------------------------------------------------


def rows_without(g, w):
    return g - w * ((g * w).sum(1) / (w * w).sum(1))[:, None]


@pytest.mark.parametrize("view", ["rows", "whole"])
def test_projected_update_is_orthogonal_and_the_norm_obeys_pythagoras(view):
    w, g, d = (tensor(n, 7, 9) for n in "wgd")
    g = rows_without(g, w) if view == "rows" else g - w * (g * w).sum() / (w * w).sum()
    update, found = projected(w, g, d)
    assert found
    axes = (1,) if view == "rows" else (0, 1)
    radial = (update * w).sum(axes)
    # u = w / (|w| + 1e-8) is 1e-8 / |w| short of a unit vector: that part of <d, w> remains, twice.
    assert radial.abs().max() < 1e-7 * d.norm()
    grown = ((w - 0.3 * update) ** 2).sum(axes)
    torch.testing.assert_close(grown, (w**2).sum(axes) + 0.09 * (update**2).sum(axes), rtol=1e-7, atol=0)
    if view == "whole":
        assert (update * w).sum(1).abs().max() > 0.1  # rows for themselves are not orthogonal


def test_no_update_is_touched_when_the_gradient_is_radial_or_the_weight_a_vector():
    w, d = tensor("w", 7, 9), tensor("d", 7, 9)
    update, found = projected(w, w, d)
    assert not found and torch.equal(update, d)
    update, found = projected(w[0], rows_without(d, w)[0], d[0])
    assert not found and torch.equal(update, d[0])


def test_infinite_delta_always_projects_rows():
    w, g, d = (tensor(n, 7, 9) for n in "wgd")
    update, found = projected(w, g, d, delta=math.inf)
    torch.testing.assert_close(update, rows_without(d, w), rtol=1e-6, atol=1e-7)
    assert found


def test_a_random_gradient_passes_the_layer_test_in_8_percent():
    """cos sqrt(n) -> N(0,1): P(|N| < 0.1) = erf(0.1 / sqrt 2) = 0.0797. Rows: that to the power of 40, never."""
    n, trials = (40, 50), 4000
    w = tensor("w", *n)
    hits = sum(bool(projected(w, tensor("g", *n, seed=s), w)[1]) for s in range(trials))
    p = math.erf(0.1 / math.sqrt(2))
    assert abs(hits / trials - p) < 4 * math.sqrt(p * (1 - p) / trials)


@pytest.mark.parametrize("memory", [torch.contiguous_format, torch.channels_last])
def test_memory_format_does_not_matter(memory):
    w, g, d = (tensor(n, 4, 3, 5, 5) for n in "wgd")
    wanted, _ = projected(w, g, d, delta=math.inf)
    found, _ = projected(*(a.contiguous(memory_format=memory) for a in (w, g, d)), delta=math.inf)
    torch.testing.assert_close(found, wanted, rtol=1e-12, atol=1e-13)


@pytest.mark.parametrize(("norm", "rows"), [(nn.BatchNorm1d, True), (nn.LayerNorm, False)])
def test_batchnorm_gives_the_row_view_and_layernorm_the_layer_view(norm, rows):
    net = nn.Sequential(nn.Linear(10, 6, bias=False), norm(6, eps=1e-12), nn.Tanh()).double()
    w = net[0].weight
    with torch.no_grad():
        w.copy_(tensor("w", 6, 10))
    (net(tensor("x", 32, 10)) * tensor("y", 32, 6)).sum().backward()
    d = tensor("d", 6, 10)
    update, found = projected(w.detach(), w.grad, d)
    assert found
    by_rows = (update * w).sum(1).abs().max().item()
    assert by_rows < 1e-6 if rows else by_rows > 0.1
    assert abs((update * w).sum().item()) < 1e-6


def test_norms_grow_less_than_with_the_parent_optimizer():
    """<w, p_t> of heavy ball lengthens w; SGDP leaves the eta^2 |d|^2 of a tangent step, and so does AdamP for Adam."""

    def growth(build):
        w = nn.Parameter(tensor("w", 6, 5))
        optimizer = build([w])
        for step in range(300):
            optimizer.zero_grad()
            (w / w.norm(dim=1, keepdim=True) * tensor("task", 6, 5, seed=step)).sum().backward()
            optimizer.step()
        return (w.detach().norm() / tensor("w", 6, 5).norm()).log().item()

    sgd = growth(lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.9))
    sgdp = growth(lambda p: SGDP(p, lr=0.1, momentum=0.9))
    adam, adamp = growth(lambda p: torch.optim.Adam(p, lr=0.1)), growth(lambda p: AdamP(p, lr=0.1))
    assert 0 < sgdp < 0.7 * sgd
    assert 0 < adamp < 0.7 * adam


# ---- dtypes and errors ----------------------------------------------------------------------------------------------


@ours
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
def test_low_precision_follows_float64(build, dtype):
    low, high = nn.Parameter(tensor("w", 6, 5).to(dtype)), nn.Parameter(tensor("w", 6, 5))
    one, two = build([low], 0.01), build([high], 0.01)
    for step in range(10):
        high.grad = tensor("g", 6, 5, seed=step)
        low.grad = high.grad.to(dtype)
        one.step(), two.step()
    assert low.dtype == dtype
    assert all(s.dtype == dtype for s in one.state[low].values() if torch.is_tensor(s))
    # 10 steps of at most a few 0.01 each, every one rounded to eps: far below what the weights moved
    moved = (high - tensor("w", 6, 5)).abs().max()
    assert (low.double() - high).abs().max() < max(40 * torch.finfo(dtype).eps, 1e-6)
    assert moved > 0.02


@ours
@pytest.mark.parametrize("dtype", [torch.complex64, torch.int64])
def test_other_dtypes_are_refused(build, dtype):
    with pytest.raises(TypeError, match="real floating"):
        build([torch.ones(2, 2, dtype=dtype)], 0.1)


@ours
def test_sparse_gradients_are_refused_before_anything_moves(build):
    first, table = nn.Linear(3, 2), nn.Embedding(5, 3, sparse=True)
    start = first.weight.detach().clone()
    optimizer = build([*first.parameters(), *table.parameters()], 0.1)
    first(table(torch.tensor([1, 2]))).sum().backward()
    with pytest.raises(TypeError, match="sparse"):
        optimizer.step()
    assert torch.equal(first.weight, start)


BAD = [
    ("lr", -0.1),
    ("lr", math.nan),
    ("lr", math.inf),
    ("weight_decay", -1e-4),
    ("eps", -1e-8),
    ("delta", -0.1),
    ("delta", math.nan),
    ("wd_ratio", -0.1),
]


@pytest.mark.parametrize(
    ("optimizer", "name", "value"),
    [(o, *bad) for o in (SGDP, AdamP) for bad in BAD]
    + [(SGDP, "momentum", 1.0), (SGDP, "momentum", -0.1), (SGDP, "dampening", math.inf), (SGDP, "dampening", math.nan)]
    + [(AdamP, "betas", (1.0, 0.999)), (AdamP, "betas", (0.9, -0.1)), (AdamP, "betas", (0.9,))],
)
def test_bad_hyperparameters_are_named(optimizer, name, value):
    with pytest.raises(ValueError, match=name):
        optimizer([nn.Parameter(torch.ones(2))], **{"lr": 0.1, name: value})


@pytest.mark.parametrize("optimizer", [SGDP, AdamP])
@pytest.mark.parametrize("name", ["lr", "weight_decay", "eps", "delta", "wd_ratio"])
@pytest.mark.parametrize("value", ["0.1", None, True, [0.1]])
def test_hyperparameters_that_are_no_numbers_are_named(optimizer, name, value):
    with pytest.raises(TypeError, match=f"{name} must be a number, got "):
        optimizer([nn.Parameter(torch.ones(2))], **{"lr": 0.1, name: value})


def test_betas_that_are_no_pair_are_named():
    for betas in "ab", 0.9, None:
        with pytest.raises(ValueError, match="betas must be two numbers"):
            AdamP([nn.Parameter(torch.ones(2))], betas=betas)


def test_a_bad_group_is_not_added():
    optimizer = AdamP([nn.Parameter(torch.ones(2))])
    with pytest.raises(ValueError, match="lr must be"):
        optimizer.add_param_group({"params": [nn.Parameter(torch.ones(2))], "lr": -1.0})
    assert len(optimizer.param_groups) == 1


def test_sgdp_wants_a_rate():
    with pytest.raises(ValueError, match="lr"):
        SGDP([nn.Parameter(torch.ones(2))])
    SGDP([{"params": [nn.Parameter(torch.ones(2))], "lr": 0.1}])


@ours
def test_a_step_never_waits_for_numbers(build):
    """Tensors on the meta device have none: reading one, as .item() and `if` do, raises. So a GPU is not waited for."""
    w, b = (nn.Parameter(torch.empty(*shape, device="meta")) for shape in ((3, 4), (5,)))
    optimizer = build([w, b], 0.1)
    for _ in range(2):
        w.grad, b.grad = torch.empty_like(w), torch.empty_like(b)
        optimizer.step()
    assert optimizer.state[w] and all(s.is_meta for s in optimizer.state[w].values() if torch.is_tensor(s))


@ours
def test_parameters_without_numbers_and_with_zero_weights_take_part(build):
    empty, zero = nn.Parameter(torch.zeros(0, 3)), nn.Parameter(torch.zeros(2, 3))
    optimizer = build([empty, zero], 0.1)
    empty.grad, zero.grad = torch.zeros(0, 3), torch.ones(2, 3)
    optimizer.step()
    assert torch.isfinite(zero).all() and (zero != 0).all()
