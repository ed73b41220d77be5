"""The numbers that a study's figures show, read back from their axes, against the table they were drawn from."""

import numpy as np
import pandas as pd
import pytest
from matplotlib.colors import to_hex, to_rgba
from scipy import stats
from synthetic import Truth, in_form, synthetic_table

from lightning_icl.functional.errors import InputError
from lightning_icl.studies.figures import (
    Drawn,
    EffectiveHeads,
    HeadsByLayer,
    ImportanceMaps,
    PProbing,
    Probes,
    Pruning,
    RiskByHeads,
    RiskByPoints,
    StudyFigure,
    write_figures,
)
from lightning_icl.studies.names import setting_text

NOISE = (0.1, 0.4)
SEEDS = (1, 2, 3, 4)
ALL = [
    *(RiskByPoints(), RiskByHeads(), ImportanceMaps(), HeadsByLayer(), Pruning(), Probes(), PProbing()),
    EffectiveHeads("step"),
]
every_figure = pytest.mark.parametrize("figure", ALL, ids=lambda figure: type(figure).__name__)


@pytest.fixture(scope="module")
def table():
    table = synthetic_table(np.random.default_rng(0), seeds=SEEDS, noise=NOISE)
    model = table["metric"].str.extract(r"^prune/\w+/(\w+)/excess_risk$")[0]
    return table.assign(note=model.map(PRUNED))


PRUNED = {
    "full": "full model (16 heads)",
    "paper": "paper: all of layer 1, top head of each later layer (9)",
    "prune_layer1_instead": "control: top head of layer 1, all later heads",
    "random_head": "control: all of layer 1, a random head of each later layer",
    "least_important": "control: all of layer 1, least important head of each later layer",
}


def numbers(table, metric, **where):
    """The values at the last step, one a trial."""
    rows = table[(table["metric"] == metric) & (table["step"] == table["step"].max())]
    for key, value in where.items():
        column = {"heads": "model.heads", "noise": "data.task.noise_std"}.get(key, key)
        rows = rows[rows[column].isna() if value is None else rows[column] == value]
    return rows.set_index("seed")["value"].astype(float).sort_index()


def interval(values):
    """Mean, low and high by scipy's own test."""
    found = stats.ttest_1samp(values, 0.0).confidence_interval(0.95)
    return np.mean(values), found.low, found.high


def drawn(axes, label):
    """What error bars of that label show: (n, 3) of mean, low, high, in the order of the horizontal axis."""
    bars = next(container for container in axes.containers if container.get_label() == label)
    data, _, (segments,) = bars.lines
    vertical = [segment[:, 1] for segment in segments.get_segments()]
    return np.column_stack([data.get_ydata(orig=False), np.array(vertical)])


def drawn_along_x(container):
    """Of one dot with a horizontal bar: mean, low, high and its place."""
    data, _, (segments,) = container.lines
    return np.array([data.get_xdata()[0], *segments.get_segments()[0][:, 0]]), data.get_ydata()[0]


def by_title(figure, title):
    return next(axes for axes in figure.axes if axes.get_title() == title)


def only(figures):
    ((_, figure),) = figures
    return figure


def test_risk_by_points_shows_means_and_intervals_over_seeds(table):
    axes = by_title(only(RiskByPoints().draw(table)), "noise sd 0.4")
    wanted = [
        interval(numbers(table, "val/excess_risk/transformer", heads="[8, 8]", noise=0.4, n_points=n))
        for n in (8, 16, 32)
    ]
    np.testing.assert_allclose(drawn(axes, "8 heads"), wanted)


def test_references_count_once_for_each_seed(table):
    odd = table.copy()
    odd.loc[odd["metric"].eq("val/excess_risk/ridge") & odd["model.heads"].eq("[8, 8]"), "value"] *= 1.3
    axes = by_title(only(RiskByPoints().draw(odd)), "noise sd 0.1")
    of_one = [numbers(table, "val/excess_risk/ridge", noise=0.1, n_points=n, heads="[1, 1]") for n in (8, 16, 32)]
    # The mean over the four models of each seed that are drawn, one of them with 1.3 times the risk.
    np.testing.assert_allclose(drawn(axes, "ridge"), [interval(values * (3 + 1.3) / 4) for values in of_one])


