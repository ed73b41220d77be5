"""Claims on tables whose truth is known: each verdict where it was planted, and seldom where it is wrong."""

import math
from typing import get_args

import numpy as np
import pandas as pd
import pytest
from jsonargparse import ArgumentParser
from synthetic import TRUTH, WIDTH, effective_number, in_form, risk_by_heads, shares_with_effective, synthetic_table

from lightning_icl.functional.errors import InputError
from lightning_icl.studies.claims import (
    BeatsReference,
    Claim,
    Finding,
    FirstLayerCannotBePruned,
    FirstLayerPreprocesses,
    FirstLayerUsesAllHeads,
    HeadsBelongInFirstLayer,
    LaterLayersUseOneHead,
    OneHeadWorst,
    PaperHeadsBeatRandom,
    PrunedKeepsRisk,
    RiskFallsWithHeads,
    Treatment,
    comparison,
    judge,
)
from lightning_icl.studies.selection import by_seed
from lightning_icl.studies.statistics import seed_interval
from lightning_icl.studies.verdicts import Part, finding, judged

CLAIMS = [
    RiskFallsWithHeads(),
    OneHeadWorst(),
    FirstLayerUsesAllHeads(),
    LaterLayersUseOneHead(),
    PrunedKeepsRisk(),
    FirstLayerCannotBePruned(),
    PaperHeadsBeatRandom(),
    BeatsReference("ridge"),
    HeadsBelongInFirstLayer(),
    FirstLayerPreprocesses(),
]
NAMES = [claim.name for claim in CLAIMS]
ABOUT_HEADS = [FirstLayerUsesAllHeads, LaterLayersUseOneHead, PrunedKeepsRisk, FirstLayerCannotBePruned]
SMALL = {"n_points": (8, 32), "steps": (100, 200)}
AGAINST = TRUTH._replace(
    risk=lambda heads, n_points: 1 / risk_by_heads(heads),
    effective=0.5,
    top_share=0.3,
    ratios=TRUTH.ratios | {"paper": 1.5, "prune_layer1_instead": 1.2, "random_head": 1.3},
    p_probing=TRUTH.p_probing | {"heads_1": 0.4},
)
AT_THE_BOUNDS = TRUTH._replace(
    risk=lambda heads, n_points: 0.6,
    effective=0.75,
    top_share=0.6,
    ratios=TRUTH.ratios | {"paper": 1.1, "prune_layer1_instead": 2.0, "random_head": 1.1},
    p_probing=TRUTH.p_probing | {"heads_1": 0.5, "read_in": 0.5},
)


def table(truth=TRUTH, draw=0, **options):
    return synthetic_table(np.random.default_rng(draw), truth=truth, **{**SMALL, **options})


@pytest.fixture(scope="module")
def planted():
    """The table of the truth in which every claim holds; not to be changed."""
    return table()


def overall(claims, rows):
    """The findings over all settings, by claim."""
    return {found.claim: found for found in judge(claims, rows) if found.setting is None}


def verdicts(claims, rows):
    return {name: found.verdict for name, found in overall(claims, rows).items()}


@pytest.mark.parametrize("draw", [1, 2, 3])
@pytest.mark.parametrize(("truth", "verdict"), [(TRUTH, "PASS"), (AGAINST, "FAIL")])
def test_every_claim_finds_what_was_planted(truth, verdict, draw):
    assert verdicts(CLAIMS, table(truth, draw)) == dict.fromkeys(NAMES, verdict)


def test_at_its_bound_every_claim_is_undecided_but_for_one_study_in_twenty():
    draws = 4
    found = [verdicts(CLAIMS, table(AT_THE_BOUNDS, draw, seeds=(1, 2, 3), spread=0.2)) for draw in range(draws)]
    decided = {name: sum(verdict[name] != "UNDECIDED" for verdict in found) for name in NAMES}
    assert max(decided.values()) <= 1
    # One comparison misses in 5 % of studies, and several together are as wanted or not in less.
    n = draws * len(NAMES)
    assert sum(decided.values()) <= n * (0.05 + margin(0.05, n))


def test_many_seeds_decide_what_few_leave_open():
    truth = TRUTH._replace(ratios=TRUTH.ratios | {"paper": 1.05})
    few, many = (table(truth, seeds=tuple(range(n)), heads=[(8, 8)], spread=0.05) for n in (3, 30))
    assert verdicts([PrunedKeepsRisk()], few) == {"PrunedKeepsRisk": "UNDECIDED"}
    assert verdicts([PrunedKeepsRisk()], many) == {"PrunedKeepsRisk": "PASS"}


