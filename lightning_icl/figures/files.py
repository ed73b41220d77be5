"""Figures as files."""

from pathlib import Path

import numpy as np
from matplotlib import rc_context
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.figure import Figure
from matplotlib.image import imsave
from numpy.typing import NDArray


def write_figure(folder: Path, name: str, figure: Figure) -> NDArray[np.uint8]:
    """Write NAME.png and NAME.svg, and return the pixels (height, width, 3)."""
    figure.set_dpi(130)
    canvas = FigureCanvasAgg(figure)
    canvas.draw()  # once for both bitmaps, since drawing takes longer than most analyses
    pixels = np.asarray(canvas.buffer_rgba())[..., :3]
    folder.mkdir(parents=True, exist_ok=True)
    imsave(folder / f"{name}.png", pixels)
    figure.set_layout_engine("none")  # it stays as it was laid out above, which is half the work of drawing
    # No date and no random names inside: the same figure is the same file.
    with rc_context({"svg.hashsalt": name}):
        FigureCanvasSVG(figure).print_svg(folder / f"{name}.svg", metadata={"Date": None})
    return pixels