def test_risk_by_points_has_one_line_a_head_count_and_the_known_references(table):
    figure = only(RiskByPoints(["lasso", "newton"]).draw(table))
    labels = {container.get_label() for axes in figure.axes for container in axes.containers}
    assert labels == {"1 head", "2 heads", "4 heads", "8 heads", "lasso"}
    assert "layers differ" in RiskByPoints().caption(table)


def test_one_number_of_examples_is_drawn_by_heads():
    table = synthetic_table(np.random.default_rng(1), seeds=SEEDS, n_points=(16,), heads=((1, 1), (8, 8)))
    (axes,) = only(RiskByPoints().draw(table)).axes
    assert [tick.get_text() for tick in axes.get_xticklabels()] == ["1", "8"]
    risks = numbers(table, "val/excess_risk/transformer", heads="[8, 8]", n_points=16)
    np.testing.assert_allclose(drawn(axes, "8 heads"), [interval(risks)])
    bayes = next(line for line in axes.lines if line.get_label() == "Bayes")
    mean = numbers(table, "val/excess_risk/bayes", heads="[1, 1]", n_points=16).mean()
    np.testing.assert_allclose(bayes.get_ydata(), mean)


def test_trials_that_differ_in_their_number_of_examples_share_a_panel():
    parts = []
    for n in (8, 16):
        part = synthetic_table(np.random.default_rng(n), seeds=(1, 2), n_points=(n,), heads=((1, 1), (8, 8)))
        parts.append(part.assign(trial=part["trial"] + f"-{n}", **{"data.n_points": n}))
    (axes,) = only(RiskByPoints().draw(in_form(pd.concat(parts)))).axes
    assert len(drawn(axes, "1 head")) == 2


def test_risk_by_heads_shows_every_configuration_on_all_prompts(table):
    table = table.assign(value=table["value"].where(table["n_points"].notna(), 2 * table["value"]))
    axes = by_title(only(RiskByHeads().draw(table)), "noise sd 0.1")
    names = [tick.get_text() for tick in axes.get_yticklabels()]
    assert names == ["1 head", "2 heads", "4 heads", "8 heads", "[1, 8]", "[8, 1]"]
    found = {names[int(place)]: bar for bar, place in map(drawn_along_x, axes.containers)}
    for name, heads in (("4 heads", "[4, 4]"), ("[8, 1]", "[8, 1]")):
        risks = numbers(table, "val/excess_risk/transformer", heads=heads, noise=0.1, n_points=None)
        np.testing.assert_allclose(found[name], interval(risks))


def importance_map(table, figure_of="_noise_sd_0.4", title="8 heads"):
    axes = by_title(dict(ImportanceMaps().draw(table))[figure_of], title)
    return axes.images[0].get_array(), [text.get_text() for text in axes.texts]


def test_importance_maps_average_heads_of_equal_rank(table):
    rows = table[(table["metric"] == "heads/leave_one_out/importance") & (table["step"] == 400)]
    rows = rows[(rows["model.heads"] == "[8, 8]") & (rows["data.task.noise_std"] == 0.4)]
    by_seed = rows.pivot_table(index="seed", columns=["layer", "head"], values="value").to_numpy(float)
    ranked = -np.sort(-by_seed.reshape(len(SEEDS), 2, 8), axis=2)
    image, texts = importance_map(table)
    np.testing.assert_allclose(image, ranked.mean(axis=0))
    mean, _, high = interval(ranked[:, 1, 0])
    assert texts[8] == f"{mean:.3f}\n±{high - mean:.3f}"


