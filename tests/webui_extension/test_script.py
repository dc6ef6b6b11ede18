"""The script on the stub host: which LoRA, in which pass, what is set, what is said; and that it keeps out of the way."""

import pytest
import torch
from hyper_sd.models.catalog import load_catalog
from hyper_sd.tests.models import synthetic_checkpoints, synthetic_unets
from hyper_sd.tests.webui_extension.lora_files import FOUR, UNIFIED, lora_bytes, place
from hyper_sd.tests.webui_extension.stub_host import Model, StubHost
from hyper_sd.tests.webui_extension.stub_run import Processing, process_images, unload_extension


def make(host: StubHost, *panel, **given) -> Processing:
    """Makes an image with the panel's arguments in order, and returns the host's object."""
    p = Processing(**{"args": list(panel), **given})
    p.images = process_images(host, p)
    return p


def test_panel_off_leaves_everything_as_it_is(host):
    p = make(host, False, 4)
    assert (p.steps, p.sampler_name, p.scheduler, p.cfg_scale) == (20, "Euler", "Automatic", 7.0)
    assert p.activations == [[]]
    assert not any(key.startswith("Hyper-SD") for key in p.extra_generation_params)


def test_wrong_arguments_do_not_break_an_image_while_the_panel_is_off(host):
    p = make(host, False, "four", "nonsense", None, [], {}, "x", 7)
    assert len(p.images) == 1
    assert len(make(host, sampler_name="Hyper-SD TCD", args=[False, "four"]).images) == 1


def test_recommended_settings_follow_the_steps(host):
    place(host, FOUR, UNIFIED, "Hyper-SD15-12steps-CFG-lora")
    p = make(host, True, 4)
    assert (p.steps, p.sampler_name, p.scheduler, p.cfg_scale) == (4, "Hyper-SD TCD", "Hyper-SD", 1.0)
    assert p.activations[-1] == [(FOUR, 1.0)]
    assert p.prompt == "cat"
    p = make(host, True, 3)
    assert p.activations[-1] == [(UNIFIED, 1.0)]
    assert (p.extra_generation_params["Hyper-SD eta"], p.extra_generation_params["Hyper-SD segments"]) == ("0.9", 1)
    p = make(host, True, 12)
    assert (p.steps, p.cfg_scale, p.activations[-1]) == (12, 5.0, [("Hyper-SD15-12steps-CFG-lora", 1.0)])


def test_own_settings_stay_when_the_recommended_are_off(host):
    place(host, FOUR)
    p = make(host, True, 2, "auto", 0, 0, False, steps=4, cfg_scale=1.5, sampler_name="Euler")
    assert (p.steps, p.sampler_name, p.cfg_scale) == (4, "Euler", 1.5)
    assert p.activations[-1] == [(FOUR, 1.0)]  # the LoRA for the steps that are really taken


def test_lora_is_activated_in_both_passes_each_with_its_strength(host):
    place(host, FOUR)
    p = make(host, True, 4, "auto", 0, 0.6, enable_hr=True, denoising_strength=0.5)
    assert p.activations == [[], [(FOUR, 1.0)], [(FOUR, 0.6)]]
    p = make(host, True, 4, "auto", 0.8, enable_hr=True, denoising_strength=0.5)
    assert p.activations == [[], [(FOUR, 0.8)], [(FOUR, 0.8)]]


def test_every_batch_has_the_lora_and_the_next_image_has_none(host):
    place(host, FOUR)
    p = make(host, True, 4, batch_size=2, n_iter=2)
    assert len(p.images) == 4
    assert p.activations == [[], [(FOUR, 1.0)]] * 2
    single = make(host, True, 4, seed=4).images[0]
    assert float((p.images[3] - single).abs().max()) < 1e-5
    assert make(host, False).activations == [[]]


def test_lora_beside_others_of_the_prompt(host):
    place(host, FOUR, "style")
    assert make(host, True, 4, prompt="cat <lora:style:0.7>").activations[-1] == [("style", 0.7), (FOUR, 1.0)]


