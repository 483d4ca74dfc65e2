"""The depth claims: their statistics against exact laws, the null control's rate, and the ledger file against both."""

import math
import re
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest

from normkit import ledger
from normkit.depth import claims_digits, claims_init, claims_models, claims_trained, exact_profile, laws
from normkit.depth.claims import CLAIMS
from normkit.depth.equivalence import pre_rmsnorm, random_stack
from normkit.files import data_path
from normkit.rng import stream
from normkit.verdicts import VERDICTS, decide, interval, sides

CHEAP_S = 5  # claims of this budget are run again here
PAPERS = {
    "2502.02732": "Peri-LN",
    "2412.13795": "Mix-LN",
    "2502.05795": "Curse of Depth",
    "2510.03470": "On residual network depth",
    "1706.02515": "Self-normalizing networks",
    "1511.07289": "ELU",
    "2305.14858": "Pre-RMSNorm",
    "2507.02559": "LayerNorm removal",
    "2601.22966": "Residual sinks",
    "2107.11817": "WideNet",
    "2410.10672": "Matrix Nuclear-Norm",
}
LEDGER = ledger.load()
BY_ID = {c.id: c for c in CLAIMS}


# ---- definitions ----------------------------------------------------------------------------------------------------


def test_every_paper_of_the_theme_has_a_claim():
    assert {c.arxiv: c.paper for c in CLAIMS if c.arxiv} == PAPERS


def test_every_cited_paper_is_in_the_bibliography():
    bibliography = data_path("references.bib").read_text(encoding="utf-8")
    assert [arxiv for arxiv in PAPERS if arxiv not in bibliography] == []


def test_ids_are_unique_and_typable():
    assert len(BY_ID) == len(CLAIMS)
    assert all(re.fullmatch(r"[a-z0-9]+(-[a-z0-9]+)*", id) for id in BY_ID)


def test_there_is_a_null_control_of_three_regimes():
    (control,) = [c for c in CLAIMS if not c.arxiv]
    assert control.id == "control-null"
    assert len(control.regimes) == 3


# ---- statistics on curves whose answer is known ---------------------------------------------------------------------

DEPTH = np.arange(65.0)


def test_slope_is_the_least_squares_line():
    y = np.sin(DEPTH) + 0.3 * DEPTH
    assert claims_init.slope(DEPTH, y) == pytest.approx(np.polyfit(DEPTH, y, 1)[0], rel=1e-12)


@pytest.mark.parametrize("power", [0.5, 1.0, 2.0])
def test_growth_exponent_is_that_of_the_power_law(power):
    assert claims_init.growth_exponent(3 + 2 * DEPTH**power) == pytest.approx(power, rel=1e-12)


def test_growth_exponent_of_the_laws():
    assert claims_init.growth_exponent(laws.variance("peri", 64)) == pytest.approx(1.0, rel=1e-9)
    # H_l grows as log l: local exponent 1/H_l, between 1/H_64 = .21 and 1/H_32 = .25
    assert 0.21 < claims_init.growth_exponent(laws.variance("layernorm_scaling", 64)) < 0.25


@pytest.mark.parametrize(
    ("curve", "exponential"),
    [
        (laws.variance("pre", 64), False),
        (laws.variance("layernorm_scaling", 64), False),
        (laws.paper_recursion(64), False),  # the paper's own recursion: quadratic
        (laws.variance("none", 64), True),
        (1.1**DEPTH, True),
    ],
)
def test_misfits_tell_exponential_from_power(curve, exponential):
    ripple = np.exp(0.01 * np.sin(DEPTH))  # an exact law has no misfit to take the logarithm of
    assert (claims_init.exponential_over_power(curve * ripple) > 0) == exponential


def test_thirds_of_the_laws():
    assert claims_init.thirds(laws.variance("none", 60)) == pytest.approx([20 * math.log(2)] * 3, rel=1e-12)
    pre = claims_init.thirds(laws.variance("pre", 64))
    assert pre == pytest.approx(np.log([22, 43 / 22, 65 / 43]), rel=1e-12)
    assert claims_init.thirds(laws.variance("layernorm_scaling", 64))[2] < pre[2]


def test_log_spread():
    assert claims_init.log_spread(np.full(9, 7.0)) == pytest.approx(0.0, abs=1e-15)
    assert claims_init.log_spread(np.array([1.0, math.e**2])) == pytest.approx(1.0, rel=1e-12)


