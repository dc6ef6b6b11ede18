"""Axes for the X/Y/Z plot, one for each setting of the table that is marked so."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

from modules import script_callbacks, scripts

from .script import AXES
from .settings_table import TABLE, Spec

PREFIX = "[Hyper-SD] "


def _setter(name: str) -> Callable[[Any, Any, Any], None]:
    def apply(p: Any, value: Any, values: Any) -> None:
        setattr(p, AXES, {**getattr(p, AXES, {}), name: value})  # a grid's images share what is not replaced
        if name == "steps":
            p.steps = value

    return apply


def _confirm(spec: Spec) -> Callable[[Any, Any], None]:
    def confirm(p: Any, values: Any) -> None:
        for value in values:
            spec.read(value)

    return confirm


def _grids() -> list[Any]:
    return [data.module for data in scripts.scripts_data if Path(data.path).name == "xyz_grid.py"]


def add() -> None:
    """Appends the axes to the host's list and takes away those that an earlier load appended."""
    unregister()
    for grid in _grids():
        for spec in (spec for spec in TABLE if spec.axis):
            choices = (lambda spec=spec: list(spec.choices)) if spec.choices else None
            grid.axis_options.append(
                grid.AxisOption(PREFIX + spec.label, spec.kind, _setter(spec.name), confirm=_confirm(spec), choices=choices)
            )


def register() -> None:
    """Has the axes added before the host builds its page, when every script has been loaded."""
    script_callbacks.on_before_ui(add)


def unregister() -> None:
    """Takes the axes out of the host's list, which Forge-classic keeps in a module of its own over Reload UI."""
    for grid in _grids():
        grid.axis_options[:] = [option for option in grid.axis_options if not option.label.startswith(PREFIX)]