def test_with_one_seed_every_claim_is_undecided_and_says_why():
    for found in judge(CLAIMS, table(seeds=(1,))):
        assert found.verdict == "UNDECIDED"
        assert "of one seed, which has no interval" in found.number()


def test_one_comparison_that_is_not_as_wanted_fails_the_claim_and_is_named():
    def risk(heads, n_points):
        return risk_by_heads(heads) * (2 if heads == (8, 8) else 1)

    found = overall(CLAIMS, table(TRUTH._replace(risk=risk)))
    assert found["RiskFallsWithHeads"].verdict == "FAIL"
    assert found["RiskFallsWithHeads"].decisive.part.label == "8 heads against 4"
    assert [part.verdict for part in found["RiskFallsWithHeads"].parts] == ["PASS", "PASS", "FAIL"]
    ratio = 2 * risk_by_heads((8, 8)) / risk_by_heads((4, 4))
    assert found["RiskFallsWithHeads"].decisive.interval.mean == pytest.approx(ratio, rel=4 * 0.02 * math.sqrt(2 / 5))
    assert found["OneHeadWorst"].verdict == "PASS"


def test_one_head_must_be_worst_at_every_number_of_examples():
    def risk(heads, n_points):
        return risk_by_heads(heads) * (1.5 if heads == (2, 2) and n_points == 32 else 1)

    found = overall([OneHeadWorst()], table(TRUTH._replace(risk=risk)))["OneHeadWorst"]
    assert (found.verdict, found.decisive.part.label) == ("FAIL", "2 heads against 1, n = 32")
    assert len(found.parts) == 3 * 2  # larger head counts, numbers of examples


def test_models_are_compared_within_seeds():
    spread_of_seeds = table(shared=2.0)
    assert verdicts(CLAIMS, spread_of_seeds) == dict.fromkeys(NAMES, "PASS")
    # Seed by seed in the right order, so with other seeds' risks beside it there is nothing to see.
    rows = spread_of_seeds[spread_of_seeds["model.heads"].isin(["[4, 4]", "[8, 8]"])].copy()
    shuffled = (rows["model.heads"] == "[8, 8]") & (rows["metric"] == "val/excess_risk/transformer")
    rows.loc[shuffled, "seed"] = rows.loc[shuffled, "seed"].map({1: 2, 2: 3, 3: 4, 4: 5, 5: 1}).astype("Int64")
    assert verdicts([RiskFallsWithHeads()], rows) == {"RiskFallsWithHeads": "UNDECIDED"}


@pytest.mark.parametrize(
    ("reference", "verdict"),
    [("gd_at_depth", "PASS"), ("zero", "PASS"), ("lasso", "FAIL"), ("bayes", "FAIL"), ("ridge_0.5", "UNDECIDED")],
)
def test_the_model_against_each_reference(planted, reference, verdict):
    (found,) = judge([BeatsReference(reference)], planted)
    assert (found.claim, found.verdict) == (f"BeatsReference ({reference})", verdict)
    if verdict == "UNDECIDED":
        assert found.number() == "nothing to compare (it needs a uniform model and val/excess_risk/ridge_0.5)"


@pytest.mark.parametrize(("ratio", "verdict"), [(2.2, "PASS"), (1.8, "FAIL")])
def test_what_is_comparable_to_a_reference_may_be_above_it(ratio, verdict):
    truth = TRUTH._replace(risk=lambda heads, n_points: 2 * TRUTH.references["lasso"])
    (found,) = judge([BeatsReference("lasso", ratio)], table(truth))
    assert (found.verdict, found.decisive.part.bound) == (verdict, ratio)
    assert found.statement == f"The model's excess risk is below {ratio:g} times that of lasso."


def test_a_reference_without_any_risk_cannot_be_beaten():
    truth = TRUTH._replace(references=TRUTH.references | {"oracle_support": 0.0})
    (found,) = judge([BeatsReference("oracle_support")], table(truth, heads=[(8, 8)]))
    assert found.verdict == "FAIL"


