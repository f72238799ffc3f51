"""Verdicts: against scipy and statsmodels where they can be, and never from what cannot be compared."""

import math

import numpy as np
import pandas as pd
import pytest
from scipy import stats
from statsmodels.stats.multitest import multipletests
from statsmodels.stats.power import TTestPower

from explore.compare.verdicts import ALPHA, compare, holm, p_as_text

RATES = (0.001, 0.01)


def runs(losses: dict[str, list], rates=RATES, **columns) -> pd.DataFrame:
    """A run for each loss: {kind: for each rate, a loss for each seed}; None where there is no run."""
    rows = [
        {"positions": kind, "lr": rate, "random_seed": seed, "val_loss": loss}
        for kind, of_rates in losses.items()
        for rate, of_seeds in zip(rates, of_rates, strict=False)
        for seed, loss in enumerate(of_seeds)
        if loss is not None
    ]
    defaults = {
        "status": "complete",
        "stopped": "finished",
        "steps": 100,
        "n_params": 10,
        "flops": 1e9,
        "leak": None,
    }
    return pd.DataFrame(rows).assign(**defaults | columns)


def noisy(mean: float, n: int = 5, seed: int = 0) -> list[float]:
    return (mean + 0.1 * np.random.default_rng(seed).normal(size=n)).tolist()


BETTER = {"a": [noisy(3, seed=1), noisy(5, seed=2)], "b": [noisy(5, seed=3), noisy(2, seed=4)]}


def verdict(table: pd.DataFrame, variant: str = "b", **options) -> str:
    result = compare(table, **options).set_index("variant")
    return result.verdict[f"positions={variant}"]


def test_intervals_and_p_values_equal_scipys():
    table = runs(BETTER | {"c": [noisy(3.01, seed=5), noisy(6, seed=6)], "d": [noisy(2.9, seed=7), noisy(6)]})
    result = compare(table).set_index("variant")
    best = {"a": BETTER["a"][0], "b": BETTER["b"][1], "c": noisy(3.01, seed=5), "d": noisy(2.9, seed=7)}
    p = []
    for kind, losses in best.items():
        row = result.loc[f"positions={kind}"]
        assert row["best"] == f"lr={0.01 if kind == 'b' else 0.001}"
        expected = stats.ttest_1samp(losses, 0).confidence_interval()
        assert (row["mean"], row["low"], row["high"]) == pytest.approx((np.mean(losses), *expected))
        if kind != "a":
            test = stats.ttest_rel(losses, best["a"])
            assert row.difference == pytest.approx(np.mean(losses) - np.mean(best["a"]))
            # The correction multiplies p; the interval is that of the level divided by the same factor.
            expected = test.confidence_interval(1 - 0.05 * test.pvalue / row.p) if row.p < 1 else None
            if expected is not None:
                assert (row.difference_low, row.difference_high) == pytest.approx(tuple(expected), rel=1e-3)
            assert (row.p < 0.05) == (row.difference_low > 0 or row.difference_high < 0)
            p.append(test.pvalue)
    # One setting of each is in the running, so that Holm's correction is all that changes p.
    assert list(result.p[1:]) == pytest.approx(list(multipletests(p, method="holm")[1]), rel=1e-4)
    assert list(result.verdict[:2]) == ["baseline", "better"]
    assert (result.n_settings == 2).all()
    assert (result.n_seeds == 5).all()


def test_better_means_a_lower_loss_and_worse_a_higher_one():
    assert verdict(runs(BETTER)) == "better"
    assert verdict(runs(BETTER), "a", baseline="positions=b") == "worse"


def test_p_is_corrected_for_the_choice_among_near_optimal_settings():
    clear = [noisy(3, seed=1), noisy(9, seed=2)]
    ties = [noisy(2.9, seed=3), noisy(2.94, seed=4)]
    best, other = sorted(ties, key=np.mean)
    raw = stats.ttest_rel(best, clear[0]).pvalue
    as_good = stats.ttest_rel(other, best, alternative="greater").pvalue
    assert 0.1 < as_good < 1 / 3
    alone, both = (compare(runs({"a": clear, "b": b})) for b in ([best, noisy(9)], ties))
    assert alone.p[1] == pytest.approx(raw, rel=1e-3)
    assert both.p[1] == pytest.approx(raw * (1 + 3 * as_good), rel=1e-3)
    # The loser's choice among equals only made it look better, so it takes nothing from the winner.
    ties_lose = compare(runs({"a": clear, "b": [[x + 2 for x in losses] for losses in ties]}))
    raw = stats.ttest_rel([x + 2 for x in best], clear[0]).pvalue
    assert ties_lose.p[1] == pytest.approx(raw, rel=1e-3)


def test_the_recommended_number_of_seeds_suffices():
    losses = {"a": [noisy(3, seed=1)], "b": [noisy(2.95, seed=4)]}
    table = runs(losses, rates=(0.1,))
    difference = np.subtract(losses["b"][0], losses["a"][0])
    effect = abs(difference.mean()) / difference.std(ddof=1)
    needed = math.ceil(TTestPower().solve_power(effect, alpha=0.05, power=0.8))
    assert verdict(table) == f"cannot tell; about {needed - 5} more seeds would"
    tiny = runs({"a": [noisy(3, seed=1)], "b": [noisy(3, seed=1)[::-1]]}, rates=(0.1,))
    assert verdict(tiny) == "cannot tell; not even 100 seeds would"


