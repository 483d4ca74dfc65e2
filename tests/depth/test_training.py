"""The live training against torch's hooks, an Adam written out and the tasks' definitions; divergence and errors."""

import inspect
import math

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from normkit.depth import training  # noqa: E402
from normkit.depth.transformer import Transformer, generator  # noqa: E402

SMALL = {"layers": 2, "width": 8, "heads": 2, "steps": 5, "every": 2}


@pytest.fixture
def double():
    """Models in float64, so that two ways to one number differ by rounding only."""
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


@pytest.fixture
def batches(monkeypatch):
    """The list of the batches that the copy task hands out."""
    drawn = []

    def draw(draws):
        drawn.append(training.copy_task(draws))
        return drawn[-1]

    monkeypatch.setitem(training.TASKS, "copy", (draw, 16))
    return drawn


def numbers(reports):
    """All that the reports say, as exact numbers."""
    return [(r["step"], r["loss"], r["variance"].tolist(), r["gradient"].tolist()) for r in reports]


def cross_entropy(logits, targets):
    """Mean of -log softmax at the targets, over those that are not -100."""
    keep = targets >= 0
    logits, targets = logits[keep], targets[keep]
    logits = logits - logits.amax(-1, keepdim=True)
    return (logits.exp().sum(-1).log() - logits[torch.arange(len(targets)), targets]).mean()


def observed(model, tokens, targets):
    """Loss, and mean squares of x_0 .. x_L and of the gradients there, from hooks on the blocks."""
    layers = len(model.blocks)
    streams, gradients, handles = [None] * (layers + 1), [None] * (layers + 1), []
    for i, block in enumerate(model.blocks):

        def forward(_, inputs, output, i=i):
            streams[i], streams[i + 1] = inputs[0], output

        def backward(_, inputs, outputs, i=i):
            gradients[i], gradients[i + 1] = inputs[0], outputs[0]

        handles += [block.register_forward_hook(forward), block.register_full_backward_hook(backward)]
    loss = cross_entropy(model(tokens), targets)
    loss.backward()
    for handle in handles:
        handle.remove()
    return loss.item(), *([x.detach().square().mean().item() for x in kind] for kind in (streams, gradients))


def test_copy_targets_are_what_the_first_half_foretells():
    tokens, targets = training.copy_task(generator(0, "test"), 50)
    assert tokens.shape == targets.shape == (50, 15)
    for row, wanted in zip(tokens.tolist(), targets.tolist(), strict=True):
        for t in range(15):
            # after token t the next one is t + 1; it is known once it is a repetition of one 8 before
            assert wanted[t] == (row[t + 1 - 8] if t + 1 >= 8 else -100)
            assert t + 1 == 15 or t + 1 < 8 or wanted[t] == row[t + 1]
    assert set(tokens.flatten().tolist()) == set(range(16))


def test_running_sum_targets_against_a_loop():
    tokens, targets = training.running_sum_task(generator(0, "test"), 50)
    assert tokens.shape == targets.shape == (50, 16)
    for row, wanted in zip(tokens.tolist(), targets.tolist(), strict=True):
        total = 0
        for token, target in zip(row, wanted, strict=True):
            total = (total + token) % 5
            assert target == total
    assert set(tokens.flatten().tolist()) == set(range(5))


@pytest.mark.parametrize("task", training.TASKS)
def test_every_batch_is_fresh(task):
    draw, vocabulary = training.TASKS[task]
    draws = generator(0, "test")
    first, second = draw(draws)[0], draw(draws)[0]
    assert len(first) == len(second) == training.BATCH
    # equal tokens by chance: 1/vocabulary of about 500
    assert (first == second).double().mean().item() == pytest.approx(1 / vocabulary, abs=5 * (0.2 / 250) ** 0.5)


def test_same_seed_same_run_to_the_last_bit():
    torch.manual_seed(1)
    first = list(training.train("pre", **SMALL, seed=3))
    torch.manual_seed(2)
    again, other = (list(training.train("pre", **SMALL, seed=seed)) for seed in (3, 4))
    assert numbers(first) == numbers(again)
    assert all(a["loss"] != b["loss"] for a, b in zip(first, other, strict=True))
    for a, b in zip(first[-1]["model"].parameters(), again[-1]["model"].parameters(), strict=True):
        assert torch.equal(a, b)


def test_looking_more_often_changes_nothing():
    seldom, often = (list(training.train("pre", **{**SMALL, "every": every})) for every in (5, 1))
    assert numbers(seldom) == [numbers(often)[i] for i in (0, 5)]


def test_all_placements_see_the_same_batches(batches):
    runs = []
    for placement, layers in (("pre", 1), ("post", 2), ("fixup", 1)):
        list(training.train(placement, **{**SMALL, "layers": layers}))
        runs.append(list(batches))
        batches.clear()
    assert [len(run) for run in runs] == [6, 6, 6]  # five steps, and one to report after the last
    for run in runs[1:]:
        assert all(torch.equal(a, b) for x, y in zip(runs[0], run, strict=True) for a, b in zip(x, y, strict=True))
    list(training.train("pre", **SMALL, seed=1))
    assert not torch.equal(batches[0][0], runs[0][0][0])


