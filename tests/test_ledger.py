"""The ledger: definitions, runs, errors, the file, the table, the command and the badge; claims here are made up."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from normkit import ledger
from normkit.badge import Badge
from normkit.ledger import Claim, Regime, Verdict, claim, run
from normkit.rng import stream


def noise(seed):
    return stream(seed, "noise").normal()


def make(sample=lambda seed: 1.0 + 0.1 * noise(seed), **changes):
    fields = {
        "id": "made-up",
        "arxiv": "0000.00000",
        "paper": "Nobody",
        "statement": "one is positive",
        "regimes": ("only",),
        "statistic": "a number near one",
        "direction": ">",
        "threshold": 0.0,
        "seeds": 6,
        "budget_s": 1.0,
    }
    return Claim(sample=sample, **(fields | changes))


@pytest.fixture
def book(monkeypatch, tmp_path):
    """A ledger with three made-up claims and its own file."""
    rising, broken = make(id="rising", statistic="|one|"), make(lambda seed: 1 / 0, id="broken")
    falling = make(id="falling", direction="<", statement="one is negative")
    monkeypatch.setattr(ledger, "claims", lambda theme=None: {c.id: c for c in (rising, falling, broken)})
    monkeypatch.setattr(ledger, "data_path", lambda: tmp_path)
    return tmp_path / "ledger.json"


def test_run_reports_mean_and_interval_of_the_samples():
    verdict = run(make())
    x = np.array([1.0 + 0.1 * noise(seed) for seed in range(1000, 1006)])  # the first thousand are for writing claims
    (only,) = verdict.regimes
    half = 4.032142983557536 * x.std(ddof=1) / np.sqrt(6)  # t(.995, 5)
    assert verdict.verdict == "holds"
    assert [only.effect, only.low, only.high] == pytest.approx([x.mean(), x.mean() - half, x.mean() + half], rel=1e-9)
    assert only.side == "claimed"
    assert (verdict.seeds, verdict.error, only.name) == (6, None, "only")
    assert verdict.versions["numpy"] == np.__version__


@pytest.mark.parametrize(
    ("sample", "fields", "verdict", "sides"),
    [
        (lambda s: 1 + 0.1 * noise(s), {"direction": "<"}, "contradicted", ["other"]),
        (noise, {}, "not shown at toy scale", ["open"]),
        (lambda s: 1 + 0.01 * noise(s), {"direction": "within", "threshold": (0.9, 1.1)}, "holds", ["claimed"]),
        (lambda s: 2 + 0.01 * noise(s), {"direction": "within", "threshold": (0.9, 1.1)}, "contradicted", ["other"]),
        (lambda s: [1, -1], {"regimes": ("a", "b")}, "holds in regime", ["claimed", "other"]),
        (lambda s: [1, noise(s)], {"regimes": ("a", "b")}, "holds in regime", ["claimed", "open"]),
        (lambda s: np.array([-1, -2]), {"regimes": ("a", "b")}, "contradicted", ["other", "other"]),
    ],
)
def test_verdicts_come_from_the_samples(sample, fields, verdict, sides):
    found = run(make(sample, **fields))
    assert found.verdict == verdict
    assert [r.side for r in found.regimes] == sides


@pytest.mark.parametrize(
    ("sample", "regimes", "message"),
    [
        (lambda s: 1 / 0, ("a",), "ZeroDivisionError"),
        (lambda s: float("nan"), ("a",), "seed 1000 measured .*not finite"),
        (lambda s: float("inf") if s == 1003 else 1.0, ("a",), "seed 1003 measured .*not finite"),
        (lambda s: [1.0, 2.0], ("a",), "2 numbers for 1 regimes"),
        (lambda s: 1.0, ("a", "b"), "1 numbers for 2 regimes"),
    ],
)
def test_a_claim_that_fails_is_an_error_and_no_verdict(sample, regimes, message):
    found = run(make(sample, regimes=regimes))
    assert found.verdict is None
    assert found.regimes == ()
    with pytest.raises(AssertionError, match=message):
        raise AssertionError(found.error)
    assert "error:" in str(found)


def test_an_interrupt_is_not_a_verdict_either():
    def stop(seed):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run(make(stop))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"direction": ">="}, "direction is"),
        ({"direction": "within"}, "does not fit"),
        ({"threshold": (0.0, 1.0)}, "does not fit"),
        ({"direction": "within", "threshold": (1.0, 0.0)}, "not rising"),
        ({"threshold": float("nan")}, "not finite"),
        ({"seeds": 2}, "at least 3 seeds"),
        ({"alpha": 0.0}, "alpha"),
        ({"alpha": 0.7}, "alpha"),
        ({"regimes": ()}, "regime"),
        ({"regimes": ("a", "a")}, "regime"),
    ],
)
def test_a_claim_that_cannot_be_decided_is_refused(changes, message):
    with pytest.raises(ValueError, match=message):
        make(**changes)


def test_the_definition_changes_with_what_decides_the_verdict():
    base = make()
    changes = [{"threshold": 0.1}, {"direction": "<"}, {"seeds": 7}, {"alpha": 0.05}, {"regimes": ("x",)}, {"id": "y"}]
    assert len({make(**c).definition for c in [{}, *changes]}) == len(changes) + 1
    assert make(noise).definition != base.definition
    assert make(budget_s=9.0).definition == base.definition == make().definition


def test_the_decorator_makes_a_claim():
    given = {
        k: getattr(make(), k) for k in ("arxiv", "paper", "statement", "regimes", "statistic", "direction", "threshold")
    }

    @claim(id="decorated", seeds=5, budget_s=1, **given)
    def sample(seed):
        return seed - 999.0

    assert isinstance(sample, Claim)
    assert run(sample).regimes[0].effect == pytest.approx(3.0)


def test_progress_counts_the_seeds():
    seen = []
    run(make(), lambda done, seeds: seen.append((done, seeds)))
    assert seen == [(k, 6) for k in range(1, 7)]


def test_the_file_round_trips_keeps_others_and_takes_no_error(book):
    assert ledger.load() == {}
    done = ledger.run_all(progress=False, write=True)
    assert [v.id for v in done] == ["rising", "falling", "broken"]
    assert ledger.load() == {"rising": done[0], "falling": done[1]}
    again = ledger.run_all("rising", progress=False, write=True)[0]
    assert ledger.load() == {"rising": again, "falling": done[1]}
    state = json.loads(book.read_text())
    assert state["schema"] == 1
    assert [v["id"] for v in state["verdicts"]] == ["falling", "rising"]
    assert set(state["verdicts"][0]["regimes"][0]) == {"name", "effect", "low", "high", "side"}


def test_another_schema_is_refused(book):
    book.write_text('{"schema": 99, "verdicts": []}')
    with pytest.raises(ValueError, match="schema 99"):
        ledger.load()


def test_unknown_names_come_with_suggestions(book):
    with pytest.raises(ValueError, match="unknown claim 'risin'; did you mean rising"):
        run("risin")
    with pytest.raises(ValueError, match="the ledger has rising, falling, broken"):
        ledger.run_all(["rising", "zzz"], progress=False)


def test_unknown_theme():
    with pytest.raises(ValueError, match="unknown theme 'dept'; the ledger has depth"):
        ledger.claims("dept")


def test_the_table_shows_verdict_effect_and_interval(book):
    ledger.save([Verdict("rising", "holds", (Regime("only", 1.0, 0.5, 1.5, "claimed"),), 6, 0.1, "0" * 12, {})])
    head, rule, row = ledger.table().splitlines()
    assert head.count("|") == rule.count("|") == row.replace(r"\|one\|", "").count("|")
    assert "one is positive" in row
    assert "**holds**" in row
    assert "(> 0): only: 1 [0.5, 1.5]" in row
    assert "https://arxiv.org/abs/0000.00000" in row
    assert "**error**" in ledger.table([run("broken")])
    assert "ZeroDivisionError" in ledger.table([run("broken")])


def test_a_theme_has_its_own_table():
    tables = {theme: ledger.table(theme=theme) for theme in (None, *ledger.THEMES)}
    rows = {theme: set(text.splitlines()[2:]) for theme, text in tables.items()}
    assert set.union(*(rows[theme] for theme in ledger.THEMES)) == rows[None]
    assert rows["depth"].isdisjoint(rows["rates"])
    assert ledger.TITLES.keys() == ledger.THEMES.keys()


def test_the_command_prints_json_and_reports_errors_by_its_code(book, capsys):
    assert ledger.main(json_output=True, only="rising") == 0
    out = json.loads(capsys.readouterr().out)
    assert [v["verdict"] for v in out["verdicts"]] == ["holds"]
    assert not book.exists()
    assert ledger.main(write=True) == 1
    out, err = capsys.readouterr()
    assert "falling: contradicted" in out
    assert "broken: error: ZeroDivisionError" in out
    assert "6/6" in err or "18/18" in err  # the bar is on stderr, and full although one claim stopped early
    assert set(ledger.load()) == {"rising", "falling"}
    assert ledger.main(only="rsing") == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert "did you mean rising" in err


def test_a_badge_is_one_fixed_line(book):
    assert repr(ledger.badge("rising")) == "rising: not run yet"
    ledger.run_all("rising", progress=False, write=True)
    assert repr(ledger.badge("rising")) == "rising: holds (last run, 6 seeds)"
    stale = Badge(make(id="rising", seeds=7))
    assert repr(stale) == "rising: holds (last run, 6 seeds), of an older definition"


def click(widget):
    """What the front end's button sends, as the comm delivers it; its callbacks' errors are logged, not raised."""
    widget._handle_msg({"content": {"data": {"method": "custom", "content": {"kind": "rerun"}}}, "buffers": []})


def test_a_badge_reruns_on_a_click(book):
    pytest.importorskip("anywidget")
    badge = ledger.badge("falling")
    widget = badge.widget()
    assert (widget.verdict, widget.details, widget.running) == (
        "falling: not run yet",
        f"one is negative\nMeasured: {badge.claim.statistic}; claimed: < 0.",
        False,
    )
    shown = []
    widget.observe(lambda change: shown.append((change["name"], change["new"])), ["running", "done"])
    click(widget)
    assert badge.verdict.verdict == "contradicted"
    assert shown[0] == ("running", True)
    assert ("done", 0.5) in shown
    assert shown[-1] == ("running", False)
    assert widget.verdict == "falling: contradicted (last run, 6 seeds)"
    assert f"only: {badge.verdict.regimes[0].effect:.3g} [" in widget.details
    assert widget.error == ""
    widget._handle_msg({"content": {"data": {"method": "custom", "content": {"kind": "else"}}}, "buffers": []})
    assert len(shown) == shown.index(("running", False)) + 1  # another message runs nothing


def test_a_claim_that_raises_shows_its_error_as_the_verdict(book):
    pytest.importorskip("anywidget")
    widget = ledger.badge("broken").widget()
    click(widget)
    assert "error: ZeroDivisionError: division by zero" in widget.verdict
    assert not widget.running


@pytest.mark.parametrize("error", [OSError("no data"), KeyboardInterrupt()])
def test_an_error_around_the_claim_stays_on_the_badge_and_goes_on_up(book, monkeypatch, error):
    pytest.importorskip("anywidget")
    ledger.run_all("rising", progress=False, write=True)
    widget = ledger.badge("rising").widget()
    with monkeypatch.context() as patch:
        patch.setattr(Badge, "rerun", lambda self, progress: (_ for _ in ()).throw(error))
        with pytest.raises(type(error)):
            widget.rerun()
    assert widget.error == {"OSError": "OSError: no data"}.get(type(error).__name__, "KeyboardInterrupt")
    assert widget.verdict == "rising: holds (last run, 6 seeds)"  # the last good one
    assert not widget.running
    widget.rerun()
    assert widget.error == ""


def test_a_badge_is_labeled_and_keeps_its_keys(book):
    script = (Path(ledger.__file__).parent / "static" / "badge.js").read_text(encoding="utf-8")
    assert '"data-lm-suppress-shortcuts": "true"' in script
    assert 'role: "status"' in script
    assert "innerHTML" not in script  # texts are texts: a statement with a < is shown as it is


def test_a_badge_shows_text_where_there_is_no_front_end(book, monkeypatch):
    ledger.run_all("rising", progress=False, write=True)
    monkeypatch.setenv("NORMKIT_STATIC", "1")
    assert ledger.badge("rising")._repr_mimebundle_() == {"text/plain": "rising: holds (last run, 6 seeds)"}
    monkeypatch.delenv("NORMKIT_STATIC")
    pytest.importorskip("anywidget")
    bundle = ledger.badge("rising")._repr_mimebundle_()
    assert bundle["text/plain"] == "rising: holds (last run, 6 seeds)"
    assert "application/vnd.jupyter.widget-view+json" in bundle


def test_the_ledger_imports_neither_torch_nor_widgets_nor_scipy():
    heavy = "[m for m in ('torch', 'ipywidgets', 'anywidget', 'scipy') if m in sys.modules]"
    code = f"import sys, normkit.ledger, normkit.badge; normkit.ledger.claims(); print({heavy})"
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert found.stdout.strip() == "[]"