@pytest.mark.parametrize("start", [0.02, 1.0, 16.0])
def test_plain_nets_follow_the_moment_map_to_its_fixed_point(start):
    net = claims_init.plain_net("selu", 0, layers=32, variance=start)
    assert net.variance[0, 0] == pytest.approx(start, rel=5 * math.sqrt(2 / (64 * 256)))
    mean, variance = 0.0, net.variance[0, 0]
    for layer in range(1, 9):  # 256 units: a layer's variance has a spread of about sqrt(2/256), which adds up slowly
        mean, variance = laws.selu_map(mean, variance)
        assert net.variance[0, layer] == pytest.approx(variance, rel=5 * math.sqrt(2 / 256))


def test_the_map_with_fixed_weights_is_the_law():
    class Middle:
        def uniform(self, low, high):
            return (low + high) / 2

    mean, variance = 0.3, 4.0
    for _ in range(5):
        mean, variance = laws.selu_map(mean, variance, 0.0, 1.1)
    assert claims_init.mapped_variance(0.3, 4.0, 1.1, Middle(), layers=5) == pytest.approx(variance, rel=1e-12)


def test_the_gradient_of_the_last_matrix_against_the_chain_rule():
    ratio = claims_init.last_matrix_gradient("pre", 3, 7.0) / claims_init.last_matrix_gradient("pre", 3, 1.0)
    assert ratio == pytest.approx(7.0, rel=1e-12)  # dl/dW2 = h^T g, and h is homogeneous in W1
    # peri: a norm follows W2 and takes the scale of h away, but for eps = 1e-6 beside a mean square of order 1
    ratio = claims_init.last_matrix_gradient("peri", 3, 7.0) / claims_init.last_matrix_gradient("peri", 3, 1.0)
    assert ratio == pytest.approx(1.0, abs=1e-4)


# ---- given models, small nets, transformers -------------------------------------------------------------------------


def kept(stack):
    return stack


def test_rmsnorm_without_recentering_is_another_function():
    def careless(stack):
        """Gain and bias folded as in the conversion, but the stream's mean left where it is."""
        right = pre_rmsnorm(stack)
        blocks = tuple(new._replace(writer=old.writer) for new, old in zip(right.blocks, stack.blocks, strict=True))
        return replace(right, embed=stack.embed, blocks=blocks)

    layernorm = claims_models.output_and_gradient(0, kept)
    for a, b in zip(claims_models.output_and_gradient(0, careless), layernorm, strict=True):
        assert claims_models.relative_error(a, b) > -2  # so that the claim's -12 means something


def test_the_gradient_reaches_every_parameter_of_the_stack():
    output, gradient = claims_models.output_and_gradient(1, kept)
    stack, leaves = claims_models.learnable(random_stack(seed=1))
    assert len(leaves) == 6 + 12 * 6
    assert gradient.size == sum(leaf.numel() for leaf in leaves)
    x, g = stream(1, "equivalence inputs").normal(size=(2, 16, 8))
    assert output == pytest.approx(random_stack(seed=1)(x), rel=1e-10, abs=1e-12)
    # the head's bias comes last of its Affine, is added once to each of 16 rows, and so has the gradient sum_t g_t
    (place,) = [k for k, leaf in enumerate(leaves) if leaf is stack.head.bias]
    start = sum(leaf.numel() for leaf in leaves[:place])
    assert gradient[start : start + 8] == pytest.approx(g.sum(0), rel=1e-12)


def test_the_removal_claim_compares_with_the_fine_tuned_net(monkeypatch):
    def remove_and_finetune(*, seed, layers, steps, finetune):
        return SimpleNamespace(base=7.0, finetuned=0.5 + seed, vanilla_finetuned=0.2)

    monkeypatch.setattr("normkit.depth.removal.remove_and_finetune", remove_and_finetune)
    assert [BY_ID["layernorm-removable"].sample(seed) for seed in (0, 4)] == pytest.approx([0.3, 4.3])


def test_the_sharing_claim_is_individual_over_shared_by_depth(monkeypatch):
    def train_sharing(arm, *, seed, steps, layers):
        return SimpleNamespace(loss={"shared": 2.0, "shared_individual_norms": 2.0 / layers}[arm] + seed)

    monkeypatch.setattr("normkit.depth.sharing.train_sharing", train_sharing)
    assert BY_ID["individual-norms-help-shared-blocks"].sample(0) == pytest.approx(-np.log([4, 8]))


def test_relative_error_is_in_decades():
    x = np.ones((3, 4))
    assert claims_models.relative_error(x * (1 + 1e-5), x) == pytest.approx(-5, abs=1e-6)
    assert claims_models.relative_error(x, x) == -17