def test_a_treatment_is_judged_by_its_own_numbers():
    rows = table(TRUTH._replace(ratios=TRUTH.ratios | {"paper": 1.15}), heads=[(8, 8)])
    claims = [PrunedKeepsRisk(), PrunedKeepsRisk(treatment="read_out"), PrunedKeepsRisk(treatment="rescaled")]
    named = ["PrunedKeepsRisk", "PrunedKeepsRisk (read_out)", "PrunedKeepsRisk (rescaled)"]
    assert verdicts(claims, rows) == dict(zip(named, ["FAIL", "PASS", "UNDECIDED"], strict=True))


def test_the_bound_is_an_option(planted):
    assert verdicts([FirstLayerUsesAllHeads(0.95), PrunedKeepsRisk(1.01)], planted) == {
        "FirstLayerUsesAllHeads": "FAIL",
        "PrunedKeepsRisk": "FAIL",
    }


# Which seeds and layers count


def test_a_layer_within_noise_in_all_seeds_leaves_its_claim_undecided():
    found = overall(CLAIMS, table(heads=[(8, 8)], silent={(seed, 1) for seed in range(1, 6)}))
    assert found["FirstLayerUsesAllHeads"].verdict == "UNDECIDED"
    assert found["FirstLayerUsesAllHeads"].number() == "no seed has a number, wanted >= 6"
    assert found["LaterLayersUseOneHead"].verdict == "PASS"


@pytest.mark.parametrize(("n_silent", "verdict"), [(0, "PASS"), (1, "UNDECIDED"), (2, "UNDECIDED"), (4, "UNDECIDED")])
def test_with_a_seed_without_a_number_nothing_passes(n_silent, verdict):
    silent = {(seed, layer) for seed in range(1, 1 + n_silent) for layer in (1, 2)}
    for found in judge([FirstLayerUsesAllHeads(), LaterLayersUseOneHead()], table(heads=[(8, 8)], silent=silent)):
        assert found.verdict == verdict
        assert (found.decisive.interval.n, found.decisive.part.missing) == (5 - n_silent, n_silent)
        assert (f", {n_silent} of 5 seeds without a number" in found.number()) == (n_silent > 0)


@pytest.mark.parametrize("n_silent", [1, 2])
def test_the_seeds_that_have_a_number_may_fail_a_claim(n_silent):
    rows = table(AGAINST, heads=[(8, 8)], silent={(seed, layer) for seed in range(n_silent) for layer in (1, 2)})
    assert set(verdicts([FirstLayerUsesAllHeads(), LaterLayersUseOneHead()], rows).values()) == {"FAIL"}


def test_layers_within_noise_speak_against_the_claim_as_in_the_issue():
    values = pd.Series([6.5, 6.6, 6.55, *[math.nan] * 4])
    found = finding("", "", None, [comparison("effective heads", values, "above", 6.0)])
    assert (found.verdict, found.number()) == (
        "UNDECIDED",
        "6.55 [6.43, 6.67], wanted >= 6, 4 of 7 seeds without a number",
    )
    assert finding("", "", None, [comparison("", values, "above", 7.0)]).verdict == "FAIL"


def test_a_seeds_number_is_the_median_over_its_later_layers_if_all_have_one():
    rows = table(heads=[(4, 4, 4, 4)], silent={(2, 3)})
    (found,) = judge([LaterLayersUseOneHead()], rows)
    at_end = rows[(rows["metric"] == "heads/leave_one_out/top_share") & (rows["step"] == 200)]
    by_layer = {seed: group.set_index("layer")["value"] for seed, group in at_end.groupby("seed")}
    expected = [sorted(by_layer[seed][[2, 3, 4]])[1] for seed in (1, 3, 4, 5)]
    assert found.decisive.part.values == pytest.approx(tuple(expected))
    assert (found.verdict, found.decisive.part.missing) == ("UNDECIDED", 1)


def test_a_model_that_diverged_or_is_not_there_is_a_seed_without_a_number(planted):
    rows = planted.copy()
    risk = rows["metric"] == "val/excess_risk/transformer"
    rows.loc[risk & (rows["model.heads"] == "[8, 8]") & (rows["seed"] == 1), "value"] = math.inf
    rows = rows[~((rows["model.heads"] == "[8, 8]") & (rows["seed"] == 2))]
    falls, most = judge([RiskFallsWithHeads(), FirstLayerUsesAllHeads()], rows)
    assert [(part.interval.n, part.part.missing) for part in falls.parts] == [(5, 0), (5, 0), (3, 2)]
    assert [part.verdict for part in falls.parts] == ["PASS", "PASS", "UNDECIDED"]
    assert (most.verdict, most.parts[0].part.missing) == ("UNDECIDED", 1)  # though it has no other model beside it


