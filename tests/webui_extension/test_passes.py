"""What a picture says of a pass whose number of steps the method's file was not made for."""

import pytest
from hyper_sd.models.catalog import load_catalog
from hyper_sd.models.recipe_plan import plan_by_recipe
from hyper_sd.tests.webui_extension.lora_files import FOUR, own_file, place
from hyper_sd.tests.webui_extension.stub_run import ImageRNG, Processing, process_images
from hyper_sd.webui_extension.settings_table import Settings

FLASH, LCM = "Flash Diffusion is made for exactly 4 steps; a pass of", "LCM is made for 2 to 8 steps; a pass of"
TWICE = {"enable_hr": True, "denoising_strength": 0.5}


def comments(host, prompt: str, method: str = "by-file", **given) -> list[str]:
    """Makes an image with the panel on, and returns what is said below it without the plan's own reason."""
    p = Processing(prompt=prompt, args=[{"enabled": True, "steps": 4, "method": method}], **given)
    assert process_images(host, p)
    return [comment.removeprefix("Hyper-SD: ") for comment in p.comments if "of the prompt is kept" not in comment]


@pytest.mark.parametrize("steps", [0, 4])
def test_a_hires_pass_of_the_steps_that_the_file_is_made_for_says_nothing(host, flash, steps):
    assert comments(host, f"cat {flash}", hr_second_pass_steps=steps, **TWICE) == []


@pytest.mark.parametrize("steps", [2, 12])
def test_a_hires_pass_of_other_steps_is_told_once(host, flash, steps):
    said = comments(host, f"cat {flash}", hr_second_pass_steps=steps, n_iter=2, **TWICE)
    assert said == [f"{FLASH} {steps} is untried. Set Hires steps to 4."]


@pytest.mark.parametrize(("steps", "said"), [(8, []), (12, [f"{LCM} 12 is untried. Set Hires steps to 8."])])
def test_a_range_of_steps_is_told_with_its_nearest_end(host, steps, said):
    own_file(host, "ink")
    assert comments(host, "cat <lora:ink:1>", "lcm", hr_second_pass_steps=steps, **TWICE) == said


@pytest.mark.parametrize(("strength", "taken"), [(0.75, 4), (0.5, 3)])
def test_a_pass_that_the_strength_has_cut_is_told(host, flash, strength, taken):
    said = comments(host, f"cat {flash}", init_latent=ImageRNG([9]).next()[:1], denoising_strength=strength)
    cut = f"{FLASH} {taken} is untried. A higher denoising strength takes more of the steps."
    assert said == [cut] * (taken < 4)


def test_a_file_for_exactly_so_many_steps_is_told_by_its_own_number(host):
    from hyper_sd.webui_extension.planning import run_for
    from hyper_sd.webui_extension.schedule import untried_in

    lightning = next(recipe for recipe in load_catalog().recipes if recipe.name == "sdxl-lightning")
    run = run_for(Settings(), plan_by_recipe(lightning, "sdxl", 4, made_for=4, is_merged=True), 0.3)
    assert untried_in(run, 4, True, 0.5) == ""
    said = "SDXL-Lightning is made for exactly 4 steps; a pass of 8 is untried. Set Hires steps to 4."
    assert untried_in(run, 8, True, 0.5) == said
    any_file = run_for(Settings(), plan_by_recipe(lightning, "sdxl", 4, is_merged=True), 0.3)
    assert untried_in(any_file, 8, True, 0.5) == ""


def test_hyper_sds_own_files_follow_every_pass(host):
    place(host, FOUR)
    assert comments(host, "cat", hr_second_pass_steps=12, **TWICE) == []
    assert comments(host, "cat", init_latent=ImageRNG([9]).next()[:1], denoising_strength=0.3) == []
