"""The figures of the analyses: plain results in, a matplotlib figure out."""

import itertools
from collections.abc import Collection, Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from lightning_icl.functional.heads import ImportanceScores

RiskAndError = tuple[float, float]
MODEL, REFERENCE, ORACLE = "tab:red", "tab:blue", "tab:gray"
RISK = "excess risk (squared label units)"
INTERVAL = ", 95 % interval"
ABSURD = 5  # times the zero predictor's risk: beyond lies least squares at n = d, whose risk has no mean
NEGLIGIBLE = 1e-5  # times the model's risk: below lie references that are exact without noise, up to rounding
COLOURS = (
    "tab:blue", "tab:orange", "tab:green", "tab:purple", "tab:brown", "tab:pink", "tab:olive", "tab:cyan",
    "black", "gold", "navy", "teal", "magenta", "sienna",
)  # fmt: skip


def _dots(
    risks: Mapping[str, RiskAndError],
    labels: Mapping[str, str],
    colours: Mapping[str, str],
    floor: float = 0.0,
    cut: float = np.inf,
) -> Figure:
    """One row per name, lowest risk at the top, with error bars of 1.96 standard errors and the value written out.

    What lies below ``floor`` or beyond ``cut`` is an arrow at the edge with its value, so that one outlier does not
    squeeze the rest.
    """
    order = sorted(risks, key=lambda name: risks[name][0], reverse=True)
    values = np.array([risks[name][0] for name in order])
    errors = 1.96 * np.nan_to_num([risks[name][1] for name in order])
    figure = Figure(figsize=(8.5, 0.8 + 0.36 * len(order)), layout="constrained")
    axes = figure.subplots()
    edge = axes.get_yaxis_transform()  # x as a part of the axis' length
    for row, name in enumerate(order):
        if values[row] < floor:
            axes.plot(0.015, row, marker="<", color=colours[name], transform=edge)
            axes.annotate(_number(values[row]), (0.015, row), (7, -3), edge, textcoords="offset points", size=8)
            continue
        if values[row] > cut:
            axes.plot(cut, row, marker=">", color=colours[name])
            axes.annotate(
                f"{_number(values[row])} ", (cut, row), (-6, -3), textcoords="offset points", ha="right", size=8
            )
            continue
        # The bar stops at a tenth of the value: a logarithmic axis has no zero.
        low = min(errors[row], 0.9 * values[row])
        axes.errorbar(values[row], row, xerr=[[low], [errors[row]]], fmt="o", capsize=3, color=colours[name])
        axes.annotate(_number(values[row]), (values[row], row), (0, 6), textcoords="offset points", ha="center", size=8)
    if _is_wide([value for value in values.tolist() if floor <= value <= cut]):
        axes.set_xscale("log")
        axes.xaxis.set_major_formatter("{x:g}")
    axes.set_yticks(range(len(order)), [labels[name] for name in order])
    axes.set_ylim(-0.6, len(order) - 0.2)
    axes.margins(x=0.12)
    axes.set_xlabel(RISK + INTERVAL)
    axes.grid(axis="x", which="both", alpha=0.25)
    return figure


def _number(value: float) -> str:
    return f"{value:,.0f}" if value >= 100 else f"{value:#.3g}"


def _kind(name: str) -> str:
    return {"transformer": MODEL, "oracle_support": ORACLE}.get(name, REFERENCE)


def _limits(by_place: Collection[Mapping[str, RiskAndError]]) -> tuple[float, float]:
    """Where a plot of risks may begin, far below the model's, and where it may end, a few times the zero predictor's.

    Without the zero predictor the model's risk stands in for it; a model that has diverged sets no limit.
    """
    model = [risks["transformer"][0] for risks in by_place]
    zero = [risks.get("zero", risks["transformer"])[0] for risks in by_place]
    floor = NEGLIGIBLE * min(filter(np.isfinite, model), default=0.0)
    return floor, ABSURD * max(filter(np.isfinite, zero), default=np.inf)


def _shown(by_place: Collection[Mapping[str, RiskAndError]]) -> list[float]:
    """The risks within the limits."""
    floor, cut = _limits(by_place)
    return [risk for risks in by_place for risk, _ in risks.values() if floor <= risk <= cut]


