"""Excess risks of the model and the reference estimators."""

import itertools
from collections.abc import Mapping
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from lightning_icl.callbacks.figures.style import (
    COLOURS,
    INTERVAL,
    REFERENCE,
    RISK,
    RiskAndError,
    dots,
    is_wide,
    kind,
    limits,
    shown,
)


def risk_by_estimator(risks: Mapping[str, RiskAndError], labels: Mapping[str, str], prompts: str) -> Figure:
    """The model among the reference estimators, for one number of examples."""
    figure = dots(risks, labels, {name: kind(name) for name in risks}, *limits([risks]))
    figure.suptitle(f"Excess risk on {prompts}")
    return figure


def risk_by_stream(risks: Mapping[str, Mapping[str, RiskAndError]], labels: Mapping[str, str]) -> Figure:
    """Excess risk on every validation stream side by side, one marker an estimator."""
    streams, (floor, cut) = list(risks), limits(risks.values())
    names = [name for name in labels if any(name in risks[stream] for stream in streams)]
    figure = Figure(figsize=(3.5 + 1.8 * len(streams) + 3, 4.8), layout="constrained")
    axes = figure.subplots()
    colours = itertools.cycle(COLOURS)
    for i, name in enumerate(names):
        places = [k for k, stream in enumerate(streams) if floor <= risks[stream].get(name, (np.inf, 0))[0] <= cut]
        values = np.array([risks[streams[k]][name] for k in places]).reshape(-1, 2)
        bars = 1.96 * np.nan_to_num(values[:, 1])
        bars = np.stack([np.minimum(bars, 0.9 * values[:, 0]), bars])  # a logarithmic axis has no zero
        colour = kind(name) if kind(name) != REFERENCE else next(colours)
        marker = "D" if name == "transformer" else "o"
        shift = 0.6 * ((i + 0.5) / len(names) - 0.5)
        axes.errorbar(
            np.array(places) + shift, values[:, 0], bars, fmt=marker, ms=5, capsize=2, color=colour, label=labels[name]
        )
    for boundary in range(1, len(streams)):
        axes.axvline(boundary - 0.5, color="black", lw=0.5, alpha=0.3)
    if is_wide(shown(risks.values())):
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
        style: dict[str, Any] = {"color": kind(name) if kind(name) != REFERENCE else next(colours)}
        style |= {"lw": 2.5, "zorder": 3} if name == "transformer" else {"lw": 1.2}  # the model in front
        bars = 1.96 * np.nan_to_num(values[:, 1])
        bars = np.stack([np.minimum(bars, 0.9 * values[:, 0]), bars])  # a logarithmic axis has no zero
        axes.errorbar(n_points, values[:, 0], bars, label=labels[name], marker=".", capsize=2, **style)
    within = shown(risks.values())
    if is_wide(within):
        axes.set_yscale("log")
        axes.yaxis.set_major_formatter("{x:g}")
    axes.set_ylim(0.6 * min(within, default=0.0), min(axes.get_ylim()[1], limits(risks.values())[1]))
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.set_xlabel("number of in-context examples n")
    axes.set_ylabel(RISK + INTERVAL)
    figure.suptitle(f"Excess risk on {prompts}")
    axes.grid(alpha=0.25)
    figure.legend(loc="outside right center", fontsize=8)
    return figure