def test_the_order_of_heads_in_a_seed_is_nothing_to_the_map(table):
    swapped = table.copy()
    seed = swapped["seed"].eq(2) & swapped["head"].notna()
    swapped.loc[seed & swapped["head"].le(2), "head"] = 3 - swapped.loc[seed & swapped["head"].le(2), "head"]
    np.testing.assert_array_equal(importance_map(swapped)[0], importance_map(table)[0])


def test_importance_at_fewer_examples_is_another_question(table):
    at_n = table[table["metric"] == "heads/leave_one_out/importance"].assign(n_points=8, value=100.0)
    extended = in_form(pd.concat([table, at_n]))
    np.testing.assert_array_equal(importance_map(extended)[0], importance_map(table)[0])


def test_layers_with_fewer_heads_leave_their_places_empty(table):
    image, texts = importance_map(table, title="[8, 1]")
    assert np.isfinite(np.ma.filled(image, np.nan)).sum() == len(texts) == 9


def pruned_rows(table, suffix=""):
    figure = dict(Pruning().draw(table))[suffix]
    names = [tick.get_text().replace("\n", " ") for tick in figure.axes[0].get_yticklabels()]
    return by_title(figure, "noise sd 0.4"), names


def dotted(axes, along="y"):
    """Where dotted lines across the axes stand."""
    lines = [line for line in axes.lines if line.get_linestyle() == ":"]
    return [(line.get_xdata() if along == "x" else line.get_ydata())[0] for line in lines]


def along_x(axes, label):
    """Mean, low, high by the row."""
    container = next(c for c in axes.containers if c.get_label() == label)
    data, _, (segments,) = container.lines
    ends = [segment[:, 0] for segment in segments.get_segments()]
    places = np.round(data.get_ydata(orig=False)).astype(int)
    return {place: (mean, *end) for place, mean, end in zip(places, data.get_xdata(orig=False), ends, strict=True)}


def test_pruning_shows_the_model_with_most_heads_with_its_controls(table):
    axes, rows = pruned_rows(table)
    assert rows[:2] == ["full model", "paper: all of layer 1, top head of each later layer"]
    assert [row.split(":")[0] for row in rows[2:]] == [*["control"] * 3, *["trained"] * 3]
    assert dotted(axes, "x") == [numbers(table, "prune/as_is/full/excess_risk", heads="[8, 8]", noise=0.4).mean()]
    found = along_x(axes, "masked as is")
    for row, model in enumerate(("full", "paper", "prune_layer1_instead", "random_head", "least_important")):
        risks = numbers(table, f"prune/as_is/{model}/excess_risk", heads="[8, 8]", noise=0.4)
        np.testing.assert_allclose(found[row], interval(risks))
    refitted = numbers(table, "prune/read_out/paper/excess_risk", heads="[8, 8]", noise=0.4)
    np.testing.assert_allclose(along_x(axes, "read-out refitted")[1], interval(refitted))


def test_models_trained_with_fewer_heads_stand_below(table):
    axes, rows = pruned_rows(table)
    found = along_x(axes, "trained from scratch")
    for heads, name in (
        ("[1, 1]", "one head in every"),
        ("[8, 1]", "all heads in layer 1"),
        ("[1, 8]", "one head in l"),
    ):
        row = next(i for i, text in enumerate(rows) if name in text)
        risks = numbers(table, "prune/as_is/full/excess_risk", heads=heads, noise=0.4)
        np.testing.assert_allclose(found[row], interval(risks))


def test_without_head_pruning_models_are_compared_on_validation_prompts(table):
    lacks = ~(table["metric"].str.startswith("prune/") & table["model.heads"].eq("[1, 1]"))
    axes, rows = pruned_rows(table[lacks])
    row = next(i for i, text in enumerate(rows) if "one head in every" in text)
    risks = numbers(table, "val/excess_risk/transformer", heads="[1, 1]", noise=0.4, n_points=None)
    np.testing.assert_allclose(along_x(axes, "trained from scratch")[row], interval(risks))


