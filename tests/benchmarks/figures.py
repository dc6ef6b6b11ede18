"""What a benchmark draws with matplotlib."""

from collections.abc import Callable

import pytest


def figures_of(draw: Callable[[], None]) -> list:
    """Returns the figures that a call draws and closes."""
    from matplotlib import pyplot

    figures = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(pyplot, "close", figures.append)
        draw()
    for figure in figures:
        pyplot.close(figure)
    return figures