@pytest.mark.parametrize("tag", ["<lora:Hyper-SD15-4steps-lora:0.5>", "<lyco:Hyper-SD15-4steps-lora:0.5>"])
def test_a_lora_of_the_prompt_is_kept_and_decides_the_plan(host, tag):
    place(host, FOUR, UNIFIED)
    p = make(host, True, 6, prompt=f"cat {tag}")
    assert all((FOUR, 1.0) not in active and UNIFIED not in dict(active) for active in p.activations)
    assert p.extra_generation_params["Hyper-SD segments"] == 4  # the file's, at 6 steps as well
    assert "Hyper-SD strength" not in p.extra_generation_params  # it stands in the prompt


def test_a_hires_prompt_without_the_tag_gets_the_lora(host):
    place(host, FOUR)
    p = make(host, True, 4, prompt=f"cat <lora:{FOUR}:0.5>", hr_prompt="dog", enable_hr=True)
    assert p.activations == [[(FOUR, 0.5)], [(FOUR, 0.5)], [(FOUR, 1.0)]]


def test_missing_file_stops_the_run_and_says_where_to_get_it(host):
    p = make(host, True, 4)
    assert p.images == []
    assert p.activations == []
    (comment,) = p.comments
    assert f"{FOUR}.safetensors is missing" in comment
    assert "Download" in comment
    assert host.warnings == [comment]
    assert comment in p.infotext
    assert make(host, False).images  # the next image is not stopped


@pytest.mark.parametrize(
    ("panel", "words"),
    [
        ((True, 8, "n-step", 3.0), "0 to 2"),
        ((True, 2, "CFG-preserving"), "3 to 16 steps"),
        ((True, 9, "unified"), "1 to 8 steps"),
    ],
)
def test_what_cannot_be_planned_stops_the_run_with_a_sentence(host, panel, words):
    p = make(host, *panel)
    assert p.images == []
    assert words in p.comments[0]


def test_a_checkpoint_of_another_family_is_named(host):
    host.use(Model(host, family="sd21"))
    p = make(host, True, 4)
    assert p.images == []
    assert "no Hyper-SD LoRA for this checkpoint" in p.comments[0]


def test_a_loaded_refiner_is_refused_although_the_host_marks_it_as_sdxl(host):
    host.use(Model(host, family="sdxl"))
    refiner = synthetic_checkpoints.full(synthetic_checkpoints.refiner(), "refiner")
    synthetic_checkpoints.write_checkpoint(host.root / "model.safetensors", refiner)
    p = make(host, True, 4)
    assert p.images == []
    assert "no Hyper-SD LoRA for the SDXL refiner" in p.comments[0]


def test_a_loaded_file_that_does_not_tell_is_what_the_host_marks_it_as(host):
    synthetic_checkpoints.write_checkpoint(host.root / "model.safetensors", [("wheels.round.weight", (8, 8))])
    place(host, FOUR)
    assert make(host, True, 4).activations[-1] == [(FOUR, 1.0)]


def test_a_file_of_another_family_is_refused(host):
    (host.root / "Lora" / f"{FOUR}.safetensors").write_bytes(lora_bytes("sdxl"))
    host.list_loras()
    p = make(host, True, 4)
    assert p.images == []
    assert "LoRA for SDXL, the model is SD1.5" in p.comments[0]


def test_family_follows_the_checkpoint_that_is_loaded_for_this_image(host):
    place(host, FOUR, "Hyper-SDXL-4steps-lora")
    host.use(Model(host, family="sdxl"))
    assert make(host, True, 4).activations[-1] == [("Hyper-SDXL-4steps-lora", 1.0)]


