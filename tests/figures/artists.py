"""What a figure's artists hold: the numbers that its reader sees."""

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg


def bars(axes, label, along="y"):
    """What the error bars of that label show: (n, 3) of mean, low, high, in their order."""
    container = next(container for container in axes.containers if container.get_label() == label)
    data, _, (segments,) = container.lines
    column = 1 if along == "y" else 0
    ends = [segment[:, column] if len(segment) else (np.nan, np.nan) for segment in segments.get_segments()]
    return np.column_stack([data.get_data(orig=False)[column], np.array(ends)])


def line(axes, label):
    return next(line for line in axes.lines if line.get_label() == label)


def band(axes, x, which=0):
    """Low and high of a band at x."""
    vertices = axes.collections[which].get_paths()[0].vertices
    at = vertices[np.isclose(vertices[:, 0], x), 1]
    return at.min(), at.max()


def arrows(axes):
    """The arrows at the edge for what lies outside: their places in their own coordinates, and their colours."""
    found = [line for line in axes.lines if line.get_gid() == "beyond the axes"]
    return [(*np.ravel(line.get_data(orig=False)), line.get_marker(), line.get_color()) for line in found]


def texts(axes):
    return [text.get_text() for text in axes.texts]


def assert_nothing_covers_anything(figure):
    """Axes with their labels, legends and the title lie in the figure and apart."""
    FigureCanvasAgg(figure).draw()
    parts = [axes.get_tightbbox() for axes in figure.axes]
    parts += [legend.get_window_extent() for legend in figure.legends]
    parts += [figure._suptitle.get_window_extent()] if figure._suptitle else []
    for i, part in enumerate(parts):
        assert figure.bbox.x0 <= part.x0
        assert part.x1 <= figure.bbox.x1
        assert not any(part.overlaps(other) for other in parts[:i])