def test_other_validation_streams_are_left_aside(planted):
    others = planted.assign(stream=planted["stream"].astype("str").fillna("noisier"), value=0.1)
    assert judge(CLAIMS, pd.concat([planted, others])) == judge(CLAIMS, planted)


def test_importance_at_single_numbers_of_examples_is_left_aside(planted):
    of_heads = planted[planted["metric"].str.startswith("heads/")]
    at_n = of_heads.assign(n_points=pd.array([8] * len(of_heads), "Int64"), value=0.1)
    claims = [FirstLayerUsesAllHeads(), LaterLayersUseOneHead()]
    assert judge(claims, pd.concat([planted, at_n])) == judge(claims, planted)


def test_only_the_last_step_counts(planted):
    early = planted[planted["step"] == 100]
    (late,) = judge([LaterLayersUseOneHead()], planted)
    (before,) = judge([LaterLayersUseOneHead()], early)
    assert (late.verdict, before.verdict) == ("PASS", "FAIL")


# Which models and settings count


@pytest.mark.parametrize("heads", [[(1, 1)], [(8, 1), (1, 4)]])
def test_without_several_heads_in_every_layer_nothing_is_said_of_heads(heads):
    for found in judge([claim() for claim in ABOUT_HEADS] + [PaperHeadsBeatRandom()], table(heads=heads)):
        assert (found.verdict, found.parts) == ("UNDECIDED", [])
        assert found.number().startswith("nothing to compare (it needs ")


def test_one_layer_has_no_later_ones_to_prune():
    found = overall(CLAIMS, table(heads=[(1,), (8,)]))
    empty = {name for name, of_claim in found.items() if not of_claim.parts}
    assert empty == {
        "LaterLayersUseOneHead",
        "PrunedKeepsRisk",
        "FirstLayerCannotBePruned",
        "PaperHeadsBeatRandom",
        "HeadsBelongInFirstLayer",
    }


def test_models_of_other_depths_are_other_settings():
    rows = pd.concat([table(heads=[(1, 1), (8, 8)]), table(heads=[(1, 1, 1), (4, 4, 4)], draw=1)])
    rows = rows.drop_duplicates(["trial", "step", "metric", "layer", "head", "n_points"])
    *falls, most, _, _ = judge([RiskFallsWithHeads(), FirstLayerUsesAllHeads()], rows)
    assert [f.setting for f in falls] == [None, {"depth": 2}, {"depth": 3}]
    assert [[p.part.label for p in f.parts] for f in falls[1:]] == [["8 heads against 1"], ["4 heads against 1"]]
    assert [p.part.label for p in falls[0].parts] == ["2 layers: 8 heads against 1", "3 layers: 4 heads against 1"]
    assert [p.part.bound for p in most.parts] == [6, 3]


def test_p_probing_of_each_depth_is_judged_apart():
    rows = pd.concat([table(heads=[(1, 1), (8, 8)]), table(AGAINST, heads=[(1, 1, 1), (4, 4, 4)])])
    told = {(f.setting or {}).get("depth"): f.verdict for f in judge([FirstLayerPreprocesses()], rows)}
    assert told == {None: "FAIL", 2: "PASS", 3: "FAIL"}


def test_over_all_settings_a_claim_fails_with_any_of_them():
    rows = pd.concat([table(noise=(0.0,)), table(AGAINST, noise=(0.8,))])
    found = judge(CLAIMS, rows)
    for together, *apart in ([f for f in found if f.claim == name] for name in NAMES):
        assert [(f.setting["data.task.noise_std"], f.verdict) for f in apart] == [(0.0, "PASS"), (0.8, "FAIL")]
        assert (together.setting, together.verdict) == (None, "FAIL")
        assert together.decisive.part.label.startswith("noise sd 0.8: ")
        assert len(together.parts) == sum(len(f.parts) for f in apart)


