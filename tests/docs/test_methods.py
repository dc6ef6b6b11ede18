"""The tables of the other few-step methods in docs/downloads.md: their rows are the catalogue's.

HYPER_SD_WRITE=1 writes them.
"""

import os
from pathlib import Path

import pytest
from hyper_sd.models.catalog import load_catalog
from hyper_sd.models.families import FAMILIES
from hyper_sd.models.recipe import LAST_TIMESTEP, NUMBER_SOURCES, Recipe

PAGE = Path(__file__).resolve().parents[2] / "docs" / "downloads.md"
CATALOG = load_catalog()
WORDS = {"start_timestep": "first timestep", "timestep_shift": "shift", "cfg": "CFG"}


def _span(low: float, high: float) -> str:
    return f"{low:g}" if low == high else f"{low:g} to {high:g}"


def _timesteps(recipe: Recipe) -> str:
    said = [f"{steps} steps: {' '.join(map(str, listed))}" for steps, listed in recipe.lists]
    said.append(f"otherwise {recipe.grid}" if said else recipe.grid)
    if recipe.start_timestep != LAST_TIMESTEP:
        said.append(f"from {recipe.start_timestep}")
    if recipe.timestep_shift != 1:
        said.append(f"shift {recipe.timestep_shift:g}")
    return "; ".join(said)


def _segments(recipe: Recipe) -> str:
    return str(recipe.segments) if recipe.segments else "as steps"


def _strength(recipe: Recipe) -> str:
    if not recipe.lora_names:
        return ""
    return ", ".join([f"{recipe.strength:g}", *(f"{value:g} at {steps} steps" for steps, value in recipe.strengths)])


def _sources(recipe: Recipe) -> str:
    named = {source: [WORDS.get(name, name) for name, of in recipe.sources if of == source] for source in NUMBER_SOURCES}
    return "; ".join(f"{source}: {', '.join(names)}" for source, names in named.items() if names)


def numbers() -> list[str]:
    """Returns a row for each recipe."""
    rows = []
    for recipe in CATALOG.recipes:
        families = ", ".join(FAMILIES[key].title for key in recipe.families)
        cells = [
            recipe.method,
            families,
            _span(*recipe.steps),
            f"{recipe.eta:g}",
            _segments(recipe),
            _timesteps(recipe),
            _span(*recipe.cfg_range),
        ]
        rows.append(f"| {' | '.join([*cells, _strength(recipe), _sources(recipe)])} |")
    return rows


def files() -> list[str]:
    """Returns a row for each method's files in one repository under one licence."""
    groups: dict[tuple, list[str]] = {}
    for entry in CATALOG:
        if entry.recipe:
            groups.setdefault((entry.method, entry.repo, entry.licence), []).append(FAMILIES[entry.family].title)
    rows = []
    for (method, repo, licence), families in groups.items():
        count = ", ".join(f"{families.count(family)} for {family}" for family in dict.fromkeys(families))
        asked = "yes" if licence.acknowledge else "no"
        rows.append(f"| {method} | [{repo}](https://huggingface.co/{repo}) | {count} | {licence.title} | {asked} |")
    return rows


@pytest.mark.parametrize("table", [files, numbers])
def test_table_of_the_methods_is_the_catalogues(table):
    text = PAGE.read_text(encoding="utf-8")
    before, rest = text.split(f"<!-- {table.__name__} of the methods -->\n")
    lines, after = rest.split("<!-- end of them -->", 1)
    head = lines.splitlines()[:2]
    if os.environ.get("HYPER_SD_WRITE"):
        written = "\n".join([*head, *table()])
        PAGE.write_text(
            f"{before}<!-- {table.__name__} of the methods -->\n{written}\n<!-- end of them -->{after}", encoding="utf-8"
        )
        lines = written
    assert lines.splitlines()[2:] == table()
