"""The benchmark's own rules, on toy cases. Nothing here asserts a time."""

import json

import numpy as np
import pytest

from normkit import bench, bench_attention, bench_cases
from normkit.bench import Case, Work


def toy(**variants):
    reference = np.arange(1.0, 5.0)
    right = {"normkit": lambda: reference.astype(np.float32)}
    return Case("toy", "", lambda: Work(right | variants, reference, {"copy": reference.copy}, repeat=2))


def broken():
    raise RuntimeError("no such thing here")


def by_name(results):
    return {r.variant: r for r in results}


@pytest.mark.parametrize(
    ("wrong", "why"),
    [
        (lambda: np.arange(1.0, 5.0) * (1 + 1e-3), "exceeds"),
        (lambda: np.full(4, np.nan), "exceeds"),
        (lambda: np.ones(3), "shape"),
        (broken, "RuntimeError: no such thing"),
    ],
)
def test_a_wrong_variant_is_not_timed(wrong, why):
    results = by_name(bench.run(cases=[toy(peer=wrong)], rounds=2))
    assert why in results["peer"].refused
    assert results["peer"].seconds is None
    assert results["peer"].ratio is None
    assert results["normkit"].refused is None
    assert results["copy"].seconds > 0


def test_a_round_runs_every_variant_in_its_own_order_and_ratios_are_taken_round_by_round():
    order = []

    def clock(function, repeat):
        order.append(function())
        round_ = (len(order) - 1) // 3
        return {0.0: 1, 1.0: 3, 2.0: 0.5}[order[-1]] * 10.0**round_  # a machine that slows tenfold every round

    def setup():
        variants = {"normkit": lambda: np.float64(0), "peer": lambda: np.float64(1)}
        return Work(variants, np.array(2.0), {"floor": lambda: 2.0}, tolerance=1.0, clock=clock, items=30)

    results = by_name(bench.run(cases=[Case("toy", "", setup)], rounds=3))
    rounds = [order[:3], order[3:6], order[6:]]
    assert [sorted(r) for r in rounds] == [[0, 1, 2]] * 3 and not rounds[0] == rounds[1] == rounds[2]
    assert results["normkit"].seconds == 10 and [r.rate for r in results.values()] == [3, 1, 6]
    assert bench.report(results.values()).splitlines()[2].split()[-2:] == ["5e-01", "1"]
    assert (results["peer"].ratio, results["floor"].ratio) == (3, 0.5)
    assert results["peer"].low <= results["peer"].seconds <= results["peer"].high


def test_json(capsys):
    assert bench.main(True, None, 1, [toy(peer=broken)]) == 0
    text = json.loads(capsys.readouterr().out)
    fields = {"case", "variant", "seconds", "low", "high", "ratio", "error", "refused", "rate"}
    assert [r["variant"] for r in text["results"]] == ["normkit", "peer", "copy"]
    assert all(set(r) == fields for r in text["results"])
    assert set(text["machine"]) == {"system", "machine", "python", "cpu", "cores"}
    assert text["machine"]["cores"] >= 1


def test_every_case_is_announced_before_it_runs(capsys):
    seen = []

    def setup():
        seen.append(capsys.readouterr().err)
        return toy().setup()

    bench.run(cases=[Case("first", "one", setup), Case("second", "two", setup)], rounds=1)
    assert seen == ["1 of 2  first: one\n", "2 of 2  second: two\n"]


def test_progress_stays_out_of_the_json(capsys):
    bench.main(True, None, 1, [toy()])
    printed = capsys.readouterr()
    assert json.loads(printed.out)
    assert printed.err == "1 of 1  toy: \n"


def test_a_wrong_normkit_fails_the_run(capsys):
    assert bench.main(False, "toy", 1, [toy(normkit=broken)]) == 1
    assert "not timed" in capsys.readouterr().out


def test_an_unknown_name_lists_the_known_ones(capsys):
    assert bench.main(False, "layer_nrom") == 2
    assert "layer_norm_32x64" in capsys.readouterr().err
    with pytest.raises(ValueError, match="rounds"):
        bench.run(rounds=0)


def test_the_cases_that_must_be_there():
    names = {c.name for c in bench_cases.cases()}
    sizes = ("32x64", "64x1024", "65536x1024")
    assert names >= {f"{kind}_{size}" for kind in ("layer_norm", "rms_norm") for size in sizes}
    assert names >= {"project_rows_65536x1024", "project_matrix_4096x4096"}
    assert names >= {"spherical_walk", "spherical_slider", "equilibrium_grid"}
    assert names >= {f"softmax_entropy_{size}" for size in sizes} | {"phase_grid", "phase_grid_exact"}
    assert names >= {"depth_theory", "depth_band", "depth_nets", "import", "first_result"}


