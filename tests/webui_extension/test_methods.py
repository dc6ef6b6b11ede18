"""The sampler with another method's list, jump and shift on the stub host: its result is the core's."""

from types import SimpleNamespace

import pytest
from hyper_sd.models.catalog import load_catalog
from hyper_sd.models.recipe_plan import plan_by_recipe
from hyper_sd.samplers.schedule import NoiseSchedule
from hyper_sd.samplers.tcd import sample_tcd
from hyper_sd.samplers.timesteps import sigmas_at
from hyper_sd.tests.webui_extension.stub_run import ImageRNG, Processing, process_images
from hyper_sd.webui_extension.settings_table import Settings

NAME = "Hyper-SD TCD"


class Layer:
    """The hosts' outer layer of a model."""

    def __init__(self, inner):
        self.inner_model = inner

    def __call__(self, x, sigma, cond):
        return self.inner_model(x, sigma, cond="cat")


@pytest.mark.parametrize("rule", [{"eta": 1.0, "to_clean": True}, {"eta": 1.0, "to_clean": True, "timestep_shift": 0.25}])
def test_run_with_a_jump_and_a_shift_equals_the_cores(host, rule):
    from hyper_sd.webui_extension.schedule import Run

    run, schedule = Run(timesteps=(999, 749, 499, 249), **rule), NoiseSchedule.from_betas()
    sampler = host._modules["modules.sd_samplers"].all_samplers_map[NAME].constructor(host.model)
    sampler.p = Processing(hyper_sd_run=run, rng=ImageRNG([1]))
    sigmas = sigmas_at(schedule, run.timesteps)
    x, rng = ImageRNG([2]).next(), ImageRNG([1])
    found = sampler._run(Layer(sampler.model_wrap), x, sigmas, {"cond": SimpleNamespace(batch=[])}, disable=True)
    expected = sample_tcd(
        lambda x, sigma: sampler.model_wrap(x, sigma, cond="cat"), x * (1 + sigmas[0] ** -2) ** 0.5, sigmas,
        noise_sampler=lambda *_: rng.next(), disable=True, schedule=schedule, **run.rule,
    )  # fmt: skip
    assert (found - expected).abs().max() < 1e-3 * expected.abs().max()


@pytest.fixture
def visited(host):
    """Returns the timesteps of an image-to-image pass with a method's plan, and what is said of them."""
    from hyper_sd.webui_extension.planning import run_for

    def visit(
        method: str, steps: int, strength: float | None, *, plan_steps: int = 4, start: int = 0
    ) -> tuple[list[int], list[str]]:
        recipe = next(recipe for recipe in load_catalog().recipes if recipe.name == method)
        run = run_for(Settings(start_timestep=start), plan_by_recipe(recipe, "sdxl", 4, is_merged=True), 0.3)
        sampler = host._modules["modules.sd_samplers"].all_samplers_map[NAME].constructor(host.model)
        p, sampler._pass = Processing(hyper_sd_run=run), strength and (steps, steps, strength)
        schedule = NoiseSchedule.from_betas()
        return [round(schedule.timestep(float(sigma))) for sigma in sampler.get_sigmas(p, steps)[:-1]], p.comments

    return visit


@pytest.mark.parametrize(
    ("method", "steps", "strength", "timesteps"),
    [
        ("dmd2", 4, 0.5, [499, 374, 249, 124]),
        ("dmd2", 3, 0.5, [499, 374, 249]),
        ("dmd2", 2, 0.5, [499, 249]),
        ("dmd2", 2, 0.6, [599, 249]),
        ("dmd2", 1, 0.6, [599]),
        ("dmd2", 2, 0.9, [899, 499]),
        ("dmd2", 3, 1.0, [999, 749, 499]),
        ("flash", 3, 0.5, [499, 374, 249]),
        ("flash", 2, 1.0, [999, 499]),
        ("tdd", 5, 1.0, [999, 875, 751, 499, 251]),
        ("tdd", 3, 0.6, [599, 499, 251]),
        ("flash", 5, 1.0, [999, 799, 599, 399, 199]),
        ("dmd2", 3, None, [999, 749, 499]),  # a new image, whose steps a script has changed after the plan
        ("tdd", 5, None, [999, 875, 751, 499, 251]),
    ],
)
def test_a_pass_of_other_steps_keeps_to_the_methods_own_timesteps(visited, method, steps, strength, timesteps):
    found, said = visited(method, steps, strength)
    assert found == timesteps
    assert not any("no timesteps of its own" in line for line in said)


def test_steps_that_a_method_has_no_list_for_take_its_grid_and_are_told(visited):
    found, said = visited("dmd2", 5, 1.0)
    assert found == [999, 799, 599, 399, 199]
    assert said == ["Hyper-SD: DMD2 has no timesteps of its own for a pass of 5 steps; those of its trailing grid are taken."]
    found, said = visited("tdd", 9, 0.5)
    assert found[0] == 499
    assert len(said) == 1


def test_a_chosen_start_holds_in_a_pass_of_other_steps(visited):
    assert visited("tdd", 5, 1.0, start=799)[0][0] == 799
    assert visited("dmd2", 6, 1.0, start=799)[0][0] == 799
    assert visited("dmd2", 2, 1.0, start=799)[0] == [799, 499]


def test_no_strength_is_too_low_for_the_steps(visited):
    for steps in (1, 2, 3, 4, 8):
        found, _ = visited("dmd2", steps, 0.002)
        assert len(found) == len(set(found)) == steps


def test_img2img_walks_the_list_below_its_strength(host, flash):
    image = ImageRNG([9]).next()[:1]
    p = Processing(prompt=f"cat {flash}", args=[True, 4], init_latent=image, denoising_strength=0.5)
    process_images(host, p)
    assert p.extra_generation_params["Hyper-SD timesteps"] == "499 374 249"


def test_hires_pass_walks_the_list_below_its_strength(host, flash, monkeypatch):
    asked, whole = [], host.model.apply_model
    monkeypatch.setattr(host.model, "apply_model", lambda x, t, cond="": asked.append(round(float(t[0]))) or whole(x, t, cond))
    given = {"enable_hr": True, "denoising_strength": 0.5, "hr_second_pass_steps": 2}
    p = Processing(prompt=f"cat {flash}", args=[True, 4], **given)
    process_images(host, p)
    assert asked == [999, 749, 499, 249, 499, 249]