def _is_wide(shown: Sequence[float]) -> bool:
    """Whether these values need a logarithmic axis."""
    return len(shown) > 0 and max(shown) > 10 * min(shown) > 0


def risk_by_estimator(risks: Mapping[str, RiskAndError], labels: Mapping[str, str], prompts: str) -> Figure:
    """The model among the reference estimators, for one number of examples."""
    figure = _dots(risks, labels, {name: _kind(name) for name in risks}, *_limits([risks]))
    figure.suptitle(f"Excess risk on {prompts}")
    return figure


def risk_by_stream(risks: Mapping[str, Mapping[str, RiskAndError]], labels: Mapping[str, str]) -> Figure:
    """Excess risk on every validation stream side by side, one marker an estimator."""
    streams, (floor, cut) = list(risks), _limits(risks.values())
    names = [name for name in labels if any(name in risks[stream] for stream in streams)]
    figure = Figure(figsize=(3.5 + 1.8 * len(streams) + 3, 4.8), layout="constrained")
    axes = figure.subplots()
    colours = itertools.cycle(COLOURS)
    for i, name in enumerate(names):
        places = [k for k, stream in enumerate(streams) if floor <= risks[stream].get(name, (np.inf, 0))[0] <= cut]
        values = np.array([risks[streams[k]][name] for k in places]).reshape(-1, 2)
        bars = 1.96 * np.nan_to_num(values[:, 1])
        bars = np.stack([np.minimum(bars, 0.9 * values[:, 0]), bars])  # a logarithmic axis has no zero
        colour = _kind(name) if _kind(name) != REFERENCE else next(colours)
        marker = "D" if name == "transformer" else "o"
        shift = 0.6 * ((i + 0.5) / len(names) - 0.5)
        axes.errorbar(
            np.array(places) + shift, values[:, 0], bars, fmt=marker, ms=5, capsize=2, color=colour, label=labels[name]
        )
    for boundary in range(1, len(streams)):
        axes.axvline(boundary - 0.5, color="black", lw=0.5, alpha=0.3)
    if _is_wide(_shown(risks.values())):
        axes.set_yscale("log")
        axes.yaxis.set_major_formatter("{x:g}")
    axes.set_xticks(range(len(streams)), streams)
    axes.set_xlim(-0.5, len(streams) - 0.5)
    axes.set_xlabel("stream of prompts")
    axes.set_ylabel(RISK + INTERVAL)
    all_risks = [risk for by_name in risks.values() for risk, _ in by_name.values()]
    bounds = [f"beyond {cut:.3g}"] * (max(all_risks) > cut) + [f"below {floor:.2g}"] * (min(all_risks) < floor)
    left_out = f" (what lies {' or '.join(bounds)} is left out)" if bounds else ""
    figure.suptitle("Excess risk by stream" + left_out)
    axes.grid(axis="y", alpha=0.25)
    figure.legend(loc="outside right center", fontsize=8)
    return figure


def risk_by_points(risks: Mapping[int, Mapping[str, RiskAndError]], labels: Mapping[str, str], prompts: str) -> Figure:
    """Excess risk against the number of examples, one line an estimator."""
    n_points = sorted(risks)
    figure = Figure(figsize=(9, 4.5), layout="constrained")
    axes = figure.subplots()
    colours = itertools.cycle(COLOURS)
    for name in risks[n_points[0]]:
        values = np.array([risks[n][name] for n in n_points])
        style: dict[str, Any] = {"color": _kind(name) if _kind(name) != REFERENCE else next(colours)}
        style |= {"lw": 2.5, "zorder": 3} if name == "transformer" else {"lw": 1.2}  # the model in front
        bars = 1.96 * np.nan_to_num(values[:, 1])
        bars = np.stack([np.minimum(bars, 0.9 * values[:, 0]), bars])  # a logarithmic axis has no zero
        axes.errorbar(n_points, values[:, 0], bars, label=labels[name], marker=".", capsize=2, **style)
    shown = _shown(risks.values())
    if _is_wide(shown):
        axes.set_yscale("log")
        axes.yaxis.set_major_formatter("{x:g}")
    axes.set_ylim(0.6 * min(shown, default=0.0), min(axes.get_ylim()[1], _limits(risks.values())[1]))
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.set_xlabel("number of in-context examples n")
    axes.set_ylabel(RISK + INTERVAL)
    figure.suptitle(f"Excess risk on {prompts}")
    axes.grid(alpha=0.25)
    figure.legend(loc="outside right center", fontsize=8)
    return figure


