"""Other methods' recipes: every number of the table, every pair of released files, names that lie, and merged checkpoints."""

import json
from dataclasses import replace

import pytest
from hyper_sd.errors import CatalogError, ScheduleError, UnsupportedModelError
from hyper_sd.models import recognition
from hyper_sd.models.catalog import Catalog, load_catalog
from hyper_sd.models.entry import OTHER
from hyper_sd.models.file_plan import plan_for_file
from hyper_sd.models.lora_plan import plan, plan_of
from hyper_sd.models.recipe import NUMBER_SOURCES, labels_of, read_recipe
from hyper_sd.models.recipe_plan import plan_by_recipe
from hyper_sd.models.recognition import Recognition, recognise
from hyper_sd.tests.models.synthetic_loras import write_sparse

CATALOG = load_catalog()
OTHERS = [entry for entry in CATALOG if entry.kind == OTHER]
LORAS = [entry for entry in CATALOG if entry.folder == "loras" and entry.family in ("sd15", "sdxl")]
RECIPES = {recipe.name: recipe for recipe in CATALOG.recipes}
DMD2, LIST_4 = [999, 749, 499, 249], [999, 751, 499, 251]
each_other = pytest.mark.parametrize("entry", OTHERS, ids=lambda entry: entry.id)

# entry, steps -> eta, segments, to_clean, timesteps, shift, CFG, strength
TABLE = {
    ("sdxl-lightning-4step-lora", 4): (0, 4, False, DMD2, 1, 1, 1),
    ("lcm-lora-sdv1-5", 4): (1, 1, True, [999, 759, 499, 259], 1, 1, 1),
    ("tcd-sdxl-lora", 8): (0.3, 1, False, [999, 879, 759, 639, 499, 379, 259, 139], 1, 1, 1),
    ("pcm-sd15-smallcfg-4step-lora", 4): (0, 4, False, DMD2, 1, 1, 1),
    ("pcm-sdxl-normalcfg-8step-lora", 8): (0, 8, False, [999, 874, 749, 624, 499, 374, 249, 124], 1, 4, 1),
    ("pcm-sdxl-lcmlike-lora", 4): (1, 1, True, DMD2, 1, 1, 1),
    ("tdd-sdxl-lora", 4): (0.2, 1, False, LIST_4, 1, 1.7, 1),
    ("tdd-sdxl-lora", 5): (0.2, 1, False, [999, 875, 751, 499, 251], 1, 1.7, 1),
    ("tdd-sdxl-lora", 7): (0.2, 1, False, [999, 875, 751, 627, 499, 375, 251], 1, 1.7, 1),
    ("dmd2-sdxl-4step-lora", 4): (1, 1, True, DMD2, 1, 1, 1),
    ("flash-sdxl-lora", 4): (1, 1, True, DMD2, 1, 1, 1),
    ("nitrosd-realism-unet", 4): (1, 1, True, DMD2, 0.25, 1, 0),
    ("nitrosd-vibrant-comfyui", 1): (1, 1, True, [999], 0.5, 1, 0),
}


@pytest.mark.parametrize(("entry_id", "steps"), TABLE)
def test_plan_has_the_numbers_of_the_method(entry_id, steps):
    entry = CATALOG.get(entry_id)
    found = plan_by_recipe(entry.recipe, "sdxl", steps, is_merged=True) if entry.kind != OTHER else plan_of(entry, steps)
    numbers = (
        found.eta,
        found.num_segments,
        found.to_clean,
        found.timesteps(),
        found.timestep_shift,
        found.cfg,
        found.strength,
    )
    assert numbers == TABLE[entry_id, steps]
    assert found.sampler == "hyper_sd_tcd"


@each_other
def test_every_number_says_where_it_comes_from(entry):
    sources = dict(entry.recipe.sources)
    assert {"eta", "grid", "cfg", "strength", "steps"} <= set(sources)
    assert set(sources.values()) <= set(NUMBER_SOURCES)


def test_numbers_that_are_not_the_authors_are_named():
    eight = plan_of(CATALOG.get("dmd2-sdxl-4step-lora"), 8)
    assert (eight.strength, eight.grid, eight.source) == (0.7, "trailing", "derived")
    assert "strength (field practice)" in eight.reason
    assert "grid (derived)" in eight.reason
    four = plan_of(CATALOG.get("dmd2-sdxl-4step-lora"), 4)
    assert (four.source, "Not from" in four.reason) == ("released recipe", False)
    assert "grid (derived)" in plan_of(CATALOG.get("pcm-sd15-lcmlike-lora"), 4).reason