def test_pruning_ratios_are_geometric_means_paired_by_seed(table):
    axes, rows = pruned_rows(table, "_ratio")
    ratios = numbers(table, "prune/as_is/prune_layer1_instead/ratio", heads="[8, 8]", noise=0.4)
    np.testing.assert_allclose(along_x(axes, "masked as is")[2], np.exp(interval(np.log(ratios))))
    full = "prune/as_is/full/excess_risk"
    paired = numbers(table, full, heads="[8, 1]", noise=0.4) / numbers(table, full, heads="[8, 8]", noise=0.4)
    row = next(i for i, text in enumerate(rows) if "all heads in layer 1" in text)
    np.testing.assert_allclose(along_x(axes, "trained from scratch")[row], np.exp(interval(np.log(paired))))
    assert dotted(axes, "x") == [1.1, 2.0]  # the bounds of a reproduction


def test_paths_and_other_checkpoints_are_no_treatments(table):
    other = table[table["metric"] == "prune/as_is/full/excess_risk"]
    names = ("prune/greedy_path/heads_3/excess_risk", "prune/checkpoint/single/excess_risk")
    extended = in_form(pd.concat([table, *(other.assign(metric=name) for name in names)]))
    assert pruned_rows(extended)[1] == pruned_rows(table)[1]


def test_another_number_of_heads_can_be_asked_for(table):
    axes = by_title(dict(Pruning(heads=4).draw(table))[""], "noise sd 0.4")
    risks = numbers(table, "prune/as_is/paper/excess_risk", heads="[4, 4]", noise=0.4)
    np.testing.assert_allclose(along_x(axes, "masked as is")[1], interval(risks))


def test_probes_show_every_head_count_and_the_algorithms_from_layer_1_on(table):
    axes = by_title(only(Probes().draw(table)), "noise sd 0.4")
    for label, metric, heads, layers in (
        ("probe, 2 heads", "probe/query/f/trained/risk", "[2, 2]", (0, 1, 2)),
        ("probe, untrained network", "probe/query/f/untrained/risk", "[8, 8]", (0, 1, 2)),
        ("probe, shuffled labels", "probe/query/f/shuffled/risk", "[8, 8]", (0, 1, 2)),
        ("GD, layer - 1 steps", "probe/curve/gd", "[8, 8]", (1, 2)),
    ):
        wanted = [numbers(table, metric, heads=heads, noise=0.4, layer=layer).mean() for layer in layers]
        np.testing.assert_allclose(drawn(axes, label)[:, 0], wanted)
    assert [round(x) for x in next(c for c in axes.containers if "GD" in c.get_label()).lines[0].get_xdata()] == [1, 2]
    level = next(line for line in axes.lines if line.get_label() == "Bayes")
    np.testing.assert_allclose(level.get_ydata(), numbers(table, "probe/level/bayes", heads="[8, 8]", noise=0.4).mean())


def test_p_probing_has_a_panel_an_optimiser_and_a_line_an_arm(table):
    figure = only(PProbing().draw(table))
    titles = [axes.get_title().split("\n")[0] for axes in figure.axes]
    assert titles == ["noise sd 0.1"] * 2 + ["noise sd 0.4"] * 2
    descent = figure.axes[3]
    for label, arm in (("layer 1 with 8 heads", "heads_8"), ("the examples as they are, x", "raw")):
        wanted = [interval(numbers(table, f"p_probing/descent/{t}/{arm}", noise=0.4)) for t in (1, 2)]
        np.testing.assert_allclose(drawn(descent, label), wanted)