def test_arms_that_a_study_does_not_judge_over_all_are_judged_apart():
    rows = pd.concat([table(noise=(0.0,)), table(AGAINST, noise=(0.8,), draw=1)])
    found = judge(CLAIMS, rows, {"data.task.noise_std": 0})
    for together, *apart in ([f for f in found if f.claim == name] for name in NAMES):
        assert [(f.setting["data.task.noise_std"], f.verdict) for f in apart] == [(0.0, "PASS"), (0.8, "FAIL")]
        assert (together.setting, together.verdict, together.note) == (None, "PASS", "noise sd 0")
        assert [p.interval for p in together.parts] == [p.interval for p in apart[0].parts]
    (lacking,) = (f for f in judge([OneHeadWorst()], rows, {"model.optimizer": "adamw"}) if f.setting is None)
    assert lacking.verdict == "UNDECIDED"
    assert lacking.note.startswith("optimizer adamw, it needs a model with one head")


def test_settings_without_what_a_claim_is_about_are_counted():
    rows = pd.concat([table(noise=(0.0,)), table(noise=(0.8,), heads=[(8, 8)])])
    rows = rows[~(rows["metric"].str.startswith("p_probing/") & (rows["data.task.noise_std"] == 0))]
    found = judge([RiskFallsWithHeads(), FirstLayerPreprocesses()], rows)
    told = [(f.setting and f.setting["data.task.noise_std"], f.note) for f in found]
    assert told == [(None, "in 1 of 2 settings"), (0.0, ""), (None, "in 1 of 2 settings"), (0.8, "")]
    assert found[0].number().endswith("wanted <= 1 (in 1 of 2 settings)")


@pytest.mark.parametrize(
    ("better", "verdict"), [("read_in", "FAIL"), ("heads_1", "FAIL"), ("raw", "PASS"), ("untrained", "PASS")]
)
def test_p_probing_is_claimed_against_fewest_heads_and_the_read_in(better, verdict):
    rows = table(TRUTH._replace(p_probing=TRUTH.p_probing | {better: 0.1}), heads=[(8, 8)])
    (found,) = judge([FirstLayerPreprocesses()], rows)
    assert found.verdict == verdict
    assert len(found.parts) == 2 * 2 * 2  # optimisers, depths, rivals


def test_p_probing_of_equally_many_heads_is_against_the_read_in_alone(planted):
    (found,) = judge([FirstLayerPreprocesses()], planted[~planted["metric"].str.endswith("/heads_1")])
    assert {p.part.label for p in found.parts} == {
        f"{optimiser} {depth}: 8 heads against read_in" for optimiser in ("attention", "descent") for depth in (1, 2)
    }
    (found,) = judge([FirstLayerPreprocesses()], planted[~planted["metric"].str.endswith("/heads_8")])
    assert found.parts == []  # one head cannot be "most heads"


# Verdicts and their errors


def rate(outcomes):
    return np.mean(list(outcomes))


def margin(probability, draws):
    return 4 * math.sqrt(probability * (1 - probability) / draws)


LAWS = {"normal": (False, 0.5, 0.3), "log-normal": (True, 0.5, 0.3), "log-normal, judged as it is": (False, 0.2, None)}


@pytest.mark.parametrize("wanted", ["above", "below"])
@pytest.mark.parametrize("law", LAWS)
@pytest.mark.parametrize("n", [3, 5, 10])
def test_at_its_bound_a_comparison_passes_and_fails_in_one_of_forty_studies(n, law, wanted):
    draws, (log, sd, centre) = 1000, LAWS[law]
    x = (centre or 0) + sd * np.random.default_rng(0).standard_normal((draws, n))
    bound = math.exp(sd**2 / 2) if centre is None else math.exp(centre) if log else centre
    parts = [Part("", tuple(v), wanted, bound, log) for v in (x if law == "normal" else np.exp(x)).tolist()]
    found = [judged(part).verdict for part in parts]
    passed, failed = (rate(v == verdict for v in found) for verdict in ("PASS", "FAIL"))
    assert passed + failed <= 0.05 + margin(0.05, draws)
    if centre is not None:
        assert passed == pytest.approx(0.025, abs=margin(0.025, draws))
        assert failed == pytest.approx(0.025, abs=margin(0.025, draws))


@pytest.mark.parametrize("n", [3, 5, 10])
@pytest.mark.parametrize("log", [False, True])
def test_the_floor_under_the_spread_makes_no_verdict_come_more_often(n, log):
    """Where seeds differ by sampling alone, where by as much again, and where by less than the floor."""
    draws, error = 1000, 0.05
    for sd in (error, error * math.sqrt(2), 0.001):
        x = sd * np.random.default_rng(n).standard_normal((draws, n))
        values, bound = (np.exp(x), 1.0) if log else (1 + x, 1.0)
        parts = [Part("", tuple(v), "below", bound, log, error=min(error, sd)) for v in values.tolist()]
        for part in parts:
            with_floor, without = part.interval(0.95), seed_interval(part.values, 0.95, log)
            assert with_floor.low <= without.low * (1 + 1e-12)
            assert with_floor.high >= without.high * (1 - 1e-12)
        found = [judged(part).verdict for part in parts]
        assert rate(v != "UNDECIDED" for v in found) <= 0.05 + margin(0.05, draws)