@each_other
def test_every_step_count_has_a_plan_that_says_which_are_tried(entry):
    low, high = entry.step_range
    for steps in range(1, 17):
        found = plan_of(entry, steps)
        grid = found.timesteps()
        assert len(grid) == steps
        assert grid[0] == found.start_timestep
        assert ("untried" in found.reason) == (not low <= steps <= high)
        assert len(found.timesteps(0.5)) == steps
        assert found.timesteps(0.5)[0] <= 499
    for steps in (0, 17, True, 4.0):
        with pytest.raises(ScheduleError):
            plan_of(entry, steps)


def test_explicit_start_is_kept_on_a_list_and_said():
    found = replace(plan_of(CATALOG.get("dmd2-sdxl-4step-lora"), 4), start_timestep=599)
    assert found.timesteps() == [599, 499, 374, 249]
    assert "timesteps 599 499 374 249," in str(found)


def test_every_pair_of_file_and_name_is_the_right_recipe_or_says_that_it_does_not_know(tmp_path, monkeypatch):
    """Stub: the hash of such a file is its entry's, or none of the catalogue's; hashing zeros by the gigabyte tells nothing."""
    counts = {"content": 0, "name": 0, "nothing": 0}
    for entry in LORAS:
        monkeypatch.setattr(recognition, "sha256_of", lambda path, entry=entry: entry.sha256 or "0" * 64)
        path = write_sparse(tmp_path / "file.safetensors", entry)
        for number, other in enumerate([*LORAS, None]):
            name = other.name if other else "my model v2.safetensors"
            name = [name, name.upper(), name.replace(".safe", "_fp16 (1).safe")][number % 3]
            target = tmp_path / ["", "sdxl", "loras/few steps"][number % 3] / name
            target.parent.mkdir(parents=True, exist_ok=True)
            path = path.rename(target)
            known = recognise(path, CATALOG)
            counts[known.evidence] += 1
            if entry.sha256:
                assert (known.entry, known.evidence) == (entry, "content"), name
            elif known.variant:  # of a file without a hash only the name tells, and the plan says so
                assert known.evidence == "name"
                assert (known.recipe, known.entry) == (other.recipe, other)
                assert other.family == entry.family or other.recipe is None  # of ours, the plan looks at the family
            if other is None and not entry.sha256:
                assert known == Recognition(path.name)
        path.unlink()
    assert min(counts.values()) > 50


@each_other
def test_file_under_its_own_name_has_its_recipe_and_under_another_none(tmp_path, entry, monkeypatch):
    monkeypatch.setattr(recognition, "sha256_of", lambda path: entry.sha256 or "0" * 64)
    known = recognise(write_sparse(tmp_path / "a" / entry.name, entry), CATALOG)
    assert (known.recipe, known.variant) == (entry.recipe, OTHER)
    found = plan_for_file(entry.family, entry.steps, "auto", known)
    assert found.source == (plan_of(entry, entry.steps).source if entry.sha256 else "a guess")
    assert found.reason.startswith(entry.title if entry.sha256 else f"By its name alone this is {entry.title}")
    assert found.timesteps() == plan_of(entry, entry.steps).timesteps()
    monkeypatch.setattr(recognition, "sha256_of", lambda path: "0" * 64)
    unknown = recognise(write_sparse(tmp_path / "style.safetensors", replace(entry, sha256=None)), Catalog((), CATALOG.recipes))
    assert unknown.variant is None


def test_family_that_the_method_has_not_is_refused(tmp_path):
    known = Recognition("x.safetensors", "name", OTHER, 4, recipe=RECIPES["tdd"])
    with pytest.raises(UnsupportedModelError, match=r"TDD is for SDXL, the model is SD1\.5"):
        plan_for_file("sd15", 4, "auto", known)


def test_person_s_method_counts_before_what_the_file_is():
    known = Recognition("x.safetensors")
    found = plan_for_file("sdxl", 4, OTHER, known, RECIPES["lcm"])
    assert (found.eta, found.to_clean, found.source, found.file) == (1, True, "your choice", "x.safetensors")
    with pytest.raises(UnsupportedModelError, match="Choose its method"):
        plan_for_file("sdxl", 4, OTHER, known)
    with pytest.raises(
        UnsupportedModelError, match=r"No recipe of another method is known for FLUX\.1-dev; choose the variant"
    ):
        plan_for_file("flux", 8, OTHER, known)
    ours = Recognition("z.safetensors", "content", "n-step", 4)
    with pytest.raises(UnsupportedModelError, match=r"z\.safetensors is an n-step LoRA of Hyper-SD by its content; choose"):
        plan_for_file("sdxl", 4, OTHER, ours)
    lightning = Recognition("y.safetensors", "name", OTHER, 4, recipe=RECIPES["sdxl-lightning"])
    assert "auto takes its own recipe" in plan_for_file("sdxl", 4, OTHER, lightning, RECIPES["lcm"]).reason
    unified = plan_for_file("sdxl", 4, "unified", lightning)
    assert unified.variant == "unified"
    assert "but by its name this is SDXL-Lightning; auto takes its own recipe." in unified.reason