@pytest.mark.parametrize("variant", ["auto", "one-step checkpoint"])
def test_one_step_checkpoint_starts_at_800_without_a_lora(host, variant):
    model = Model(host, family="sdxl")
    entry = next(entry for entry in load_catalog() if entry.kind == "checkpoint")
    path = host.root / entry.name
    if variant == "auto":  # known by its head and name
        synthetic_unets.write(path, synthetic_unets.checkpoint(), torch.float16, sparse=True)
    model.sd_checkpoint_info.filename = str(path)
    host.use(model)
    p = make(host, True, 4, variant)
    assert (p.steps, p.cfg_scale, p.activations) == (1, 1.0, [[]])
    assert p.extra_generation_params["Hyper-SD timesteps"] == "800"
    assert p.extra_generation_params["Hyper-SD variant"] == "one-step checkpoint"


def test_the_plan_of_a_one_step_checkpoint_has_its_own_start(host):
    from hyper_sd.webui_extension.chosen_model import Model as Chosen
    from hyper_sd.webui_extension.planning import choose
    from hyper_sd.webui_extension.settings_table import Settings

    chosen = choose(Settings(enabled=True, variant="one-step"), Chosen("sdxl", None, "SDXL"), 1)
    assert chosen.timesteps() == [800]


def test_merged_checkpoint_takes_no_lora(host):
    p = make(host, True, 4, "merged checkpoint")
    assert (p.activations, p.cfg_scale, p.steps) == ([[]], 2.0, 4)


def test_axes_of_a_grid_change_one_image_each_and_share_nothing(host):
    place(host, FOUR, UNIFIED)
    grid = type("Grid", (), {})()
    grid.axis_options, grid.AxisOption = [], _Axis
    _list_grid(host, grid)
    assert [axis.label for axis in grid.axis_options].count("[Hyper-SD] Eta") == 1
    axes = {axis.label: axis for axis in grid.axis_options}
    p = Processing(args=[False])
    seen = []
    for steps in (4, 3):
        image = Processing(**p.__dict__)  # as the hosts do: a shallow copy
        axes["[Hyper-SD] Hyper-SD steps"].confirm(image, [steps])
        axes["[Hyper-SD] Hyper-SD steps"].apply(image, steps, [4, 3])
        process_images(host, image)
        seen.append((image.activations[-1], image.steps, dict(image.extra_generation_params)))
        image.activations.clear()
    assert [entry[:2] for entry in seen] == [([(FOUR, 1.0)], 4), ([(UNIFIED, 1.0)], 3)]
    plain = Processing(**p.__dict__)
    process_images(host, plain)
    assert not any(key.startswith("Hyper-SD") for key in plain.extra_generation_params)
    with pytest.raises(ValueError, match="0 to 1"):
        axes["[Hyper-SD] Eta"].confirm(p, [2.0])


def test_axes_leave_a_list_that_the_host_keeps_once_the_extension_is_switched_off(host):
    grid = type("Grid", (), {})()
    grid.axis_options, grid.AxisOption = [_Axis("Seed", int, None)], _Axis
    _list_grid(host, grid)
    assert len(grid.axis_options) > 5
    unload_extension(host)
    assert [axis.label for axis in grid.axis_options] == ["Seed"]


class _Axis:
    def __init__(self, label, kind, apply, confirm=None, choices=None):
        self.label, self.type, self.apply, self.confirm, self.choices = label, kind, apply, confirm, choices


def _list_grid(host, grid):
    entry = type("Data", (), {"path": "/somewhere/scripts/xyz_grid.py", "module": grid})()
    host._modules["modules.scripts"].scripts_data.append(entry)
    for _ in range(2):
        for callback in host.callbacks["on_before_ui"]:
            callback()


def test_forge_family_gets_both_passes_cfg(make_host):
    host = make_host(forge=True)
    place(host, FOUR)
    p = make(host, True, 4, hr_cfg=7.0)
    assert (p.cfg_scale, p.hr_cfg) == (1.0, 1.0)


def test_host_without_lora_extension_says_that_the_file_is_missing(host, monkeypatch):
    monkeypatch.delitem(__import__("sys").modules, "networks")
    assert "is missing" in make(host, True, 4).comments[0]
