"""The net against its formulas in plain torch, the reports against naive recomputation, the tasks against counting."""

import math
from collections import Counter

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from torch.nn import functional as F  # noqa: E402

from normkit.attention import training as T  # noqa: E402
from normkit.attention.laws import floor_logits  # noqa: E402

SMALL = {"steps": 4, "tokens": 8, "layers": 2, "width": 8, "every": 1}
PLAIN_START = ("plain", "warmup", "sigma_reparam_same_start")  # the same function at step 0


def net(cure="plain", placement="post", task="majority", **options):
    options = {"tokens": 8, "layers": 2, "width": 8, "seed": 3, "dtype": torch.float64, **options}
    return T.Net(task, placement, cure, **options)


def numbers(reports):
    """All that the reports say, as exact numbers."""
    return [(r["step"], r["loss"], r["accuracy"], *(r[name].tolist() for name in T.MEASURED)) for r in reports]


def batch(task="majority", tokens=8, skip=0, seed=3):
    draws = T.generator(seed, "batches", task)
    for _ in range(skip):
        T.TASKS[task].draw(draws, tokens)
    return T.TASKS[task].draw(draws, tokens)


# ---- tasks ----------------------------------------------------------------------------------------------------------


def test_majority_is_the_most_frequent_token():
    tokens, targets = T.majority_task(T.generator(0, "test"), 32, 500)
    assert (tokens[:, -1] == T.TYPES).all() and tokens[:, :-1].max() == T.TYPES - 1 and tokens.min() == 0
    assert (targets[:, :-1] == T.IGNORED).all()
    shares = []
    for row, target in zip(tokens[:, :-1].tolist(), targets[:, -1].tolist(), strict=True):
        votes = Counter(row)
        most = max(votes.values())
        assert target == min(kind for kind, n in votes.items() if n == most)
        shares.append(most / 31)
    # the favorite's share is binomial with p = .3 + .7 / 8 = .3875; the winner's is a little more
    assert 0.38 < np.mean(shares) < 0.43


def test_copy_has_half_the_period():
    tokens, targets = T.copy_task(T.generator(0, "test"), 8, 20)
    assert (tokens[:, :4] == tokens[:, 4:]).all() and tokens.min() >= 0 and tokens.max() == T.SYMBOLS - 1
    assert (targets[:, :3] == T.IGNORED).all()
    assert (targets[:, 3:7] == tokens[:, 4:]).all()
    assert (targets[:, 7] == tokens[:, 0]).all()  # the sequence would go on like this


@pytest.mark.parametrize("task", T.TASKS)
def test_untrained_nets_guess(task):
    """40 nets, 32 answers or more each: accuracy is that of chance to four standard errors of the answers."""
    classes = T.TASKS[task].classes
    first = [next(T.train(task=task, seed=seed, steps=1, tokens=16, layers=1)) for seed in range(40)]
    accuracy, loss = (np.mean([r[name] for r in first]) for name in ("accuracy", "loss"))
    answers = 40 * 32
    # +0.02: the lowest of equals wins the majority, and a net may answer with one class all the time
    assert abs(accuracy - 1 / classes) < 4 * math.sqrt(1 / classes / answers) + 0.02
    # outputs are N(0, 1) in a random net: log E e^z = 1/2 above log classes, less for few classes
    assert math.log(classes) < loss < math.log(classes) + 0.7


# ---- the net --------------------------------------------------------------------------------------------------------


def rms(x, gain):
    return gain * x / (x.square().mean(-1, keepdim=True) + 1e-6).sqrt()


def by_hand(model, tokens, *, heads=2, causal=False, placement="post", qk=False):
    """Outputs and logits from the weights alone, head by head."""
    w = {name: module.weight for name, module in model.named_modules() if hasattr(module, "weight")}
    x, found = w["token"][tokens] + w["position"], []
    for i in range(len(model.blocks)):
        a = f"blocks.{i}.attention."
        seen = rms(x, w[f"blocks.{i}.norms.0"]) if placement == "pre" else x
        mixed, logits = [], []
        for rows in torch.arange(x.shape[-1]).chunk(heads):
            q, k, v = (seen @ w[a + name][rows].T for name in ("query", "key", "value"))
            if qk:
                q = rms(q, model.blocks[i].attention.query_gain)
                k = rms(k, model.blocks[i].attention.key_gain)
            z = torch.einsum("bid,bjd->bij", q, k) / math.sqrt(len(rows))
            if causal:
                z = z + torch.full_like(z[0], -math.inf).triu(1)
            logits.append(z)
            mixed.append(torch.einsum("bij,bjd->bid", z.exp() / z.exp().sum(-1, keepdim=True), v))
        found.append(torch.stack(logits, 1))
        x = x + torch.cat(mixed, -1) @ w[a + "out"].T
        x = rms(x, w[f"blocks.{i}.norms.0"]) if placement == "post" else x
        seen = rms(x, w[f"blocks.{i}.norms.1"]) if placement == "pre" else x
        h = seen @ w[f"blocks.{i}.up"].T
        x = x + (0.5 * h * (1 + torch.erf(h / math.sqrt(2)))) @ w[f"blocks.{i}.down"].T
        x = rms(x, w[f"blocks.{i}.norms.1"]) if placement == "post" else x
    x = rms(x, w["final"]) if placement == "pre" else x
    return x @ w["head"].T, torch.stack(found)


