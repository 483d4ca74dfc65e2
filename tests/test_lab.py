import gzip
import json
import subprocess
import sys

import numpy as np
import pytest
from toy_lab import ToyLab, ToyStream

import normkit
from normkit.lab import Lab, choice, labs
from normkit.panel import Panel


def message(seq, quality="exact", **controls):
    return {"kind": "move", "seq": seq, "quality": quality, "controls": controls}


def line(panel):
    """The theory line in a panel's picture, decoded from the bytes that travel to the page."""
    trace = next(t for t in panel.picture["figure"]["data"] if t["name"] == "line (theory)")
    return np.frombuffer(trace["y"], np.float64)


# ---- controls


@pytest.mark.parametrize(
    ("controls", "words"),
    [
        ({"layers": 0}, "layers must be a whole number from 1 to 64 layers; got 0"),
        ({"layers": 65}, "from 1 to 64"),
        ({"layers": 2.5}, "whole number"),
        ({"layers": True}, "whole number"),
        ({"layers": "8"}, "got '8'"),
        ({"slope": float("nan")}, "got nan"),
        ({"slope": float("inf")}, "got inf"),
        ({"law": "lines"}, "Did you mean 'line'"),
        ({"layer": 3}, "did you mean 'layers'"),
    ],
)
def test_a_bad_control_is_an_error_and_changes_nothing(controls, words):
    lab = ToyLab()
    with pytest.raises(ValueError, match=words.replace("?", r"\?")):
        lab.set(slope=2.0, **controls) if "slope" not in controls else lab.set(**controls)
    assert lab.controls() == ToyLab().controls()
    if "layer" not in controls:
        with pytest.raises(ValueError, match="must be"):
            ToyLab(**controls)


def test_fields_change_only_by_set():
    with pytest.raises(AttributeError):
        ToyLab().layers = 3


def test_set_behaves_as_a_moved_slider():
    lab = ToyLab()
    lab.set(layers=5, slope=2)
    assert lab.run()["y"].tolist() == [1, 3, 5, 7, 9, 11]
    assert isinstance(lab.slope, float)


def test_coarse_and_exact_are_what_compute_gets():
    assert ToyLab().run("coarse")["quality"] == "coarse"
    assert ToyLab().run()["quality"] == "exact"
    with pytest.raises(ValueError, match="'coarse' or 'exact'"):
        ToyLab().run("fine")


def test_the_grid_reaches_every_end_of_every_control():
    grid = list(ToyLab.grid())
    assert {} in grid
    for name, ends in {"layers": (1, 64), "slope": (0.5, 2.0), "law": ("line", "crash")}.items():
        assert {g[name] for g in grid if name in g} >= set(ends)
    assert {"layers": 64, "slope": 0.5} in grid


# ---- text twins and state


def test_the_table_holds_the_figures_numbers():
    table = ToyLab(layers=3).table()
    assert [row.split()[0] for row in table.splitlines()[2:6]] == ["0", "1", "2", "3"]
    assert "4 [3.6, 4.4]" in table  # 1 + 3, and its band
    assert "0.25" in table  # the other panel: 1/4
    assert repr(table) == str(table)


def test_the_description_says_where_each_curve_goes():
    text = ToyLab(layers=3).describe()
    assert "line (theory) rises from 1 to 4 at layer 3" in text
    assert "net (real model) falls from 1 to 0.25" in text


def test_the_repr_is_fixed():
    assert repr(ToyLab()) == "ToyLab(layers=8, slope=1.0, law='line')"


@pytest.mark.parametrize("form", ["dict", "text", "json", "html"])
def test_state_round_trip(form, tmp_path):
    lab = ToyLab(layers=7, slope=1.5)
    state = lab.state()
    state = {"dict": state, "text": json.dumps(state)}.get(form) or lab.save(tmp_path / f"lab.{form}")
    again = ToyLab.load(state)
    assert again.controls() == {"layers": 7, "slope": 1.5, "law": "line"}
    assert state is not None and lab.state()["version"] == normkit.__version__


def test_a_saved_figure_stands_alone(tmp_path):
    html = ToyLab().save(tmp_path / "fig.html").read_text(encoding="utf-8")
    assert "cdn.plot.ly" not in html.split("<body>")[0] and len(html) > 3_000_000  # plotly.js is inside
    assert '"showSendToCloud": false' in html
    assert "line (theory) rises" in html


@pytest.mark.parametrize(
    ("state", "words"),
    [
        ({"lab": "NoLab", "controls": {}}, "there is no lab 'NoLab'"),
        ({"lab": "DepthLab", "controls": {}}, "not of ToyLab"),
        ({"controls": {}}, "keys 'lab' and 'controls'"),
        ("{not json", "no saved lab"),
        ({"lab": "ToyLab", "controls": {"layers": 1e9}}, "layers must be"),
    ],
)
def test_a_bad_state_is_an_error(state, words):
    with pytest.raises(ValueError, match=words):
        ToyLab.load(state)


def test_a_lab_is_saved_in_known_forms_only(tmp_path):
    with pytest.raises(ValueError, match=r"\.html .* or \.json"):
        ToyLab().save(tmp_path / "lab.png")


def test_labs_lists_the_kits_labs():
    assert "DepthLab" in labs()
    assert all(text and "\n" not in text for text in labs().values())
    assert isinstance(normkit.DepthLab(), Lab)


# ---- the panel: what the page sends and gets


