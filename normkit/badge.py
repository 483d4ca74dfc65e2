"""Badge: a claim's last verdict in a notebook, with a button that runs it again."""

import html
import os

from normkit import ledger
from normkit.arrays import compute_lock


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

    def widget(self):
        """The live form: ipywidgets button and text. A claim that raises shows its error in the text."""
        import ipywidgets as widgets

        text = widgets.HTML(self._html())
        button = widgets.Button(
            description="Rerun",
            tooltip=f"run the claim {self.claim.id} again, about {self.claim.budget_s:g} s",
            icon="refresh",
        )

        def on_click(_):
            button.disabled = True
            note = html.escape(self.claim.id)
            try:
                text.value = f"{note}: running"
                self.rerun(lambda done, seeds: setattr(text, "value", f"{note}: {done} of {seeds} seeds"))
            finally:
                text.value, button.disabled = self._html(), False

        button.on_click(on_click)
        return widgets.HBox([button, text])

    def _html(self):
        lines = [f"<b>{html.escape(repr(self))}</b>", html.escape(self.claim.statement)]
        regimes = self.verdict.regimes if self.verdict else ()
        numbers = [f"{html.escape(r.name)}: {r.effect:.3g} [{r.low:.3g}, {r.high:.3g}], {r.side}" for r in regimes]
        return "<br>".join(lines + numbers)

    def _repr_mimebundle_(self, **kwargs):
        text = {"text/plain": repr(self)}
        if os.environ.get("NORMKIT_STATIC"):
            return text
        try:
            view = self.widget()._repr_mimebundle_()
        except ImportError:  # a notebook without ipywidgets still shows the text
            return text
        return {**view, **text}