def test_an_outlier_rescales_by_the_law():
    x, sizes = stream(3, "sink").normal(size=(256, 64)), (0.0, 10.0, 1000.0)
    for size, found in zip(sizes, claims_models.other_outputs(3, sizes), strict=True):
        scaled = x * np.sqrt(65 / (np.sum(x**2, axis=1, keepdims=True) + size**2))
        assert found == pytest.approx(np.sqrt(np.mean(scaled**2)), rel=1e-5)  # eps = 1e-6 beside a mean square near 1


@pytest.mark.parametrize("rank", [1, 8, 64])
def test_representations_have_the_rank_they_say(rank):
    x = claims_models.representations(0, rank)
    assert (x.shape, np.linalg.matrix_rank(x)) == ((128, 64), rank)


def test_matrix_entropy_of_orthogonal_rows():
    x = np.concatenate([np.eye(8), -np.eye(8)])  # mean token 0, unit rows, 8 equal singular values
    assert claims_models.matrix_entropy(x) == pytest.approx(math.log(8), rel=1e-12)


def test_digits_are_split_and_standardized():
    x, y, test_x, test_y = claims_digits.images()
    assert (x.shape, y.shape, test_x.shape, test_y.shape) == ((1200, 64), (1200,), (597, 64), (597,))
    both = np.concatenate([x.numpy(), test_x.numpy()])
    assert [both.mean(), both.std()] == pytest.approx([0, 1], abs=1e-5)
    assert set(np.unique(test_y)) == set(range(10))


def test_fit_learns_and_repeats_itself():
    def losses(steps):
        w = claims_digits.matrices(0, 64, 10)
        return claims_digits.fit(lambda x: x @ w, [w], 0, steps=steps)

    before, after = losses(1)[1], losses(60)[1]
    assert after < 0.5 * before
    assert losses(60)[1] == after


def test_weights_have_variance_gain_over_fan_in():
    w = claims_digits.matrices(1, 3, 256, 128, gain=2.0).detach().numpy()
    assert w.var() == pytest.approx(2 / 256, rel=5 * math.sqrt(2 / w.size))


@pytest.mark.parametrize("diverged", [False, True])
def test_a_trained_run_is_its_last_tenth_and_divergence_is_chance(monkeypatch, diverged):
    def train(placement, **options):
        for step in range(0, options["steps"] + 1, options["every"]):
            done = step == options["steps"]
            bad = diverged and done
            yield {"step": step, "loss": float(step), "variance": None if bad else np.arange(9.0), "diverged": bad}

    claims_trained.trained.cache_clear()
    monkeypatch.setattr("normkit.depth.training.train", train)
    loss, variance = claims_trained.trained("pre", 0.1, 0)
    claims_trained.trained.cache_clear()
    assert loss == pytest.approx(math.log(16) if diverged else (185 + 190 + 195 + 200) / 4)
    assert np.isnan(variance).all() if diverged else variance[-1] == 8


# ---- the null control -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("regimes", [1, 3])
def test_the_null_control_is_given_a_verdict_with_probability_alpha_at_most(regimes):
    alpha, seeds, sets = BY_ID["control-null"].alpha, BY_ID["control-null"].seeds, 4000
    names = BY_ID["control-null"].regimes[:regimes]

    def output(name, seed):
        profile = exact_profile(name, layers=16, width=128, seeds=sets * seeds, seed=seed)
        return np.log(profile.variance[:, -1]).reshape(sets, seeds)

    samples = np.stack([output(name, 2 * k) - output(name, 2 * k + 1) for k, name in enumerate(names)], axis=-1)
    mean, low, high = interval(samples, alpha)
    false = np.mean(decide(sides(low, high, (0.0, math.inf))) != VERDICTS.index("not shown at toy scale"))
    assert mean.std() > 0
    assert false <= alpha + 4 * math.sqrt(alpha / sets)  # 4 standard errors of a binomial share


# ---- the ledger file ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("id", [c.id for c in CLAIMS if c.budget_s <= CHEAP_S])
def test_a_cheap_claim_gives_the_same_again(id):
    again, kept = ledger.run(id), LEDGER[id]
    assert again.error is None
    assert again.verdict == kept.verdict
    for new, old in zip(again.regimes, kept.regimes, strict=True):
        # float64 throughout: another BLAS changes the last digits only, which log10 of a difference consists of
        digits = {"abs": 0.5} if BY_ID[id].statistic.startswith("log10") else {"rel": 1e-6, "abs": 1e-9}
        assert [new.effect, new.low, new.high] == pytest.approx([old.effect, old.low, old.high], **digits)


def test_the_null_control_got_no_verdict():
    assert LEDGER["control-null"].verdict == "not shown at toy scale"
