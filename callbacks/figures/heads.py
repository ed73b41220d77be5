"""Which heads matter."""

import numpy as np
from matplotlib.figure import Figure

from lightning_icl.functional.heads import ImportanceScores


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