def test_a_move_is_answered_with_its_seq_and_its_numbers():
    panel = Panel(ToyLab())
    panel._handle_custom_msg(message(7, "coarse", layers=4, slope=2.0, law="line"), [])
    assert (panel.picture["seq"], panel.picture["quality"]) == (7, "coarse")
    assert line(panel).tolist() == [1, 3, 5, 7, 9]
    assert panel.picture["controls"] == panel.controls == {"layers": 4, "slope": 2.0, "law": "line"}


def test_set_in_a_cell_moves_the_shown_panel():
    lab = ToyLab()
    panel = Panel(lab)
    lab._panels.append(panel)
    lab.set(layers=2)
    assert line(panel).tolist() == [1, 2, 3]
    assert panel.controls["layers"] == 2


def test_a_crash_reaches_the_learner_and_the_test_and_the_lab_lives_on():
    panel = Panel(ToyLab())
    good = panel.picture["figure"]
    with pytest.raises(ZeroDivisionError):
        panel._handle_custom_msg(message(1, layers=8, slope=1.0, law="crash"), [])
    assert panel.picture["error"] == "ZeroDivisionError: this law has no values; choose line"
    assert panel.picture["seq"] == 1 and panel.picture["figure"] is good
    panel._handle_custom_msg(message(2, layers=8, slope=1.0, law="line"), [])
    assert panel.picture["error"] is None


def test_a_value_out_of_range_from_the_page_is_refused():
    panel = Panel(ToyLab())
    with pytest.raises(ValueError, match="layers must be"):
        panel._handle_custom_msg(message(1, layers=10**6, slope=1.0, law="line"), [])
    assert "layers must be" in panel.picture["error"]
    assert panel.lab.layers == 8


def test_the_picture_is_small_and_plotly_is_never_stored():
    state = Panel(ToyLab()).get_state()
    sizes = {k: len(json.dumps(v, default=lambda b: bytes(b).hex())) for k, v in state.items()}
    assert sum(sizes.values()) < 120_000, sizes  # with the panel's own script; plotly's would be 5 MB


def test_the_page_asks_for_plotly_and_gets_the_installed_one(monkeypatch):
    panel, sent = Panel(ToyLab()), []
    monkeypatch.setattr(panel, "send", lambda content, buffers: sent.append((content, buffers)))
    panel._handle_custom_msg({"kind": "plotly"}, [])
    [(content, [script])] = sent
    assert content == {"kind": "plotly"} and b"plotly.js v" in gzip.decompress(script)[:200]
    assert len(script) < 3_000_000  # Jupyter's server drops what exceeds 1 MB/s over its window of 3 s


def test_a_stream_runs_beside_the_messages_to_its_end():
    panel = Panel(ToyStream())
    panel._handle_custom_msg({"kind": "start", "seq": 3}, [])
    panel.wait()
    assert (panel.picture["quality"], panel.picture["done"], panel.picture["running"]) == ("exact", 1.0, False)
    assert line(panel).tolist() == [1, 2, 3, 4, 5]
    assert ToyStream().run()["y"].tolist() == [1, 2, 3, 4, 5]


def test_a_crash_in_a_stream_is_shown_and_raised():
    panel = Panel(ToyStream(slope=2.0))
    panel._handle_custom_msg({"kind": "start", "seq": 3}, [])
    with pytest.raises(FloatingPointError, match="diverged"):
        panel.wait()
    assert "diverged at step 3" in panel.picture["error"]
    panel._handle_custom_msg(message(4, layers=8, slope=1.0, law="line"), [])
    panel._handle_custom_msg({"kind": "start", "seq": 5}, [])
    panel.wait()  # the next run is judged by itself
    assert panel.picture["error"] is None
    with pytest.raises(FloatingPointError):
        ToyStream(slope=2.0).run()


def test_stop_ends_a_stream_and_closes_it(monkeypatch):
    closed = []

    def stream(self):
        try:
            n = 1
            while True:
                yield min(0.9, n / 100), {"x": np.arange(n + 1), "y": np.ones(n + 1)}
                n += 1
        finally:
            closed.append(n)

    monkeypatch.setattr(ToyStream, "stream", stream)
    panel = Panel(ToyStream())
    panel._handle_custom_msg({"kind": "start", "seq": 3}, [])
    panel._handle_custom_msg({"kind": "stop"}, [])
    assert panel._thread is None and len(closed) == 1
    assert not panel.picture["running"]


# ---- showing


def test_without_a_front_end_the_lab_is_a_static_figure(monkeypatch):
    monkeypatch.setenv("NORMKIT_STATIC", "1")
    bundle = ToyLab()._repr_mimebundle_()
    assert bundle["text/plain"] == repr(ToyLab())
    assert "application/vnd.jupyter.widget-view+json" not in bundle and len(bundle) > 1


def test_with_one_it_is_a_widget_and_a_fixed_text(monkeypatch):
    monkeypatch.delenv("NORMKIT_STATIC", raising=False)
    lab = ToyLab()
    bundle = lab._repr_mimebundle_()
    assert bundle["text/plain"] == repr(lab)
    assert "application/vnd.jupyter.widget-view+json" in bundle
    again = lab._repr_mimebundle_()
    assert again == bundle  # the same panel, so that both places move


def test_a_lab_without_showing_loads_no_widgets():
    code = "import sys, normkit; normkit.DepthLab(layers=3, model='none').run(); print({'torch', 'plotly', 'ipywidgets'} & set(sys.modules))"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "set()\n"


def test_a_control_may_not_hide_what_every_lab_has():
    with pytest.raises(TypeError, match="cannot be called 'picture'"):

        class Hiding(Lab):
            picture: str = choice("a", "a", "b", label="Picture")
