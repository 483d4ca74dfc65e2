"""Badge: a claim's last verdict in a notebook, with a button that runs it again."""

import os
from importlib.resources import files

from normkit import ledger
from normkit.arrays import compute_lock

SIDES = {"claimed": "as claimed", "open": "undecided", "other": "the other way"}


class Badge:
    """The last verdict of a claim: fixed text for records and tests, and a live button to rerun the claim.

    `verdict` is what the ledger file holds, then that of the last rerun; None before the first run.
    """

    def __init__(self, claim: ledger.Claim):
        self.claim = claim
        self.verdict = ledger.load().get(claim.id)

    def __repr__(self):
        if self.verdict is None:
            return f"{self.claim.id}: not run yet"
        stale = "" if self.verdict.definition == self.claim.definition else ", of an older definition"
        return f"{self.verdict}{stale}"

    def rerun(self, progress=None) -> ledger.Verdict:
        """Run the claim here and keep its verdict; the ledger file stays as it is. `progress` as in `ledger.run`."""
        with compute_lock:
            self.verdict = ledger.run(self.claim, progress)
        return self.verdict

    def details(self) -> str:
        """The statement, what was measured and is claimed of it, and a line a regime: mean, interval, side."""
        regimes = self.verdict.regimes if self.verdict else ()
        numbers = [f"{r.name}: {r.effect:.3g} [{r.low:.3g}, {r.high:.3g}], {SIDES[r.side]}" for r in regimes]
        measured = f"Measured: {self.claim.statistic}; claimed: {self.claim.wanted}."
        return "\n".join([self.claim.statement, measured, *numbers])

    def widget(self):
        """The live form: an anywidget. Its `rerun()` is what the button does; what that raises stays in `error`."""
        return _widget(self)

    def _repr_mimebundle_(self, **kwargs):
        text = {"text/plain": repr(self)}
        if os.environ.get("NORMKIT_STATIC"):
            return text
        try:
            view = self.widget()._repr_mimebundle_()
        except ImportError:  # a notebook without anywidget still shows the text
            return text
        return {**(view[0] if isinstance(view, tuple) else view), **text}


def _widget(badge):
    import anywidget
    import traitlets

    class Live(anywidget.AnyWidget):
        _esm = files("normkit") / "static" / "badge.js"
        _css = files("normkit") / "static" / "panel.css"
        help = traitlets.Unicode(f"run the claim {badge.claim.id} again, about {badge.claim.budget_s:g} s").tag(
            sync=True
        )
        verdict = traitlets.Unicode(repr(badge)).tag(sync=True)
        details = traitlets.Unicode(badge.details()).tag(sync=True)
        error = traitlets.Unicode("").tag(sync=True)
        running = traitlets.Bool(False).tag(sync=True)
        done = traitlets.Float(0.0).tag(sync=True)

        def rerun(self):
            """Run the claim and show its verdict. An error, or an interrupt, is shown and goes on up."""
            self.error, self.done, self.running = "", 0.0, True
            try:
                badge.rerun(lambda done, seeds: self.set_trait("done", done / seeds))
            except BaseException as error:
                self.error = f"{type(error).__name__}: {error}".removesuffix(": ")
                raise
            finally:
                self.verdict, self.details, self.running = repr(badge), badge.details(), False

    live = Live()
    live.on_msg(lambda widget, content, buffers: widget.rerun() if content.get("kind") == "rerun" else None)
    return live