@pytest.mark.parametrize(("steps", "every", "wanted"), [(10, 4, [0, 4, 8, 10]), (8, 4, [0, 4, 8]), (3, 50, [0, 3])])
def test_reports_come_when_they_should(steps, every, wanted):
    reports = list(training.train("pre", layers=1, width=4, heads=1, steps=steps, every=every))
    assert [r["step"] for r in reports] == wanted
    assert [r["done"] for r in reports] == ["model" in r for r in reports] == [False] * (len(wanted) - 1) + [True]
    for report in reports:
        assert report.keys() - {"model"} == {"step", "steps", "loss", "variance", "gradient", "diverged", "done"}
        assert report["steps"] == steps and report["diverged"] is False
        assert report["variance"].shape == report["gradient"].shape == (2,)
        assert report["variance"].dtype == report["gradient"].dtype == np.float64


@pytest.mark.parametrize("task", training.TASKS)
@pytest.mark.parametrize("placement", ["pre", "post", "skipinit"])
def test_loss_starts_at_chance_plus_what_random_logits_cost(placement, task):
    """A normed stream and a head N(0, 1/width) give logits N(0, 1), independent of the target."""
    vocabulary = training.TASKS[task][1]
    losses = [
        next(training.train(placement, layers=1, width=32, steps=1, task=task, seed=seed))["loss"] for seed in range(16)
    ]
    logits = np.random.default_rng(0).standard_normal((200_000, vocabulary))
    expected = np.log(np.exp(logits).sum(-1)).mean()  # sampling error 0.001
    assert expected > math.log(vocabulary) + 0.25
    # 5 standard errors of a mean of 16; the positions of a batch share the head, so each loss has a spread of 0.1
    assert np.mean(losses) == pytest.approx(expected, abs=5 * np.std(losses, ddof=1) / 4)
    assert np.std(losses) < 0.3 * expected  # or the line above would say nothing


@pytest.mark.parametrize("seed", [0, 1])
def test_loss_falls_below_what_one_token_can_tell(seed):
    reports = list(training.train("pre", layers=2, steps=120, every=120, seed=seed))
    # The tokens are uniform: without attention to the right place 8 tokens back, log 16 is the best there is.
    assert reports[-1]["loss"] < 0.5 * math.log(16) < math.log(16) < reports[0]["loss"]


@pytest.mark.parametrize("task", training.TASKS)
@pytest.mark.parametrize("placement", ["pre", "post", "peri", "deepnorm"])
def test_reports_are_what_hooks_on_the_blocks_see(placement, task, double):
    options = {**SMALL, "task": task, "norm": "layernorm", "seed": 2}
    reports = list(training.train(placement, **options))
    draws = generator(2, "batches")
    drawn = [training.TASKS[task][0](draws) for _ in range(6)]
    fresh = Transformer(
        placement, vocabulary=training.TASKS[task][1], context=16, layers=2, width=8, heads=2, norm="layernorm", seed=2
    )
    # the untrained model at step 0, and the returned one, as it is, in the last report
    for report, model, batch in ((reports[0], fresh, drawn[0]), (reports[-1], reports[-1]["model"], drawn[5])):
        loss, variance, gradient = observed(model, *batch)
        np.testing.assert_allclose(report["loss"], loss, rtol=1e-10)
        np.testing.assert_allclose(report["variance"], variance, rtol=1e-10)
        np.testing.assert_allclose(report["gradient"], gradient, rtol=1e-9)  # sums of terms of both signs
    assert reports[0]["loss"] != reports[-1]["loss"]


@pytest.mark.parametrize(
    ("warmup", "factors"), [(0, (1, 1, 1)), (1, (1, 1, 1)), (2, (0.5, 1, 1)), (5, (0.2, 0.4, 0.6))]
)
def test_warmup_is_linear_in_an_adam_run_by_hand(warmup, factors, double):
    lr = 0.01
    *_, last = training.train("pre", layers=1, width=4, heads=2, steps=3, lr=lr, warmup=warmup)
    model = Transformer("pre", vocabulary=16, context=16, layers=1, width=4, heads=2)
    start = [p.detach().clone() for p in model.parameters()]
    first, second = ([torch.zeros_like(p) for p in start] for _ in range(2))
    draws = generator(0, "batches")
    for t, factor in enumerate(factors, start=1):
        tokens, targets = training.copy_task(draws)
        gradients = torch.autograd.grad(cross_entropy(model(tokens), targets), list(model.parameters()))
        with torch.no_grad():
            for p, g, m, v in zip(model.parameters(), gradients, first, second, strict=True):
                m.mul_(0.9).add_(0.1 * g)
                v.mul_(0.999).add_(0.001 * g**2)
                p -= lr * factor * (m / (1 - 0.9**t)) / (torch.sqrt(v / (1 - 0.999**t)) + 1e-8)
    for trained, wanted, begin in zip(last["model"].parameters(), model.parameters(), start, strict=True):
        assert (wanted - begin).abs().max() > 0.1 * lr
        # rounding of 1e-16 in a gradient counts for 1e-16 / 1e-8 of lr where Adam's eps rules
        torch.testing.assert_close(trained.detach(), wanted.detach(), rtol=0, atol=1e-7 * lr)