def test_the_floor_is_the_error_over_prompts_or_half_a_percent():
    part = Part("", (2.0, 2.0, 2.0), "above", 1.9)
    half = 4.302653 / math.sqrt(3)  # Student's quantile, two degrees
    assert judged(part).interval[1:3] == pytest.approx((2 - 0.01 * half, 2 + 0.01 * half))
    assert judged(part).verdict == "PASS"
    assert judged(part._replace(bound=1.99)).verdict == "UNDECIDED"
    assert judged(part._replace(error=0.1)).interval.low == pytest.approx(2 - 0.1 * half)
    assert judged(part._replace(error=0.1)).verdict == "UNDECIDED"
    in_logs = judged(part._replace(log=True, error=0.1)).interval
    assert (in_logs.low, in_logs.high) == pytest.approx((2 * math.exp(-0.1 * half), 2 * math.exp(0.1 * half)))


@pytest.mark.parametrize("claim", [FirstLayerUsesAllHeads(), PrunedKeepsRisk(), BeatsReference("ridge")])
def test_errors_over_prompts_reach_the_verdict(planted, claim):
    at = "against/ridge/ratio"
    ridge = planted[planted["metric"] == "val/excess_risk/ridge"].assign(metric=at)
    rows = pd.concat([planted, ridge], ignore_index=True)
    (narrow,) = judge([claim], rows)
    of_one = rows["metric"].isin(["heads/leave_one_out/effective", "prune/as_is/paper/ratio", at])
    half = rows["value"].abs().where(of_one, 0.0)
    (wide,) = judge([claim], rows.assign(low=rows["value"] - half, high=rows["value"] + half))
    assert (narrow.verdict, wide.verdict) == ("PASS", "UNDECIDED")
    size = 1.0 if narrow.parts[0].part.log else narrow.parts[0].interval.mean
    assert narrow.parts[0].part.error == pytest.approx(WIDTH / 1.96 * size, rel=0.05)
    assert wide.parts[0].part.error == pytest.approx(size / 1.96, rel=0.05)


def test_many_comparisons_at_their_bounds_fail_in_no_more_studies():
    draws, n_parts = 300, 10
    x = np.random.default_rng(1).standard_normal((draws, n_parts, 5))
    found = [finding("", "", None, [Part("", tuple(v), "below", 0.0) for v in parts]).verdict for parts in x.tolist()]
    assert rate(v == "FAIL" for v in found) <= 0.025 + margin(0.025, draws)  # uncorrected: 22 %
    assert rate(v == "PASS" for v in found) <= 0.025


def test_one_comparison_at_its_bound_among_good_ones_passes_in_one_of_forty_studies():
    """The worst case of the intersection-union test, which needs no correction."""
    draws, n_parts = 600, 4
    x = np.random.default_rng(2).standard_normal((draws, n_parts, 5))
    x[:, 1:] += 100
    found = [finding("", "", None, [Part("", tuple(v), "above", 0.0) for v in parts]).verdict for parts in x.tolist()]
    assert rate(v == "PASS" for v in found) == pytest.approx(0.025, abs=margin(0.025, draws))


def test_a_comparison_that_would_fail_alone_may_not_among_many():
    bad, good = Part("bad", (0.5, 1.0, 1.5), "below", 0.0), Part("good", (-2.0, -2.1, -1.9), "below", 0.0)
    assert judged(bad).verdict == "UNDECIDED"
    bad = bad._replace(values=(0.9, 1.0, 1.3))
    assert finding("", "", None, [bad]).verdict == "FAIL"
    found = finding("", "", None, [good, bad, *[good] * 20])
    assert (found.verdict, found.decisive.part.label) == ("UNDECIDED", "bad")
    assert found.number().endswith("wanted <= 0, beyond chance if it were alone, but it is one of 22 comparisons")