@pytest.mark.parametrize("kind", ["layer_norm", "rms_norm"])
def test_a_small_norm_case_times_every_variant_but_the_compiler(kind):
    work = bench_cases.norm(kind, 4, 8)
    work.variants.pop("torch.compile", None)  # 10 s of compilation
    small = Work(work.variants, work.reference, work.floors)
    results = bench.run(cases=[Case(kind, "", lambda: small)], rounds=1)
    assert not [r for r in results if r.refused]
    assert {"normkit", "normkit, new output", "numpy", "torch", "torch, warm memory", "row copy"} <= by_name(
        results
    ).keys()


@pytest.mark.parametrize("kind", ["project", "project_rows"])
def test_a_small_projection_case_times_every_variant_but_the_compiler(kind):
    work = bench_cases.projection(kind, 4, 8)
    work.variants.pop("torch.compile", None)
    norms = np.linalg.norm(work.reference, axis=-1 if kind == "project_rows" else None)
    np.testing.assert_allclose(norms, 1, rtol=1e-14)
    small = Work(work.variants, work.reference, work.floors)
    results = bench.run(cases=[Case(kind, "", lambda: small)], rounds=2)
    assert not [r for r in results if r.refused]
    timed = {"normkit", "normkit, new output", "normkit, other output", "numpy", "torch", "torch, float64 norm"}
    assert timed | {"torch, warm memory", "row copy", "numpy.copyto"} <= by_name(results).keys()
    assert ("read and copy" in work.floors) == (kind == "project")


def test_a_small_softmax_case_times_every_variant_but_the_compiler():
    work = bench_attention.softmax_entropy(4, 8)
    work.variants.pop("torch.compile", None)
    assert work.reference.shape == (4,) and (work.reference > 0).all() and (work.reference < np.log(8)).all()
    small = Work(work.variants, work.reference, work.floors)
    results = bench.run(cases=[Case("softmax", "", lambda: small)], rounds=2)
    assert not [r for r in results if r.refused]
    timed = {"normkit", "normkit, new output", "normkit, no softmax", "numpy", "torch", "torch, warm memory"}
    assert timed | {"row copy", "numpy.copyto", "torch softmax alone"} <= by_name(results).keys()


def test_the_walk_is_checked_against_numpy_and_a_wrong_one_is_refused():
    work = bench_cases.spherical_walk(rows=3, dim=32, steps=20)
    assert work.reference.shape == (3, 20)
    results = by_name(bench.run(cases=[Case("walk", "", lambda: work)], rounds=1))
    assert results["normkit"].refused is None and results["numpy"].error == 0
    wrong = Work({"normkit": lambda: work.variants["normkit"]() * (1 + 1e-8)}, work.reference, tolerance=work.tolerance)
    assert "exceeds" in bench.run(cases=[Case("off", "", lambda: wrong)], rounds=1)[0].refused


SIMULATED = [
    bench_cases.depth_theory,
    bench_cases.depth_band,
    bench_cases.spherical_slider,
    bench_cases.equilibrium_grid,
    bench_attention.phase_grid,
]


@pytest.mark.parametrize("setup", SIMULATED)
def test_simulated_cases_lie_on_their_laws(setup):
    results = bench.run(cases=[Case("simulated", "", setup)], rounds=1)
    assert not [r for r in results if r.refused]


def test_nets_of_normkit_and_torch_follow_one_law():
    work = bench_cases.depth_nets()
    assert {"normkit", "torch"} <= set(work.variants)
    assert work.reference.shape == (65,)
    results = bench.run(cases=[Case("depth_nets", "", lambda: work)], rounds=1)
    assert not [r for r in results if r.refused]
    small = Work({"normkit": lambda: work.variants["normkit"]() * 2}, work.reference, tolerance=work.tolerance)
    assert "exceeds" in bench.run(cases=[Case("doubled", "", lambda: small)], rounds=1)[0].refused


@pytest.mark.parametrize(
    ("setup", "peer", "floor"),
    [(bench_cases.import_time, "numpy", "python"), (bench_cases.first_result, "torch", "numpy")],
)
def test_fresh_processes_are_compared_with_a_peer_and_a_floor(setup, peer, floor):
    work = setup()
    assert set(work.variants) == {"normkit", peer}
    assert set(work.floors) == {floor}
    ours = Work({"normkit": work.variants["normkit"]}, work.reference, work.floors, tolerance=work.tolerance)
    results = by_name(bench.run(cases=[Case("fresh", "", lambda: ours)], rounds=1))
    assert results["normkit"].refused is None
    assert results["normkit"].error <= work.tolerance


def test_first_result_expects_the_layer_norm_of_1_2_3():
    reference = bench_cases.first_result().reference
    assert reference.std() == pytest.approx(1 / np.sqrt(1 + 1e-5 * 3 / 2), rel=1e-12)  # eps beside the variance 2/3
    assert reference[0] < reference[1] == 0


def test_a_fresh_process_that_fails_is_refused():
    work = Work({"normkit": bench_cases._fresh("raise SystemExit(3)")}, np.ones(1))
    assert "CalledProcessError" in bench.run(cases=[Case("fails", "", lambda: work)], rounds=1)[0].refused
