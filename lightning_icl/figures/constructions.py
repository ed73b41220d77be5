"""What becomes of a construction that is trained on: rows construction/..., listed in lightning_icl.record.rows."""

import pandas as pd
from matplotlib.figure import Figure

from lightning_icl.figures import style

# Panels below that of the risk, by metric.
ALIKE = {
    "beyond_input": "states beyond\nthe tokens, R²",
    "weights": "weights,\ncosine",
    "heads/overlap": "work of the\nsame heads",
}


def construction_course(rows: pd.DataFrame) -> Figure:
    """The model's risk less the construction's, and how alike they are layer by layer, over training.

    ``rows`` are those of all validations, with the column step.
    """
    found = style.cells(rows.sort_values("step", kind="stable"), r"construction/(?P<number>[\w/]+)")
    figure = Figure(figsize=(style.WIDTH, 7.4), layout="constrained")
    risk, *panels = figure.subplots(1 + len(ALIKE), 1, sharex=True)
    difference = found[found["number"] == "risk/difference"]
    risk.axhline(0, color="0.4", lw=1, ls=":")
    style.over(risk, difference["step"], difference, color=style.BLUE, marker="o", ms=4, lw=1.4)
    risk.set_ylabel("excess risk less the\nconstruction's\n(squared label units)", size=9)
    layers = sorted({int(layer) for layer in found["layer"].dropna() if layer})
    colours = style.ordered_colours(len(layers))
    for axes, (number, label) in zip(panels, ALIKE.items(), strict=True):
        for i, layer in enumerate(layers):
            line = found[(found["number"] == number) & (found["layer"] == layer)]
            places = style.apart(line["step"], i, len(layers), difference["step"])
            look = {"color": colours[i], "marker": style.MARKERS[i % len(style.MARKERS)], "label": f"layer {layer}"}
            style.over(axes, places, line, ms=4, lw=1.4, **look)
        axes.axhline(1, color="0.4", lw=1, ls=":")
        axes.set_ylim(min(0.0, axes.get_ylim()[0]), 1.05)
        axes.set_ylabel(label, size=9)
    for axes in figure.axes:
        axes.grid(alpha=0.2)
    panels[-1].set_xlabel("training step", size=9)
    style.legend(figure, columns=4)
    style.title(figure, "The model beside its construction (bars: 95 % intervals)\ndotted: no difference")
    return figure