@pytest.mark.parametrize(
    ("placement", "lr", "step"),
    [
        ("none", 1e10, 1),  # the loss is nan
        ("pre", 1e6, None),  # squares overflow, the norm makes the stream 0, and the loss alone would be log 16
        ("none", 1e2, None),
    ],
)
def test_a_run_that_diverges_says_so_and_ends(placement, lr, step):
    *before, last = training.train(placement, layers=2, steps=30, lr=lr)
    assert last["diverged"] and last["done"] and isinstance(last["model"], Transformer)
    assert last["variance"] is None and last["gradient"] is None
    assert math.isnan(last["loss"]) and 0 < last["step"] < 30 and step in (None, last["step"])
    assert not any(r["diverged"] or r["done"] for r in before)


@pytest.mark.parametrize("bad", [math.inf, math.nan])
def test_a_loss_that_is_not_finite_ends_the_training_between_reports(monkeypatch, bad):
    real, calls = training.loss_and_streams, []

    def breaks_at_step_3(*args):
        calls.append(args)
        loss, streams = real(*args)
        return loss * (bad if len(calls) == 4 else 1.0), streams

    monkeypatch.setattr(training, "loss_and_streams", breaks_at_step_3)
    first, last = training.train("pre", layers=1, width=4, heads=1, steps=20, every=10)
    assert first["step"] == 0 and not first["diverged"]
    assert last["step"] == 3 and last["diverged"] and last["done"] and len(calls) == 4
    assert np.array_equal(last["loss"], bad, equal_nan=True)
    assert last["variance"] is None and last["gradient"] is None


def test_large_but_sound_streams_are_not_called_divergent(monkeypatch):
    """A mean square of 1e30 is far from float32's end at 3e38."""
    make = training.Transformer

    def larger(*args, **options):
        model = make(*args, **options)
        with torch.no_grad():
            model.token.weight *= 1e15
        return model

    monkeypatch.setattr(training, "Transformer", larger)
    *_, last = training.train("pre", **SMALL)
    assert not last["diverged"] and last["variance"][0] > 1e29


def test_generator_closes():
    run = training.train("pre", **SMALL)
    assert inspect.isgenerator(run)
    assert next(run)["step"] == 0
    run.close()
    assert next(run, None) is None
    finished = training.train("pre", **SMALL)
    assert [r["step"] for r in finished] == [0, 2, 4, 5]
    assert next(finished, None) is None


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"placement": "pre-post"}, ValueError, "unknown placement"),
        ({"task": "running_sums"}, ValueError, "did you mean 'running_sum'"),
        ({"norm": "batchnorm"}, ValueError, "unknown norm 'batchnorm'"),
        ({"steps": 0}, ValueError, "steps must be at least 1"),
        ({"every": 0}, ValueError, "every must be at least 1"),
        ({"warmup": -1}, ValueError, "warmup must be at least 0"),
        ({"steps": 1.5}, TypeError, "steps must be an integer"),
        ({"layers": 0}, ValueError, "layers must be at least 1"),
        ({"heads": 5}, ValueError, "heads must divide width"),
        ({"seed": -1}, ValueError, "seed must be a non-negative integer"),
        *(({"lr": lr}, ValueError, "lr must be a positive number") for lr in (0, -1e-3, math.nan, math.inf, "1e-3")),
    ],
)
def test_wrong_arguments_are_refused_at_the_call(options, error, message):
    with pytest.raises(error, match=message):
        training.train(**{"placement": "pre", **options})  # not iterated


def test_trained_profile_is_the_last_reports():
    options = {"layers": 2, "width": 8, "heads": 2, "task": "running_sum"}
    profile = training.trained_profile("peri", lr=2e-3, steps=4, seeds=2, **options)
    assert profile.name == "trained peri"
    assert profile.variance.shape == profile.gradient.shape == (2, 3)
    assert profile.meta == {"lr": 2e-3, "steps": 4, "sublayers": 2, **options}
    for seed in range(2):
        *_, last = training.train("peri", lr=2e-3, steps=4, seed=seed, **options)
        np.testing.assert_array_equal(profile.variance[seed], last["variance"])
        np.testing.assert_allclose(profile.gradient[seed], last["gradient"] / last["gradient"][2], rtol=1e-14)
    assert (profile.gradient[:, -1] == 1).all() and not np.array_equal(profile.variance[0], profile.variance[1])


def test_trained_profile_refuses_a_run_that_diverged():
    with pytest.raises(ValueError, match=r"none diverged at step 1 with lr 1e\+10 \(seed 0\): lower lr"):
        training.trained_profile("none", lr=1e10, steps=4, seeds=2, layers=2)
    with pytest.raises(ValueError, match="seeds must be at least 1"):
        training.trained_profile("none", seeds=0)
    with pytest.raises(ValueError, match="unknown task"):
        training.trained_profile("none", task="sorting")
