"""The ticks that a reader of a figure sees."""

from matplotlib.axes import Axes


def seen_on_x(ax: Axes) -> list[float]:
    """Those of the x axis within its range."""
    low, high = ax.get_xlim()
    return [float(one) for one in ax.get_xticks() if low <= one <= high]