def test_effective_heads_against_what_a_study_varies(table):
    figure = only(EffectiveHeads("data.task.noise_std").draw(table))
    effective = by_title(figure, "8 heads")
    wanted = [
        interval(numbers(table, "heads/leave_one_out/effective", heads="[8, 8]", layer=1, noise=noise))
        for noise in NOISE
    ]
    np.testing.assert_allclose(drawn(effective, "layer 1"), wanted)
    assert [tick.get_text() for tick in effective.get_xticklabels()] == ["0.1", "0.4"]
    titles = {axes.get_title() for axes in figure.axes}
    assert titles == {"2 heads", "4 heads", "8 heads", "[1, 8]", "[8, 1]", ""}
    share = figure.axes[figure.axes.index(effective) + 3]  # three columns, so below it
    top = [numbers(table, "heads/leave_one_out/top_share", heads="[8, 8]", layer=2, noise=n).mean() for n in NOISE]
    np.testing.assert_allclose(drawn(share, "layer 2")[:, 0], top)
    assert (effective.get_ylabel(), share.get_ylabel()) == ("effective number of heads", "share of the top head")
    assert dotted(effective) == [6.0]  # 0.75 of 8 heads in layer 1
    assert dotted(share) == [0.6]


def test_effective_heads_over_training_has_a_figure_a_setting(table):
    figures = dict(EffectiveHeads("step").draw(table))
    assert list(figures) == ["_noise_sd_0.1", "_noise_sd_0.4"]
    axes = by_title(figures["_noise_sd_0.4"], "8 heads")
    line = next(line for line in axes.lines if line.get_label() == "layer 2")
    rows = table[(table["metric"] == "heads/leave_one_out/effective") & (table["layer"] == 2)]
    rows = rows[(rows["model.heads"] == "[8, 8]") & (rows["data.task.noise_std"] == 0.4)]
    np.testing.assert_allclose(line.get_xdata(), [100, 200, 400])
    np.testing.assert_allclose(line.get_ydata(), rows.groupby("step")["value"].mean())
    band = axes.collections[2].get_paths()[0].vertices
    _, low, high = interval(rows[rows["step"] == 400]["value"].astype(float))
    at_end = band[np.isclose(band[:, 0], 400), 1]
    np.testing.assert_allclose([at_end.min(), at_end.max()], [low, high])


def test_effective_heads_against_depth_joins_models_of_as_many_heads():
    heads = [(h,) * depth for h in (1, 4, 8) for depth in (2, 3, 4)]
    table = synthetic_table(np.random.default_rng(2), seeds=(1, 2), heads=heads)
    figure = only(EffectiveHeads("depth").draw(table))
    axes = by_title(figure, "4 heads")
    wanted = [numbers(table, "heads/leave_one_out/effective", heads=str([4] * d), layer=3).mean() for d in (3, 4)]
    np.testing.assert_allclose(drawn(axes, "layer 3")[:, 0], wanted)
    assert [axes.get_title() for axes in only(RiskByPoints().draw(table)).axes] == ["2 layers", "3 layers", "4 layers"]


def test_heads_in_use_by_layer_have_a_row_a_setting_and_a_line_a_head_count():
    heads = [(1,) * 6, (4,) * 6, (8,) * 6, (8, 1, 1, 1, 1, 1)]
    table = synthetic_table(np.random.default_rng(5), SEEDS, heads, NOISE, silent=[(1, 3)])
    figure = HeadsByLayer()
    drawing = only(figure.draw(table))
    assert [axes.get_title() for axes in drawing.axes] == [
        "noise sd 0.1",
        "noise sd 0.1",
        "noise sd 0.4",
        "noise sd 0.4",
    ]
    for axes, number in zip(drawing.axes[2:], ("effective", "top_share"), strict=True):
        where = {"heads": str([8] * 6), "noise": 0.4}
        metric = f"heads/leave_one_out/{number}"
        wanted = [interval(numbers(table, metric, layer=layer, **where).dropna()) for layer in range(1, 7)]
        np.testing.assert_allclose(drawn(axes, "8 heads"), wanted)
        assert {c.get_label() for c in axes.containers} == {"4 heads", "8 heads"}
    risks = by_title(only(RiskByPoints().draw(table)), "noise sd 0.4")
    colours = [{c.get_label(): to_hex(c[0].get_color()) for c in a.containers} for a in (risks, drawing.axes[2])]
    assert colours[1].items() <= colours[0].items()  # the model with one head takes its colour with it
    assert "4 of 96 layers" in figure.caption(table)
    assert "over 3 to 4 seeds" in figure.caption(table)