@pytest.mark.parametrize("placement", T.PLACEMENTS)
@pytest.mark.parametrize("cure", ["plain", "qk_norm", "sigma_reparam", "sigma_reparam_same_start"])
@pytest.mark.parametrize("task", T.TASKS)
def test_net_is_its_formula(placement, cure, task):
    model = net(cure, placement, task).eval()
    tokens, _ = batch(task)
    wanted, logits = by_hand(model, tokens, causal=task == "copy", placement=placement, qk=cure == "qk_norm")
    # sums of at most 16 terms through 2 blocks: float64's 1e-16 grows to 1e-13 or so, more without norms
    torch.testing.assert_close(model(tokens), wanted, rtol=1e-10, atol=1e-11)
    torch.testing.assert_close(model.logits(tokens), logits, rtol=1e-10, atol=1e-11)


@pytest.mark.parametrize("cure", T.CURES)
def test_every_parameter_learns(cure):
    model = net(cure, "pre")
    tokens, targets = batch()
    F.cross_entropy(model(tokens).flatten(0, 1), targets.flatten(), ignore_index=T.IGNORED).backward()
    for name, p in model.named_parameters():
        assert p.grad is not None and p.grad.abs().max() > 0, name
        assert p.dtype == torch.float64


def matrices(model):
    """{name: matrix} without the extras of a cure; SigmaReparam keeps the matrix in `original`."""
    named = {n.replace("parametrizations.weight.original", "weight"): p for n, p in model.named_parameters()}
    extras = ("scale.weight", "gate.weight")
    return {n: p for n, p in named.items() if p.ndim == 2 and not n.endswith(extras)}


def test_a_seed_gives_everyone_the_same_matrices():
    wanted = matrices(net())
    assert len(wanted) == 2 + 2 * 6 + 1
    for cure in T.CURES:
        for placement in T.PLACEMENTS:
            found = matrices(net(cure, placement))
            assert found.keys() == wanted.keys()
            assert all(torch.equal(found[name], wanted[name]) for name in wanted)
    assert not torch.equal(net(seed=4).head.weight, net().head.weight)
    assert torch.equal(net(layers=3).blocks[1].up.weight, net().blocks[1].up.weight)  # whatever the depth
    for name, w in matrices(net(width=64, tokens=64)).items():
        variance = 0.5 if name in ("token.weight", "position.weight") else 1 / w.shape[1]
        # mean square of n Gaussians: relative standard deviation sqrt(2 / n), four of them
        assert w.square().mean().item() == pytest.approx(variance, rel=4 * math.sqrt(2 / w.numel()))


def test_a_causal_net_does_not_see_the_future():
    model, (tokens, _) = net(task="copy"), batch("copy")
    changed = tokens.clone()
    changed[:, 5:] = (changed[:, 5:] + 1) % T.SYMBOLS
    assert torch.equal(model(tokens)[:, :5], model(changed)[:, :5])
    assert not torch.equal(model(tokens)[:, 5:], model(changed)[:, 5:])
    hidden = model.logits(tokens) == -math.inf
    assert torch.equal(hidden, torch.ones(8, 8, dtype=torch.bool).triu(1).expand_as(hidden))
    assert not (net().logits(batch()[0]) == -math.inf).any()


@pytest.mark.parametrize("cure", ["sigma_reparam", "sigma_reparam_same_start"])
def test_sigma_reparam_holds_every_matrix(cure):
    """Gains start at 1 or at the matrix's norm, and at the end the norm is |gamma|, to the power iteration's error."""
    start, (*_, last) = net(cure), T.train(cure=cure, lr=3e-3, seed=3, dtype=torch.float64, **{**SMALL, "steps": 30})
    plain = matrices(net())
    assert last["loss"] > 0
    for model in (start.eval(), last["model"].eval()):
        held = {n: m for n, m in model.named_modules() if isinstance(m, torch.nn.Linear)}
        assert len(held) == 2 * 6 + 1
        for name, linear in held.items():
            gamma = linear.parametrizations.weight[0].gamma.item()
            norm = torch.linalg.matrix_norm(linear.weight, 2).item()
            assert norm == pytest.approx(abs(gamma), rel=1e-9 if model is start else 0.05)
            if model is start:
                own = torch.linalg.matrix_norm(plain[name + ".weight"], 2).item()
                assert gamma == pytest.approx(1.0 if cure == "sigma_reparam" else own, rel=1e-9)