def importance_map(importance: ImportanceScores) -> Figure:
    """Layer by head heat map of leave-one-out importance, annotated with its standard error."""
    raw, error = importance.raw.cpu().numpy(), importance.standard_error.cpu().numpy()
    n_layers, n_heads = raw.shape
    figure = Figure(figsize=(2.6 + 0.95 * n_heads, 1.6 + 0.62 * n_layers), layout="constrained")
    axes = figure.subplots()
    limit = np.nanmax(np.abs(raw)) or 1.0
    image = axes.imshow(raw, cmap="RdBu_r", vmin=-limit, vmax=limit, aspect="auto")
    for layer, head in np.argwhere(np.isfinite(raw)):
        dark = abs(raw[layer, head]) > 0.6 * limit
        text = f"{raw[layer, head]:.3g}\n±{error[layer, head]:.1g}"
        axes.text(head, layer, text, ha="center", va="center", size=8, color="white" if dark else "black")
    axes.set_xticks(range(n_heads), [str(head + 1) for head in range(n_heads)])
    axes.set_yticks(range(n_layers), [_layer_label(importance, layer) for layer in range(n_layers)])
    axes.set_xlabel("head")
    axes.set_title("Rise of the excess risk when one head is ablated (± standard error)")
    figure.colorbar(image, ax=axes, label="squared label units")
    return figure


def _layer_label(importance: ImportanceScores, layer: int) -> str:
    effective = float(importance.effective_heads[layer])
    return f"layer {layer + 1}\n" + ("within noise" if np.isnan(effective) else f"{effective:.1f} effective")


def pruning_risks(risks: Mapping[str, RiskAndError], labels: Mapping[str, str]) -> Figure:
    """Full model, pruned model and controls."""
    colours = {name: {"full": MODEL, "pruned": REFERENCE}.get(name, ORACLE) for name in risks}
    figure = _dots(risks, labels, colours)
    figure.axes[0].axvline(risks["full"][0], color=MODEL, lw=1, ls=":")
    figure.axes[0].set_title("Excess risk with heads masked as is")
    return figure


def probe_curves(
    risks: Mapping[str, Sequence[RiskAndError]], r2: Mapping[str, Sequence[float]], gd: Mapping[str, Sequence[float]]
) -> Figure:
    """Left: the probe's excess risk for f(x_q) by depth, beside GD; right: R^2 of every target."""
    figure = Figure(figsize=(11.5, 4.4), layout="constrained")
    left, right = figure.subplots(1, 2)
    for key, label, colour in (("f_query", "probe", MODEL), ("shuffled/f_query", "probe, shuffled labels", ORACLE)):
        values = np.array(risks[key])
        bars = 1.96 * np.nan_to_num(values[:, 1])
        left.errorbar(range(len(values)), values[:, 0], bars, label=label, color=colour, marker="o", capsize=3)
    for (name, curve), colour in zip(gd.items(), COLOURS, strict=False):
        layers = range(1, len(curve) + 1)
        left.plot(layers, curve, ls="--", marker="s", ms=4, color=colour, label=f"{name}, layer - 1 steps")
    left.set_ylim(bottom=0)
    left.set_ylabel(RISK)
    left.set_title("Linear probe of the query's state for f(x_q), 95 % intervals")
    names = {"f_query": "f(x_q)", "w": "w", "preprocessed_query": "R̂ x_q"}
    for (name, explained), colour in zip(r2.items(), COLOURS, strict=False):
        right.plot(range(len(explained)), explained, marker="o", label=names.get(name, name), color=colour)
    right.set_ylabel("R² on fresh prompts")
    right.set_ylim(min(-0.05, *(min(v) for v in r2.values())), 1.05)
    right.set_title("What the query's state knows linearly")
    for axes in (left, right):
        axes.set_xlabel("layer (0 is the read-in)")
        axes.set_xticks(range(len(risks["f_query"])))
        axes.grid(alpha=0.25)
        axes.legend(loc="upper center", bbox_to_anchor=(0.5, -0.16), ncols=2, fontsize=8, frameon=False)
    return figure