@pytest.mark.parametrize(
    ("keys", "said"),
    [
        ({"data.n_points": "[4, 16]", "data.validation": "{}"}, "prompts of 16 examples"),
        ({"data.n_points": 8}, "prompts of 8 examples"),
        ({"data.n_points": "[4, 16]", "data.validation": '{"longer": {"n_points": 40}}'}, "the most examples"),
        ({}, "the most examples"),
    ],
)
def test_captions_say_on_how_many_examples_heads_are_measured(table, keys, said):
    for figure in (ImportanceMaps(), HeadsByLayer(), EffectiveHeads("step"), Pruning(), Probes(), PProbing()):
        assert said in figure.caption(table.assign(**keys))


def test_layers_whose_importance_is_noise_are_left_out_and_counted():
    table = synthetic_table(np.random.default_rng(3), SEEDS, ((8, 8),), NOISE, silent=[(1, 2), (2, 2)])
    figure = EffectiveHeads("data.task.noise_std")
    axes = by_title(only(figure.draw(table)), "8 heads")
    kept = [numbers(table, "heads/leave_one_out/effective", layer=2, noise=noise).dropna() for noise in NOISE]
    assert [len(values) for values in kept] == [2, 2]
    np.testing.assert_allclose(drawn(axes, "layer 2"), [interval(values) for values in kept])
    assert "4 of 16 layers" in figure.caption(table)
    assert "over 2 to 4 seeds" in figure.caption(table)


def test_models_with_one_value_on_the_axis_are_not_drawn_and_named(table):
    deep = synthetic_table(np.random.default_rng(6), SEEDS, ((4, 4, 4),), (0.4,))
    lacking = table[~(table["model.heads"].eq("[2, 2]") & table["data.task.noise_std"].eq(0.1))]
    figure, study = EffectiveHeads("data.task.noise_std"), in_form(pd.concat([lacking, deep]))
    ((suffix, drawing),) = figure.draw(study)
    assert suffix == "_2_layers"
    assert {axes.get_title() for axes in drawing.axes} == {"4 heads", "8 heads", "[1, 8]", "[8, 1]", ""}
    assert "Not drawn, for lack of two values on the axis: 2 heads (2 layers), 4 heads (3 layers)." in (
        figure.caption(study)
    )
    assert "Not drawn" not in figure.caption(table)
    assert figure.draw(deep) == []
    assert EffectiveHeads("step").draw(deep[deep["step"] == 400]) == []


def test_legends_have_head_counts_in_order_whatever_panel_they_are_in(table):
    first = table["data.task.noise_std"].eq(0.1) & table["model.heads"].isin(["[2, 2]", "[4, 4]"])
    for figure, before in ((RiskByPoints(), ""), (Probes(), "probe, ")):
        (legend,) = only(figure.draw(table[~first])).legends
        labels = [text.get_text() for text in legend.get_texts()]
        assert labels[:4] == [f"{before}{h} head{'s' * (h != 1)}" for h in (1, 2, 4, 8)]
        assert len(labels) > 4


def test_what_no_trial_has_is_no_axis(table):
    with pytest.raises(InputError, match=r"against is 'data.task.noise'.*data.task.noise_std"):
        EffectiveHeads("data.task.noise").draw(table)


def test_what_no_trial_has_a_value_of_gives_no_figure(table):
    assert EffectiveHeads("data.task.spectrum").draw(table.assign(**{"data.task.spectrum": None})) == []


def test_in_a_single_layer_all_heads_in_layer_1_is_the_full_model():
    table = synthetic_table(np.random.default_rng(5), seeds=(1, 2), heads=((1,), (8,)))
    names = [tick.get_text() for tick in dict(Pruning().draw(table))[""].axes[0].get_yticklabels()]
    assert [name for name in names if name.startswith("trained")] == ["trained: one head in every layer"]