# ---- what is measured -----------------------------------------------------------------------------------------------


def naive(logits):
    """Entropy, floor, norm, std and spectral of one matrix, with loops."""
    from normkit.attention.laws import entropy_floor

    rows = []
    for z in logits.tolist():
        z = np.array([v for v in z if v != -math.inf])
        p = np.exp(z - z.max()) / np.exp(z - z.max()).sum()
        norm = np.linalg.norm(z - z.mean())
        entropy = sum(-v * math.log(v) for v in p if v > 0)
        rows.append((entropy, float(entropy_floor(norm, len(z))), norm, z.std()))
    whole = np.where(np.isneginf(logits), 0, logits)
    return [*np.mean(rows, axis=0), np.linalg.svd(whole)[1][0]]


@pytest.mark.parametrize("scale", [0.0, 1e-3, 1.0, 30.0, 1e4])
@pytest.mark.parametrize("causal", [False, True])
def test_measure_is_the_naive_loop(scale, causal):
    z = scale * torch.randn(3, 2, 7, 7, generator=T.generator(0, "z"), dtype=torch.float64) + 5
    if causal:
        z = z.masked_fill(torch.ones(7, 7, dtype=torch.bool).triu(1), -math.inf)
    found = T.measure(z)
    assert set(found) == {"entropy", "floor", "norm", "std", "spectral"}
    for i in np.ndindex(3, 2):
        wanted = naive(z[i].numpy())
        got = [found[name][i] for name in ("entropy", "floor", "norm", "std", "spectral")]
        assert got == pytest.approx(wanted, rel=1e-9, abs=1e-12 * max(1, scale))
        assert got[0] >= got[1] - 1e-12


def test_measure_at_the_floor_and_at_the_ceiling():
    rows = floor_logits(np.array([0.5, 2.0, 5.0]), 16)
    found = T.measure(torch.from_numpy(rows))
    assert found["entropy"] == pytest.approx(found["floor"], rel=1e-12)  # the floor's own logits attain it
    assert found["norm"] == pytest.approx(2.5)
    flat = T.measure(torch.full((4, 16), 3.0))
    assert (flat["entropy"], flat["floor"]) == pytest.approx((math.log(16), math.log(16)))
    assert (flat["norm"], flat["spectral"]) == pytest.approx((0.0, 3 * math.sqrt(64)))


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_measure_refuses_broken_logits(bad):
    z = torch.zeros(4, 4)
    z[1, 2] = bad
    with pytest.raises(ValueError, match="logits"):
        T.measure(z)
    with pytest.raises(ValueError, match="row"):
        T.measure(torch.full((2, 4), -math.inf))


@pytest.mark.parametrize("task", T.TASKS)
@pytest.mark.parametrize("cure", T.CURES)
def test_reports_are_those_of_the_model(cure, task):
    """The last report, recomputed from the model it brings and the batch it saw."""
    *_, last = T.train(cure=cure, task=task, lr=0.03, seed=3, **SMALL)
    tokens, targets = batch(task, skip=SMALL["steps"])
    model = last["model"].eval()
    logits = model.logits(tokens).double()
    found = np.mean([[[naive(z.numpy()) for z in sample] for sample in layer] for layer in logits], axis=1)
    for name, column in (("entropy", 0), ("floor", 1), ("spectral", 4)):
        assert last[name].shape == (2, 2)
        assert last[name].dtype == np.float64
        assert last[name] == pytest.approx(found[..., column], rel=1e-6)
    out = model(tokens).flatten(0, 1)[targets.flatten() != T.IGNORED]
    wanted = targets.flatten()[targets.flatten() != T.IGNORED]
    assert last["accuracy"] == (out.argmax(-1) == wanted).double().mean().item()
    if cure != "affine" and "sigma" not in cure:  # whose evaluation mode is a step further
        assert last["loss"] == pytest.approx(-out.log_softmax(-1)[range(len(out)), wanted].mean().item(), rel=1e-5)


@pytest.mark.parametrize("cure", T.CURES)
@pytest.mark.parametrize("lr", [0.003, 0.3])
def test_entropy_never_falls_below_its_floor(cure, lr):
    for task in T.TASKS:
        for report in T.train(cure=cure, task=task, placement="none", lr=lr, steps=12, tokens=8, layers=2, every=1):
            if report["diverged"]:
                break
            keys = np.arange(1, 9) if task == "copy" else np.full(8, 8)
            assert (report["entropy"] >= report["floor"] - 1e-9).all()  # rounding of float64 sums
            assert (report["entropy"] <= np.log(keys).mean() + 1e-9).all()
            assert (report["spectral"] > 0).all()


