"""The page of published results: counts, what does not reproduce, and a section for each config."""

import re

from explore.compare.reproductions import Reproduction, counts_of
from explore.compare.reproductions_page import anchor_of, page_part, rest_of_header, title_of
from tests.explore.compare.test_reproduction_figures import claims, runs
from train.grid.claims import Expectations

HEADER = "Wide models learn sooner (Nobody et al. 2020, arXiv:2001.08361, figure 1 (left): 3 < 4). Ours have 2 widths. 5 minutes."


def reproduction(name: str, *texts: str, rows=None) -> Reproduction:
    expected = Expectations("Nobody et al. 2020, arXiv:2001.08361", 5, claims(*texts), "Width")
    rows = runs("dim", [8, 16, 32]) if rows is None else rows
    return Reproduction(name, HEADER, expected, rows, date="2024-04-22" if rows else "")


FOUND = [
    reproduction("one", "val_accuracy(dim=8) <= 0.25", "val_accuracy(dim=32) <= 0.1"),
    reproduction("other", "val_loss(dim=8) < 3", rows=[]),
]


def test_the_page_begins_with_the_counts():
    assert counts_of(FOUND) == "3 claims of 2 configs: 1 holds, 1 fails, 0 cannot be told, 1 has no runs yet"
    page = page_part(FOUND)
    assert page.startswith(f"**{counts_of(FOUND)}.**")
    assert "| [Width](#width) | 2 | 3 | 1 | 1 | 0 |" in page


def test_a_config_has_its_paper_its_claims_and_its_figure():
    page = page_part(FOUND)
    assert (
        "### Wide models learn sooner\n\nNobody et al. 2020, [arXiv:2001.08361](https://arxiv.org/abs/2001.08361)"
        in page
    )
    assert (
        "| val_accuracy(dim=8) \\<= 0.25 | `val_accuracy(dim=8) <= 0.25` | `0.0000 <= 0.2500` | holds |"
        in page
    )
    assert "![Wide models learn sooner](figures/reproductions/one.svg)" in page
    assert "`python3 main.py --reproduce=other --jobs=2` (not run yet)" in page
    assert "other.svg" not in page


def test_a_claim_that_fails_is_named_at_the_top_and_below_its_table():
    top, _, sections = page_part(FOUND).partition("## Width")
    assert "do not reproduce at this size" in top
    assert "- [Wide models learn sooner](#wide-models-learn-sooner): val_accuracy(dim=32)" in top
    assert re.search(r'dim=32.*" does not reproduce at this size\*\*: `0.2000 > 0.1000` was seen', sections)


def test_a_claim_that_cannot_be_told_has_a_sentence():
    page = page_part([reproduction("one", "val_loss(dim=8) < 2.99")])
    assert "holds at this size cannot be told: `2.9850 < 2.9900` was seen over 2 seeds" in page


def test_title_and_text_come_from_the_header():
    [one, _] = FOUND
    assert title_of(one) == "Wide models learn sooner"
    assert rest_of_header(one) == (
        "Nobody et al. 2020, arXiv:2001.08361, figure 1 (left): 3 < 4. Ours have 2 widths. 5 minutes."
    )
    plain = one._replace(header="It learns. In 3 steps.")
    assert (title_of(plain), rest_of_header(plain)) == ("It learns", "In 3 steps.")
    assert anchor_of("Induction: two layers, e.g.") == "induction-two-layers-eg"
