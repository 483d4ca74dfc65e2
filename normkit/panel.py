"""Panel: a lab's live face in JupyterLab, one widget with named controls, a fast canvas, and plotly when it rests.

Messages from the page: {kind: "move", seq, controls, quality}, {kind: "start"}, {kind: "stop"},
{kind: "hello"}, {kind: "plotly"}.
Answers: the trait `picture`, with the seq of the move it answers, so that the page never draws a stale one.
"""

import gzip
import threading
import traceback
from functools import cache
from importlib.resources import files

import anywidget
import numpy as np
import traitlets

from normkit.arrays import compute_lock
from normkit.figures import CONFIG


class Panel(anywidget.AnyWidget):
    """The widget of one shown lab. Computes in the message's own handler: the page keeps one move in flight, so none queue."""

    _esm = files("normkit") / "static" / "panel.js"
    _css = files("normkit") / "static" / "panel.css"
    face = traitlets.Dict().tag(sync=True)
    controls = traitlets.Dict().tag(sync=True)
    picture = traitlets.Dict().tag(sync=True)

    def __init__(self, lab):
        face = {
            "name": type(lab).__name__,
            "title": type(lab).__doc__.splitlines()[0],
            "streams": lab.stream is not None,
            "config": CONFIG,
            "controls": [
                {
                    "name": n,
                    **c._asdict(),
                    "values": list(c.values),
                    "labels": [f"{v:g}" if c.slides else v for v in c.values],
                }
                for n, c in lab.declared().items()
            ],
        }
        super().__init__(face=face, controls=lab.controls())
        self.lab, self._thread, self._stop, self.failure = lab, None, threading.Event(), None
        self._answer(0, "exact")

    def moved(self):
        """The lab was moved from Python: show it, computing exactly."""
        self._halt()
        self.controls = self.lab.controls()
        self._answer(self.picture.get("seq", 0), "exact")

    def _handle_custom_msg(self, message, buffers):  # not by on_msg, whose dispatcher swallows what a callback raises
        kind = message.get("kind")
        if kind == "move":
            self._halt()
            self._answer(message["seq"], message["quality"], message["controls"])
        elif kind == "start":
            self._start(message["seq"])
        elif kind == "stop":
            self._halt()
        elif kind == "hello":
            self.send({"kind": "hello"})
        elif kind == "plotly":
            self.send({"kind": "plotly"}, [_plotly_js()])

    def _answer(self, seq, quality, controls=None):
        """Compute and show. An error is shown in place of the text, the last good figure stays, and the error goes on up."""
        with self.hold_sync():  # one message back, not one a trait
            try:
                if controls is not None:
                    self._apply(controls)
                streams = self.lab.stream is not None  # then a move shows the start, and the button runs it
                self._show(seq, "ready" if streams else quality, self.lab.run("coarse" if streams else quality))
            except Exception as error:
                self._fail(seq, error)
                raise

    def _apply(self, controls):
        checked = {name: self.lab._checked(name, value) for name, value in controls.items()}
        for name, value in checked.items():
            object.__setattr__(self.lab, name, value)
        self.controls = self.lab.controls()

    def _show(self, seq, quality, result, done=None, running=False):
        exact = quality == "exact"
        self.picture = {
            "seq": seq,
            "quality": quality,
            "controls": self.lab.controls(),
            "figure": _packed(self.lab.picture(result)),
            "text": self.lab.describe(result) if exact or self.lab.stream else None,
            "done": done,
            "running": running,
            "error": None,
        }

    def _fail(self, seq, error):
        text = f"{type(error).__name__}: {error}"
        trace = traceback.format_exc(limit=-3)
        self.picture = {
            **self.picture,
            "seq": seq,
            "controls": self.lab.controls(),
            "running": False,
            "error": text,
            "trace": trace,
        }

    # ---- labs that take long run beside the messages, one step at a time under the lock, so that Stop is heard

    def _start(self, seq):
        self._halt()
        self._stop, self.failure = threading.Event(), None
        self._thread = threading.Thread(target=self._run, args=(seq, self._stop), name="normkit-lab", daemon=True)
        self._thread.start()

    def _run(self, seq, stop):
        steps, result, done = self.lab.stream(), None, 0.0
        try:
            while not stop.is_set():
                with compute_lock:
                    done, result = next(steps)
                self._show(seq, "coarse", result, done, running=True)
        except StopIteration:
            done = 1.0
        except Exception as error:  # a thread has no caller: the learner sees it here, and tests read `failure`
            self.failure = error
            self._fail(seq, error)
            return
        finally:
            steps.close()
        if result is not None:
            self._show(seq, "exact" if done == 1.0 else "stopped", result, done)

    def _halt(self):
        self._stop.set()
        if self._thread is not None and self._thread is not threading.current_thread():
            self._thread.join()
        self._thread = None

    def wait(self):
        """Wait for a started run to end, and raise what it raised."""
        if self._thread is not None:
            self._thread.join()
        if self.failure is not None:
            raise self.failure


def _packed(value):
    """Arrays become binary buffers, which the widget protocol sends beside the JSON."""
    if isinstance(value, np.ndarray):
        return memoryview(np.ascontiguousarray(value, dtype=np.float64)).cast("B")
    if isinstance(value, dict):
        return {k: _packed(v) for k, v in value.items()}
    if isinstance(value, list):
        return [_packed(v) for v in value]
    return value


@cache
def _plotly_js():
    """plotly.js as plotly.py ships it: sent once a page on demand, never stored in a notebook.

    Compressed: 5 MB at once would exceed the data rate that Jupyter's server lets through, and be dropped.
    """
    return gzip.compress((files("plotly") / "package_data" / "plotly.min.js").read_bytes(), compresslevel=6, mtime=0)
