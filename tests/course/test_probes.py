import json

import numpy as np
import pytest

from normkit.course import calls, emit, probes, secret


@pytest.mark.parametrize(
    ("value", "coded"),
    [
        (2, 2.0),
        (np.float32(0.5), 0.5),
        (np.array(3), 3.0),
        (True, True),
        (None, None),
        ("pre", "pre"),
        (float("nan"), {"number": "nan"}),
        ((1, -np.inf), [1.0, {"number": "-inf"}]),
        (np.array([[1, 2]]), {"array": [1.0, 2.0], "shape": [1, 2]}),
        (np.array([np.inf]), {"array": [{"number": "inf"}], "shape": [1]}),
        ({"a": np.zeros(1)}, {"dict": {"a": {"array": [0.0], "shape": [1]}}}),
        ({"raised": "ValueError"}, {"dict": {"raised": "ValueError"}}),
        (..., {"other": "ellipsis"}),
        (len, {"other": "builtin_function_or_method"}),
        (np.array(["a"]), ["a"]),
        (np.array(["a"])[0], "a"),
        (np.zeros(200_000), {"other": "array of float64, shape (200000,)"}),
        (range(2), [0.0, 1.0]),
        ({3, 1}, [1.0, 3.0]),
        ({"b", 2}, [2.0, "b"]),
        ({np.int64(1): 2, 1.5: 3, True: 4}, {"dict": {"1": 4.0, "1.5": 3.0}}),
        ({(0, np.float64(1)): 2, None: 3}, {"dict": {"(0, 1)": 2.0, "None": 3.0}}),
        (iter([1]), {"other": "list_iterator"}),
        (b"ab", {"other": "bytes"}),
        (1j, {"other": "complex"}),
        (np.array(["a"], dtype=object), {"other": "array of object, shape (1,)"}),
        (np.array(1j), {"other": "array of complex128, shape ()"}),
    ],
)
def test_values_become_strict_json(value, coded):
    assert probes.encode(value) == coded
    json.dumps(probes.encode(value), allow_nan=False)


def test_a_tensor_is_an_array():
    torch = pytest.importorskip("torch")
    leaf = torch.ones(2, requires_grad=True)
    assert probes.encode(leaf * 2) == {"array": [2.0, 2.0], "shape": [2]}


def test_calls_protect_the_inputs_and_name_exceptions():
    def spoil(x):
        x += 1
        if x[0] > 5:
            raise KeyError("no")
        return x[0]

    x = np.zeros(1)
    assert calls(spoil, [(x,), (x,), (x + 9,)]) == [1, 1, "KeyError"]
    assert probes.encode(calls(spoil, [(x + 9,)])) == [{"raised": "KeyError"}]
    assert probes.encode(calls(lambda: np.linalg.inv(np.zeros((2, 2))), [()])) == [{"raised": "ValueError"}]
    assert np.isnan(calls(lambda: np.float64(0) / np.zeros(1)[0], [()])[0])  # a warning is no exception


def test_a_capture_uses_its_seed_and_leaves_nothing_behind():
    source = "course.emit('q', course.secret('q').random(), atol=0.1)\nx = 2"
    names = {"course": __import__("normkit.course").course}
    first, again, other = (probes.capture(source, names, seed, "q") for seed in (1, 1, 2))
    assert first == again != other and first["atol"] == 0.1
    assert "x" not in names and probes.seeds == {} and probes._sink is None
    with pytest.raises(ValueError, match="must emit once, it did so 2 times"):
        probes.capture("course.emit('q', 1); course.emit('q', 2)", names, 1, "q")
    assert probes._sink is None
    assert secret("q").random() != secret("p").random()


def test_an_emission_is_published_under_our_mime_type(monkeypatch):
    import IPython.display

    sent = []
    monkeypatch.setattr(IPython.display, "publish_display_data", sent.append)
    emit("q1", [1.5])
    assert sent[0][probes.MIME] == {"question": "q1", "values": [1.5], "rtol": 1e-6, "atol": 0.0}
