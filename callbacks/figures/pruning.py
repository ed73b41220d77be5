"""What is lost when heads are pruned."""

from collections.abc import Mapping

from matplotlib.figure import Figure

from lightning_icl.callbacks.figures.style import MODEL, ORACLE, REFERENCE, RiskAndError, dots


def pruning_risks(risks: Mapping[str, RiskAndError], labels: Mapping[str, str]) -> Figure:
    """Full model, pruned model and controls."""
    colours = {name: {"full": MODEL, "pruned": REFERENCE}.get(name, ORACLE) for name in risks}
    figure = dots(risks, labels, colours)
    figure.axes[0].axvline(risks["full"][0], color=MODEL, lw=1, ls=":")
    figure.axes[0].set_title("Excess risk with heads masked as is")
    return figure
