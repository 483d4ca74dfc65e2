"""Predict first: a question whose answer is computed, never typed, and shown once the learner has committed to one."""

import math
import os
from collections.abc import Callable
from importlib.resources import files

import numpy as np

from normkit.lab import Text


class Question:
    """A multiple-choice prediction. Options are numbers or texts; `answer` is one of the texts, or a number (or a function
    that computes either), of which the nearest option, by ratio, is right. `why` may name the computed `{answer}`.

    `commit(option)` answers it without a front end. Raises ValueError for fewer than two options, for an option that is
    not among them, and for an answer that fits none (a number beyond a factor of 10 of every option).
    """

    def __init__(self, prompt: str, *options, answer: "float | str | Callable", why: str = ""):
        if len(options) < 2 or len({str(o) for o in options}) < len(options):
            raise ValueError(f"a question needs at least two different options, got {options!r}")
        self.prompt, self.options, self._answer, self.why = prompt, options, answer, why

    def commit(self, option) -> Text:
        """Commit to an option; says whether it was right, what the kit computed, and why."""
        if option not in self.options:
            raise ValueError(f"the options are {', '.join(map(str, self.options))}; got {option!r}")
        value = self._answer() if callable(self._answer) else self._answer
        right = self._nearest(value)
        verdict = "Right" if option == right else f"Not quite: you said {option}"
        shown = value if isinstance(value, str) else f"{value:.3g}"
        return Text(f"{verdict}. Computed: {shown}. {self.why.format(answer=value)}".strip())

    def _nearest(self, value):
        if isinstance(value, str):
            if value not in self.options:
                raise ValueError(f"the computed answer {value!r} is none of the options {self.options!r}")
            return value
        if not value > 0 or not math.isfinite(value):
            raise ValueError(f"a numeric answer must be positive and finite to be compared by ratio, got {value!r}")
        best = min(self.options, key=lambda o: abs(math.log(o / value)))
        if abs(math.log(best / value)) > math.log(10):
            raise ValueError(
                f"the computed answer {value:.4g} is far from every option {self.options!r}: mend the question"
            )
        return best

    def __repr__(self):
        return f"{self.prompt}\n" + "\n".join(f"  ( ) {o}" for o in self.options)

    def _repr_mimebundle_(self, **kwargs):
        text = {"text/plain": repr(self)}
        if os.environ.get("NORMKIT_STATIC"):
            return text
        view = _widget(self)._repr_mimebundle_()
        return {**(view[0] if isinstance(view, tuple) else view), **text}


def ask(prompt: str, *options, answer, why: str = "") -> Question:
    """A `Question`, to be the last line of a cell."""
    return Question(prompt, *options, answer=answer, why=why)


def check(
    yours: Callable, truth: Callable, points, mistakes: dict[str, Callable] | None = None, rtol: float = 1e-6
) -> Text:
    """Compare a learner's function with the truth at `points`; names the mistake when the answers are those of a known one.

    `mistakes` maps what went wrong to the function one gets then. An error in the learner's function is reported, not
    raised, so that the notebook goes on. Raises ValueError for a mistake that cannot be told from the truth there.
    """
    right = np.array([truth(p) for p in points], dtype=float)
    wrong = {name: np.array([f(p) for p in points], dtype=float) for name, f in (mistakes or {}).items()}
    for name, values in wrong.items():
        if np.allclose(values, right, rtol=rtol, atol=0):
            raise ValueError(f"at {list(points)} the mistake {name!r} gives the right answer: choose other points")
    try:
        have = np.array([yours(p) for p in points], dtype=float)
    except Exception as error:
        return Text(f"Not yet: your function raised {type(error).__name__}: {error}")
    if np.allclose(have, right, rtol=rtol, atol=0):
        return Text("Right.")
    for name, values in wrong.items():
        if np.allclose(have, values, rtol=rtol, atol=0):
            return Text(f"Not yet: {name}.")
    at = int(np.argmax(~np.isclose(have, right, rtol=rtol, atol=0)))
    return Text(f"Not yet: at {points[at]} yours is {have[at]:.6g}, it should be {right[at]:.6g}.")


def _widget(question):
    import anywidget
    import traitlets

    class Ask(anywidget.AnyWidget):
        _esm = files("normkit") / "static" / "ask.js"
        _css = files("normkit") / "static" / "panel.css"
        prompt = traitlets.Unicode(question.prompt).tag(sync=True)
        options = traitlets.List([str(o) for o in question.options]).tag(sync=True)
        chosen = traitlets.Int(-1).tag(sync=True)
        reply = traitlets.Unicode("").tag(sync=True)

        @traitlets.observe("chosen")
        def _committed(self, change):
            if change.new >= 0:
                try:
                    self.reply = question.commit(question.options[change.new])
                except Exception as error:
                    self.reply = f"{type(error).__name__}: {error}"
                    raise

    return Ask()