def test_the_decisive_comparison_is_the_worst():
    parts = [
        Part("far", (1.1, 1.2, 1.3), "above", 0.0),
        Part("near", (0.2, 1.2, 1.3), "above", 0.0),
        Part("log", (0.98, 1.0, 1.02), "below", 3.0, log=True),
    ]
    assert finding("", "", None, parts[::2]).decisive.part.label == "far"
    assert finding("", "", None, parts).decisive.part.label == "near"
    assert finding("", "", None, [parts[0], Part("one seed", (9.0,), "above", 0.0)]).decisive.part.label == "one seed"
    without_end = judged(Part("", (1e-200, 1e200), "below", 3.0, log=True))
    assert (without_end.verdict, without_end.clearance()) == ("UNDECIDED", 0)
    assert finding("", "", None, []).decisive is None


@pytest.mark.parametrize(("n", "decided"), [(1, False), (2, False), (3, True), (5, True)])
def test_seeds_that_agree_exactly_are_on_a_side_if_they_are_three(n, decided):
    for value, verdict, side in ((1.0, "PASS", 1), (2.0, "UNDECIDED", 0), (3.0, "FAIL", -1)):
        found = finding("", "", None, [Part("", (value,) * n, "below", 2.0)])
        assert found.verdict == (verdict if decided else "UNDECIDED")
        assert np.sign(found.decisive.clearance()) == (side if n > 1 else 0)
        assert found.number().endswith(", 3 seeds are needed") != decided


def test_numbers_are_told_with_three_digits():
    part = Part("", (1.2, 1.3, 1.46), "below", 1.1, log=True)
    assert judged(part).number() == "1.32 [1.03, 1.68], wanted <= 1.1"


# Tables and options that cannot work


@pytest.mark.parametrize("column", ["seed", "n_points", "depth", "model.heads"])
def test_a_table_without_a_column_is_refused(planted, column):
    with pytest.raises(InputError, match=f"no column {column}"):
        judge(CLAIMS, planted.drop(columns=column))


def test_a_table_without_rows_or_seeds_is_refused(planted):
    rows = planted.copy()
    with pytest.raises(InputError, match="no rows"):
        judge(CLAIMS, rows.iloc[:0])
    rows.loc[rows["seed"] == 2, "seed"] = pd.NA
    with pytest.raises(InputError, match="has no seed"):
        judge(CLAIMS, rows)


def test_two_trials_of_a_seed_in_a_setting_cannot_be_judged(planted):
    again = planted[planted["trial"] == "heads-8-8-noise-0.4-seed-1"].assign(trial="again")
    found = overall(CLAIMS, pd.concat([planted, again]))
    assert found["RiskFallsWithHeads"].verdict == "UNDECIDED"
    sentence = "heads-8-8-noise-0.4-seed-1 and again have val/excess_risk/transformer of seed 1 more than once"
    assert found["RiskFallsWithHeads"].note.startswith(sentence)
    assert found["FirstLayerPreprocesses"].verdict == "PASS"  # which does not ask for that model


class NoiseRaisesRisk(Claim):
    """Compares two settings: the risk at noise 0.8 over that at 0, which in truth is 1.8."""

    statement, needs, across = "Noise raises the risk.", "two levels of noise", True

    def __init__(self, bound):
        self.bound = bound

    def parts(self, table):
        noise = [table[table["data.task.noise_std"] == level] for level in (0.8, 0.0)]
        high, low = (by_seed(rows, "val/excess_risk/transformer", (8, 8)) for rows in noise)
        return [comparison("0.8 over 0", high / low, "above", self.bound, log=True)] if len(high) and len(low) else []


@pytest.mark.parametrize(("bound", "verdict"), [(1.3, "PASS"), (3.5, "FAIL")])
def test_a_claim_across_settings_is_judged_once_on_all_of_them(bound, verdict):
    (found,) = judge([NoiseRaisesRisk(bound)], table(noise=(0.0, 0.4, 0.8)))
    assert (found.setting, found.verdict) == (None, verdict)
    assert found.decisive.interval.low < 1.8 < found.decisive.interval.high
    (lacking,) = judge([NoiseRaisesRisk(bound)], table(noise=(0.0, 0.8)), {"data.task.noise_std": 0.8})
    assert (lacking.verdict, lacking.parts) == ("UNDECIDED", [])  # only one of the two is judged
    (lacking,) = judge([NoiseRaisesRisk(bound)], table(noise=(0.0, 0.8)), {"data.task.noise_std": 3.0})
    assert "it needs two levels of noise" in lacking.note