@pytest.mark.parametrize("figure", [ImportanceMaps, EffectiveHeads])
def test_a_score_that_is_none_is_refused(figure):
    with pytest.raises(InputError, match="leave_one_out"):
        figure(score="leave_out")


@every_figure
def test_a_table_without_its_numbers_gives_no_figure(figure, table):
    assert figure.draw(table[table["metric"] == "run/parameters"]) == []


@every_figure
def test_one_seed_has_no_intervals_and_the_caption_says_so(figure, table):
    alone = table[(table["seed"] == 1) & (table["data.task.noise_std"] == 0.4)]
    assert "One seed" in figure.caption(alone) or "one seed" in figure.caption(alone)
    for _, drawing in figure.draw(alone):
        for axes in drawing.axes:
            segments = [s for c in axes.containers for bars in c.lines[2] for s in bars.get_segments()]
            assert not any(len(segment) and np.isfinite(segment).all() for segment in segments)
            assert not any("±" in text.get_text() for text in axes.texts)


@every_figure
def test_captions_say_how_many_seeds(figure, table):
    assert "4 seeds" in figure.caption(table)


def test_a_model_that_diverged_is_left_out_and_counted(table):
    broken = table.copy()
    lost = (
        broken["seed"].eq(3) & broken["model.heads"].eq("[8, 8]") & broken["metric"].eq("val/excess_risk/transformer")
    )
    broken.loc[lost & broken["data.task.noise_std"].eq(0.4), "value"] = np.inf
    axes = by_title(only(RiskByPoints().draw(broken)), "noise sd 0.4")
    risks = numbers(table, "val/excess_risk/transformer", heads="[8, 8]", noise=0.4, n_points=8).drop(3)
    np.testing.assert_allclose(drawn(axes, "8 heads")[0], interval(risks))
    caption = RiskByPoints().caption(broken)
    assert "1 model without a finite number" in caption
    assert "3 to 4 seeds" in caption


def test_panels_share_their_axis_logarithmic_where_any_risk_spans_more_than_ten_times():
    truth = Truth(risk=lambda heads, n: heads[0] ** -2.0)
    table = synthetic_table(np.random.default_rng(4), truth=truth, seeds=(1, 2), n_points=(8, 16), noise=NOISE)
    for figure in (RiskByPoints(["ridge"]), RiskByHeads()):
        axes = only(figure.draw(table)).axes
        scales = {
            (a.get_xscale(), a.get_xlim()) if isinstance(figure, RiskByHeads) else (a.get_yscale(), a.get_ylim())
            for a in axes
        }
        assert len(axes) == 2
        assert len(scales) == 1
        assert scales.pop()[0] == "log"


@pytest.mark.parametrize("figure", [RiskByPoints(), Probes(), PProbing()])
def test_every_panel_has_the_same_ends(figure, table):
    assert len({axes.get_ylim() for axes in only(figure.draw(table)).axes}) == 1


@pytest.mark.parametrize("figure", [RiskByPoints(["least_squares"]), RiskByHeads()])
def test_a_reference_above_the_zero_predictor_squeezes_nothing(figure, table):
    lost = table["metric"].isin(["val/excess_risk/ridge", "val/excess_risk/least_squares"])
    worse = table.assign(value=table["value"].mask(lost, 9e4))
    worse = pd.concat(
        [worse, worse[worse["metric"].str.endswith("/ridge")].assign(metric="val/excess_risk/least_squares")]
    )
    for axes in only(figure.draw(in_form(worse))).axes:
        assert max(axes.get_xlim()[1] if isinstance(figure, RiskByHeads) else axes.get_ylim()[1], 0) < 50
        edge = [line for line in axes.lines if line.get_gid() == "beyond the axes"]
        assert {line.get_marker() for line in edge} == {">"} if isinstance(figure, RiskByHeads) else {"^"}