def test_one_seed_cannot_tell():
    assert "only one seed" in verdict(runs({"a": [[3.0], [9.0]], "b": [[1.0], [2.0]]}))


def test_only_common_seeds_count():
    b = [[*noisy(5, seed=3)[:4], None], noisy(2, seed=4)]
    result = compare(runs({"a": BETTER["a"], "b": b}))
    assert list(result.n_seeds) == [5, 4]
    expected = np.mean(b[1][:4]) - np.mean(BETTER["a"][0][:4])
    assert result.difference[1] == pytest.approx(expected)
    alone = [[None] * 4 + [5.0], noisy(2, seed=4)]
    assert "only one seed" in verdict(runs({"a": BETTER["a"], "b": alone}))


def test_more_tried_settings_are_no_advantage():
    table = runs({"a": BETTER["a"], "b": [*BETTER["b"], noisy(1)]}, rates=(0.1, 0.2, 0.3))
    assert verdict(table) == "cannot tell: 3 values of lr tried, 2 of the baseline"
    both = table.assign(weight_decay=np.where(table.lr == 0.3, 0.2, 0.1))
    assert "values of lr and weight_decay tried" in verdict(both, tuned=["lr", "weight_decay"])


def test_a_tuned_field_of_any_kind():
    table = runs(BETTER).rename(columns={"lr": "betas"})
    table["betas"] = [(0.9, rate) for rate in table.betas]
    result = compare(table, tuned="betas")
    assert list(result.best) == ["betas=(0.9, 0.001)", "betas=(0.9, 0.01)"]


@pytest.mark.parametrize("end", ["diverged: training loss 80", "failed: OutOfMemoryError", "finished"])
def test_a_learning_rate_that_diverges_at_one_seed_has_infinite_loss(end):
    table = runs(BETTER)
    bad = (table.positions == "b") & (table.lr == 0.01) & (table.random_seed == 2)
    table.loc[bad, "stopped"] = end
    table.loc[bad, "steps"] = 3
    if end == "finished":
        table.loc[bad, "val_loss"] = math.nan
    result = compare(table)
    assert result.best[1] == "lr=0.001"
    assert result.verdict[1] == "worse"
    assert (result.n_settings[1], result.n_bad[1], result.n_seeds[1]) == (2, 1, 5)
    table.loc[(table.positions == "b") & (table.random_seed == 4), "stopped"] = "failed"
    assert "its runs failed or diverged" in verdict(table)
    assert "the baseline's runs failed" in verdict(table, "a", baseline="positions=b")
    assert compare(table)["mean"][1] == math.inf


def test_a_repeated_run_replaces_its_failed_predecessor():
    table = runs(BETTER)
    failed = table.iloc[[7]].assign(stopped="failed: killed", val_loss=math.nan)
    assert verdict(pd.concat([failed, table])) == "better"
    assert compare(pd.concat([failed, table])).n_bad.sum() == 0


def test_a_leak_is_never_better():
    table = runs(BETTER)
    table["leak"] = table["leak"].astype(object)
    table.loc[table.positions == "b", "leak"] = "position 3 sees token 5"
    assert verdict(table) == "cannot tell: leak: position 3 sees token 5"
    assert "leak of the baseline: position 3" in verdict(table, "a", baseline="positions=b")
    worse = {"a": BETTER["a"], "b": [noisy(6, seed=3), noisy(7, seed=4)]}
    leaking = runs(worse).assign(leak=[None] * 10 + ["leak"] * 10)
    assert verdict(leaking) == "worse"


@pytest.mark.parametrize(("at", "column"), [("steps", "steps"), ("params", "n_params"), ("flops", "flops")])
def test_variants_under_unequal_conditions_get_no_verdict(at, column):
    table = runs(BETTER)
    table[column] = table[column].astype(float)
    table.loc[table.positions == "b", column] *= 1.04
    assert verdict(table, at=at) == "better"
    table.loc[table.positions == "b", column] *= 1.1
    assert verdict(table, at=at) == f"cannot tell: 1.14 times the baseline's {column}"
    others = [name for name in ("steps", "params", "flops") if name != at]
    assert [verdict(table, at=other) for other in others] == ["better", "better"]
    table[column] = math.nan
    assert f"{column} is unknown" in verdict(table, at=at)
    assert f"{column} is unknown" in verdict(table.drop(columns=column), at=at)


def test_comparisons_without_a_test_do_not_count_in_the_correction():
    three = BETTER | {"c": [noisy(3, seed=5), noisy(6, seed=6)]}
    table = runs(three)
    table.loc[table.positions == "c", "steps"] = 7
    assert compare(table).p[1] == pytest.approx(compare(runs(BETTER)).p[1])