def test_merged_checkpoint_takes_its_method_and_no_lora():
    found = plan("sdxl", 4, "merged", RECIPES["sdxl-lightning"])
    assert (found.variant, found.file, found.strength, found.eta) == ("merged", None, 0.0, 0.0)
    assert found.timesteps() == DMD2
    assert plan("sdxl", 4, "merged").timesteps() != found.timesteps()
    with pytest.raises(UnsupportedModelError, match=r"SDXL-Lightning is for SDXL, the model is SD1\.5"):
        plan("sd15", 4, "merged", RECIPES["sdxl-lightning"])
    with pytest.raises(UnsupportedModelError, match="SDXL-Lightning needs its own LoRA, or the variant merged"):
        plan("sdxl", 4, "n-step", RECIPES["sdxl-lightning"])


@pytest.mark.parametrize(
    "wrong",
    [
        {"eta": 2}, {"grid": "listed"}, {"families": ["flux"]}, {"families": []}, {"timesteps": {"4": [999, 5]}},
        {"timesteps": {"2": [5, 999]}}, {"timesteps": {"x": []}}, {"steps": [8, 1]}, {"steps": [True, 4]}, {"steps": 4},
        {"timestep_shift": 0}, {"timestep_shift": "0.5"}, {"sources": {"eta": "a thread"}}, {"sources": {"colour": "own code"}},
        {"lora_names": "lcm"}, {"lora_names": ["(a+)+$"]}, {"method": ""}, {"segments": 0}, {"strengths": {"8": "x"}},
        {"surprise": 1}, {"start_timestep": 1000}, {"to_clean": "yes"}, {"to_clean": 1}, {"steps": [1.5, 8.5]},
        {"timesteps": {"9" * 5000: [999]}}, {"strengths": {"9" * 5000: 1}}, {"strengths": {"0": 1}},
    ],
)  # fmt: skip
def test_wrong_recipe_of_a_person_is_refused_with_its_field(wrong):
    right = {"method": "Mine", "like": "LCM", "families": ["sdxl"], "eta": 1, "grid": "tcd", "steps": [1, 8]}
    assert read_recipe("mine", right).method == "Mine"
    with pytest.raises(CatalogError):
        read_recipe("mine", right | wrong)


def test_recipe_that_is_called_as_another_or_as_no_method_takes_no_ones_place():
    twin, unnamed = replace(RECIPES["lcm"], name="mine"), replace(RECIPES["lcm"], name="odd", method="by the file")
    labels = labels_of([*RECIPES.values(), twin, unnamed], "by the file")
    assert (labels["LCM"], labels["LCM (mine)"], labels["by the file (odd)"]) == (RECIPES["lcm"], twin, unnamed)
    assert "by the file" not in labels
    crossed = [
        replace(RECIPES["lcm"], name=name, method=method) for name, method in (("a", "lcm"), ("b", "by-file"), ("c", "c"))
    ]
    assert list(labels_of([*RECIPES.values(), *crossed], "by the file"))[-3:] == ["lcm (a)", "by-file (b)", "c"]


def test_person_s_own_recipe_and_entry_are_read_and_theirs_alone(tmp_path):
    recipe = {"method": "Mine", "like": "LCM", "families": ["sdxl"], "eta": 1, "grid": "tcd", "steps": [1, 8]}
    entry = {
        "id": "mine",
        "family": "sdxl",
        "kind": "other",
        "steps": 4,
        "repo": "me/mine",
        "file": "m.safetensors",
        "recipe": "mine",
    }
    path = tmp_path / "catalog.json"
    path.write_text(json.dumps({"recipes": {"mine": recipe}, "entries": [entry]}), encoding="utf-8")
    assert load_catalog(path).get("mine").recipe.method == "Mine"
    for broken in ({"recipe": "none"}, {"strength": 1.0}, {"kind": "unified"}, {"family": "sd15"}):
        path.write_text(json.dumps({"recipes": {"mine": recipe}, "entries": [entry | broken]}), encoding="utf-8")
        with pytest.raises(CatalogError):
            load_catalog(path)
    path.write_text(json.dumps({"recipes": {"lcm": recipe}, "entries": []}), encoding="utf-8")
    with pytest.raises(CatalogError, match="is taken"):
        load_catalog(path)
    path.write_text(json.dumps({"recipes": {"by-file": recipe}, "entries": []}), encoding="utf-8")
    with pytest.raises(CatalogError, match="the name by-file stands for no method"):
        load_catalog(path)
