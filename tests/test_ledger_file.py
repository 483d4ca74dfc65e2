"""data/ledger.json against the claims of all themes: none missing, none of an older definition, verdicts as they follow."""

import numpy as np
import pytest

from normkit import ledger
from normkit.verdicts import SIDES, VERDICTS, decide, sides

LEDGER, CLAIMS = ledger.load(), ledger.claims()


def test_the_file_holds_every_claim_and_no_other():
    assert set(LEDGER) == set(CLAIMS)
    assert sum(len(ledger.claims(theme)) for theme in ledger.THEMES) == len(CLAIMS)  # no id twice


@pytest.mark.parametrize("id", CLAIMS)
def test_the_file_was_made_from_the_present_definition(id):
    claim, verdict = CLAIMS[id], LEDGER[id]
    assert verdict.definition == claim.definition
    assert (verdict.seeds, [r.name for r in verdict.regimes]) == (claim.seeds, list(claim.regimes))
    assert {"python", "numpy", "normkit", "torch"} <= set(verdict.versions)


@pytest.mark.parametrize("id", CLAIMS)
def test_each_verdict_in_the_file_follows_from_its_intervals(id):
    verdict = LEDGER[id]
    low, high = (np.array([getattr(r, end) for r in verdict.regimes]) for end in ("low", "high"))
    codes = sides(low, high, CLAIMS[id].region)
    assert [SIDES[code] for code in codes] == [r.side for r in verdict.regimes]
    assert verdict.verdict == VERDICTS[decide(codes)]