def test_losses_of_best_weights_are_not_compared_as_final_losses():
    table = runs(BETTER).assign(weights="best")
    assert "only the loss of the best weights is known" in verdict(table)
    table["final_loss"] = table.val_loss
    table["val_loss"] = table.val_loss - np.where(table.positions == "a", 5, 0)  # the best a ever had
    assert verdict(table) == "better"
    assert "only the loss of the best weights is known" in verdict(
        table.assign(bits_per_byte=table.val_loss), metric="bits_per_byte"
    )


def test_interrupted_and_unreadable_runs_are_left_out_with_a_note():
    table = runs(BETTER)
    interrupted = table.iloc[[0]].assign(random_seed=9, stopped="interrupted", steps=3)
    killed = pd.DataFrame([{"status": "incomplete: killed"}])
    result = compare(pd.concat([table, interrupted, killed]))
    assert result.verdict[1] == "better"
    assert result.attrs["left_out"] == [
        "1 run left out: interrupted before its end",
        "1 run left out: incomplete: killed",
    ]


def test_different_data_are_not_compared():
    first, second = runs(BETTER).assign(dataset_name="copy"), runs(BETTER).assign(dataset_name="sort")
    result = compare(pd.concat([first, second]))
    assert list(result["data"]) == ["dataset_name=copy"] * 2 + ["dataset_name=sort"] * 2
    assert list(result.verdict) == ["baseline", "better"] * 2
    lone = pd.concat([first, second[second.positions == "b"]])
    assert "did not run on this data" in compare(lone, baseline="positions=a").verdict[2]


def test_losses_of_different_tokenizers_are_not_compared():
    table = runs(BETTER)
    table["tokenizer_vocab_size"] = np.where(table.positions == "a", 100, 200)
    table["bits_per_byte"] = table.val_loss
    assert "the tokenizers differ" in compare(table).verdict[1]
    assert compare(table, metric="bits_per_byte").verdict[1] == "better"
    for who in ("a", "b"):
        table["unknown_bytes"] = np.where(table.positions == who, 0.0009, 0.0)
        assert compare(table, metric="bits_per_byte").verdict[1] == "better"
        table.loc[table.index[table.positions == who][3], "unknown_bytes"] = 0.0012
        assert compare(table, metric="bits_per_byte").verdict[1] == (
            "cannot tell: 0.12% of the text's bytes are in unknown tokens; at most 0.1% are allowed"
        )
    assert "the tokenizers differ" in compare(table).verdict[1]


def test_losses_of_different_objectives_are_not_compared():
    table = runs(BETTER)
    table["objective"] = np.where(table.positions == "a", "diffusion", "next-token")
    assert compare(table).verdict[1] == (
        "cannot tell: the objectives differ, so their losses and accuracies do not compare"
    )


def test_equal_losses_get_no_verdict():
    same = {"a": BETTER["a"], "b": BETTER["a"]}
    assert verdict(runs(same)) == "cannot tell: the same loss at every seed"
    shifted = {"a": [[1.0] * 5, [2.0] * 5], "b": [[0.5] * 5, [2.0] * 5]}
    assert verdict(runs(shifted)) == "cannot tell: the seed changes nothing"


def test_a_table_beside_incomplete_runs_names_values_as_they_are():
    table = pd.concat(
        [runs(BETTER).assign(dim=8), runs(BETTER).assign(dim=16), pd.DataFrame([{"status": "killed"}])]
    )
    names = list(compare(table).variant)
    assert names[:2] == ["positions=a, dim=8", "positions=b, dim=8"] or set(names) == {
        f"dim={dim}, positions={kind}" for dim in (8, 16) for kind in "ab"
    }


def test_no_runs_and_one_variant():
    assert len(compare(runs(BETTER).iloc[:0])) == 0
    [only] = compare(runs({"a": BETTER["a"]})).itertuples()
    assert (only.variant, only.verdict) == ("all runs", "baseline")


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"baseline": "positions=aa"}, "no variant 'positions=aa'; did you mean 'positions=a'"),
        ({"at": "step"}, "at='step' .* did you mean 'steps'"),
        ({"tuned": "lrr"}, "'lrr'.* did you mean 'lr'"),
        ({"metric": "val_accuracy"}, "metric='val_accuracy'"),
    ],
)
def test_mistakes_are_one_sentence(options, words):
    with pytest.raises(ValueError, match=words):
        compare(runs(BETTER), **options)


@pytest.mark.parametrize(
    ("p", "text"),
    [(0.0039, "0.0039"), (0.0496, "0.0496"), (0.049999, "0.049999"), (0.05, "0.05"), (0.0501, "0.05")],
)
def test_a_p_value_below_the_level_is_never_shown_as_equal_to_it(p, text):
    assert p_as_text(p) == text
    assert (float(text) < ALPHA) == (p < ALPHA)


def test_holms_correction_is_that_of_statsmodels():
    p = np.random.default_rng(0).uniform(size=20) ** 3
    assert holm(p) == pytest.approx(multipletests(p, method="holm")[1])
    assert holm([]) == []