def test_a_named_stream_is_another_question(table):
    other = table[table["metric"].str.startswith("val/")].assign(stream="shifted", value=100.0)
    extended = in_form(pd.concat([table, other]))
    for figure in (RiskByPoints(), RiskByHeads()):
        for one, same in zip(only(figure.draw(extended)).axes, only(figure.draw(table)).axes, strict=True):
            for bars, expected in zip(one.containers, same.containers, strict=True):
                np.testing.assert_array_equal(bars.lines[0].get_data(), expected.lines[0].get_data())


def test_head_counts_keep_their_colour_from_panel_to_panel_in_order_of_lightness(table):
    figure = only(RiskByPoints().draw(table))
    colours = [
        [drawn_line(axes, f"{h} head{'s' * (h != 1)}").get_color() for h in (1, 2, 4, 8)] for axes in figure.axes
    ]
    assert np.allclose(colours[0], colours[1])
    lightness = [np.dot(to_rgba(colour)[:3], (0.2126, 0.7152, 0.0722)) for colour in colours[0]]
    assert lightness == sorted(lightness)


def drawn_line(axes, label):
    return next(container for container in axes.containers if container.get_label() == label).lines[0]


def test_figures_are_written_as_png_and_svg_and_empty_ones_say_so(table, tmp_path):
    few = table[(table["metric"] == "val/excess_risk/transformer") & (table["data.task.noise_std"] == 0.4)]
    empty, written = write_figures([Probes(), RiskByHeads()], few, tmp_path)
    assert empty == Drawn(Probes.title, "Nothing to draw: no trial has numbers of LinearProbe.", [])
    assert written.title == RiskByHeads.title
    assert written.files == [tmp_path / "excess_risk_by_heads.png", tmp_path / "excess_risk_by_heads.svg"]
    assert written.files[0].read_bytes().startswith(b"\x89PNG")
    assert "<svg" in written.files[1].read_text()
    assert written.caption == RiskByHeads().caption(few)
    (alone,) = write_figures(
        [EffectiveHeads("data.task.noise_std")], table[table["data.task.noise_std"] == 0.4], tmp_path
    )
    assert alone.caption == "Nothing to draw: no trial has numbers of HeadImportance at two values of noise sd."


class Broken(StudyFigure):
    """A user's figure with a mistake in it."""

    name = "broken"
    title = "Broken"

    def draw(self, table):
        return [("", table["typo"])]

    def caption(self, table):
        return ""


def test_a_figure_that_breaks_has_no_files_and_says_why_and_the_others_stand(table, tmp_path):
    typo = EffectiveHeads("data.task.noise")
    broken, mistyped, after = write_figures([Broken(), typo, RiskByHeads()], table, tmp_path)
    assert broken == Drawn("Broken", "It could not be drawn: KeyError: 'typo'", [])
    assert mistyped.caption.startswith("It could not be drawn: against is 'data.task.noise', which no trial has: ")
    assert mistyped.files == []
    assert all(file.exists() for file in after.files)


def test_every_figure_has_files_of_its_own():
    figures = [
        *ALL,
        Pruning(4),
        ImportanceMaps("gradient"),
        EffectiveHeads("depth"),
        EffectiveHeads("data.task.sparsity"),
    ]
    names = [figure.name for figure in figures]
    assert len(set(names)) == len(names)
    assert all(isinstance(figure, StudyFigure) for figure in figures)


@pytest.mark.parametrize(
    ("setting", "text"),
    [
        ({"data.task.noise_std": 0.4}, "noise sd 0.4"),
        ({"data.task": "SparseLinearRegression", "data.task.sparsity": 4.0}, "SparseLinearRegression, sparsity s 4"),
        ({"model.mlp": False, "model.attention": "relu"}, "MLP off, attention relu"),
        ({"data.task.degree": float("nan"), "depth": 3}, "3 layers"),
        ({"data.task.noise_std": "[0.1, 0.8]"}, "noise sd [0.1, 0.8]"),
        (None, ""),
    ],
)
def test_settings_are_said_in_words(setting, text):
    assert setting_text(setting) == text