class Broken(Claim):
    """A user's claim with a mistake in it."""

    statement = "It breaks."
    needs = "care"

    def __init__(self, error):
        self.error = error

    def parts(self, table):
        raise self.error


class Unstated(Claim):
    def parts(self, table):
        return []


@pytest.mark.parametrize(
    ("error", "note"),
    [
        (InputError("fraction is 3,\nbut it must be less."), "fraction is 3, but it must be less."),
        (KeyError("seed"), "KeyError: 'seed'"),
        (ZeroDivisionError(), "ZeroDivisionError"),
    ],
)
def test_a_claim_that_breaks_is_undecided_and_the_others_stand(error, note):
    before, broken, *_, after = judge([BeatsReference("zero"), Broken(error), OneHeadWorst()], table(noise=(0.0,)))
    assert (before.verdict, after.verdict) == ("PASS", "PASS")
    assert broken == Finding("Broken", "It breaks.", None, "UNDECIDED", [], note)
    assert broken.number() == f"nothing to compare ({note})"


def test_a_claim_that_lacks_its_statement_is_undecided_too(planted):
    (found,) = judge([Unstated()], planted)
    assert (found.claim, found.verdict) == ("Unstated", "UNDECIDED")
    assert "has no attribute" in found.note


def test_a_seed_without_a_number_leaves_a_comparison_of_the_others():
    values = pd.Series([0.4, math.nan, 0.3], index=[1, 2, 3])
    assert comparison("x", values, "below", 0.5, log=True) == Part("x", (0.4, 0.3), "below", 0.5, log=True, missing=1)


def test_statements_name_the_treatment_and_the_reference_in_words():
    for claim in (PrunedKeepsRisk, FirstLayerCannotBePruned, PaperHeadsBeatRandom):
        statements = [claim(treatment=name).statement for name in get_args(Treatment)]
        assert len(set(statements)) == len(statements)
        assert "masked as is" in statements[0]
        assert "read-out refitted" in statements[1]
    assert BeatsReference("gd_at_depth").statement == ("The model's excess risk is below that of GD, a step a layer.")


@pytest.mark.parametrize(
    ("claim", "options", "said"),
    [
        (FirstLayerUsesAllHeads, {"fraction": 0.0}, "fraction is 0.0"),
        (LaterLayersUseOneHead, {"share": 60.0}, "share is 60.0"),
        (PrunedKeepsRisk, {"ratio": -1.0}, "ratio is -1.0"),
        (FirstLayerCannotBePruned, {"ratio": math.nan}, "ratio is nan"),
        (BeatsReference, {"ratio": 0.0}, "ratio is 0.0"),
    ],
)
def test_options_that_cannot_work_are_refused(claim, options, said):
    with pytest.raises(InputError, match=said):
        claim(**options)


def test_claims_are_chosen_in_yaml():
    parser = ArgumentParser(exit_on_error=False)
    parser.add_argument("--claims", type=list[Claim])
    chosen = [
        *(type(claim).__name__ for claim in CLAIMS),
        {"class_path": "BeatsReference", "init_args": {"reference": "lasso"}},
    ]
    claims = parser.instantiate_classes(parser.parse_object({"claims": chosen})).claims
    assert [claim.name for claim in claims] == [*NAMES, "BeatsReference (lasso)"]
    assert all(claim.statement.endswith(".") and claim.needs for claim in claims)


# The generator


def test_drawn_tables_scatter_around_their_truth():
    rows = table(seeds=tuple(range(30)), heads=[(8, 8), (4, 4)], spread=0.1, n_points=(8,))
    at_end = rows[rows["step"] == 200]
    error = 4 * 0.1 / math.sqrt(30)

    def drawn(metric, heads="[8, 8]"):
        chosen = (at_end["metric"] == metric) & (at_end["model.heads"] == heads)
        return np.log(at_end[chosen & at_end["head"].isna()].set_index(["seed", "layer", "n_points"])["value"])

    of_heads = drawn("val/excess_risk/transformer") - drawn("val/excess_risk/transformer", "[4, 4]")
    assert of_heads.mean() == pytest.approx(-0.5 * math.log(2), abs=error * math.sqrt(2))
    assert drawn("prune/as_is/random_head/ratio").mean() == pytest.approx(math.log(2), abs=error)
    assert effective_number(shares_with_effective(6.0, 8)) == pytest.approx(6, abs=1e-9)
    pd.testing.assert_frame_equal(rows, in_form(rows))