# ---- the run --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("warmup", [0, 3])
def test_training_is_adam_with_linear_warmup(warmup):
    """Five steps against torch's Adam on its own, the rate set by hand."""
    lr, model = 0.02, net()
    reports = list(T.train(lr=lr, warmup=warmup, seed=3, dtype=torch.float64, **{**SMALL, "steps": 5}))
    adam = torch.optim.Adam(model.parameters(), lr=lr, fused=False)
    for step, report in enumerate(reports):
        tokens, targets = batch(skip=step)
        loss = F.cross_entropy(model(tokens)[:, -1], targets[:, -1])
        assert report["loss"] == pytest.approx(loss.item(), rel=1e-9)
        assert (report["step"], report["steps"], report["done"]) == (step, 5, step == 5)
        adam.param_groups[0]["lr"] = lr * min(1, (step + 1) / warmup) if warmup else lr
        adam.zero_grad()
        loss.backward()
        adam.step()


@pytest.mark.parametrize("cure", T.CURES)
def test_same_seed_same_run_however_often_it_is_looked_at(cure):
    options = {**SMALL, "cure": cure, "lr": 0.03}
    first, again = (numbers(T.train(**options)) for _ in range(2))
    assert first == again
    rare = numbers(T.train(**{**options, "every": 3}))
    assert [r[0] for r in rare] == [0, 3, 4]
    assert rare == [first[i] for i in (0, 3, 4)]
    assert numbers(T.train(**options, seed=1))[0] != first[0]


def test_global_random_state_is_left_alone():
    torch.manual_seed(5)
    before = torch.get_rng_state()
    list(T.train(**SMALL))
    assert torch.equal(before, torch.get_rng_state())


@pytest.mark.parametrize("cure", PLAIN_START)
def test_cures_that_start_with_the_plain_net(cure):
    plain, cured = (next(T.train(cure=c, dtype=torch.float64, **SMALL)) for c in ("plain", cure))
    assert cured["loss"] == pytest.approx(plain["loss"], rel=1e-9)  # the batch is the same, too
    assert cured["entropy"] == pytest.approx(plain["entropy"], rel=1e-9)
    assert cured["spectral"] == pytest.approx(plain["spectral"], rel=1e-9)


def test_a_smaller_start_is_not_the_plain_net():
    plain, cured = (next(T.train(cure=c, **SMALL)) for c in ("plain", "sigma_reparam"))
    assert (cured["spectral"] < plain["spectral"]).all()


def test_warmup_is_a_cure_and_an_option():
    options = {**SMALL, "steps": 5, "lr": 0.03}
    cured, asked, plain = (
        numbers(T.train(**options, **how)) for how in ({"cure": "warmup"}, {"warmup": 2}, {"warmup": 0})
    )
    assert cured == asked  # two fifths of five steps
    assert cured != plain
    assert numbers(T.train(**options, cure="warmup", warmup=0)) == plain


@pytest.mark.parametrize("lr", [1e6, 1e30])
@pytest.mark.parametrize("placement", T.PLACEMENTS)
def test_a_run_that_diverges_says_so(lr, placement):
    """At 1e6 Pre-LN hides it: squares overflow, the norm's output is 0 and the loss stays at chance."""
    *_, last = T.train(lr=lr, placement=placement, **{**SMALL, "steps": 50})
    assert last["diverged"] and last["done"] and last["step"] < 50
    assert [last[name] for name in T.MEASURED] == [None] * 3
    assert isinstance(last["model"], T.Net)


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"cure": "qknorm"}, "unknown cure 'qknorm'.*qk_norm"),
        ({"placement": "peri"}, "unknown placement 'peri'"),
        ({"task": "sum"}, "unknown task 'sum'"),
        ({"lr": 0}, "lr must be a finite positive number"),
        ({"lr": math.nan}, "lr must be a finite positive number"),
        ({"steps": 0}, "steps must be at least 1"),
        ({"every": 0}, "every must be at least 1"),
        ({"warmup": -1}, "warmup must be at least 0"),
        ({"tokens": 3}, "tokens must be at least 4"),
        ({"layers": 0}, "layers must be at least 1"),
        ({"heads": 3}, "heads must divide width"),
        ({"task": "copy", "tokens": 9}, "tokens must be even, got 9"),
        ({"seed": -1}, "seed must be a non-negative integer"),
    ],
)
def test_wrong_arguments_are_errors_at_the_call(wrong, message):
    with pytest.raises(ValueError, match=message):
        T.train(**wrong)
    with pytest.raises(TypeError, match="steps must be an integer"):
        T.train(steps=1.5)
