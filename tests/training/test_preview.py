import pytest
import torch
from hyper_sd.errors import ScheduleError
from hyper_sd.samplers.noise import seeded_noise
from hyper_sd.samplers.tcd import plan_steps
from hyper_sd.samplers.timesteps import hyper_sd_sigmas, hyper_sd_timesteps
from hyper_sd.tests.training.fakes import PointMass, call, make_denoiser, make_examples, schedule
from hyper_sd.tests.training.jobs import make_job
from hyper_sd.training import preview
from hyper_sd.training.denoiser import Denoiser
from hyper_sd.training.diffusion import PREDICTION_TYPES, Diffusion
from hyper_sd.training.lora_layers import LoraLayers
from hyper_sd.training.sampling import sample_latents, schedule_of_diffusion
from PIL import Image

ALL = pytest.mark.parametrize("prediction", PREDICTION_TYPES)
SHAPE = (3, 2, 8, 8)


def world(prediction="epsilon"):
    batch = make_examples(3).batch(range(3), 0)
    return make_denoiser(prediction), batch.conditioning, batch.unconditional


def by_hand(denoiser, conditioning, unconditional, *, steps, num_segments, eta, guidance_scale, seed):
    """The steps written out on x0 and noise in the network's own scaling, from the sampler's plan."""
    diffusion, table = denoiser.diffusion, schedule(denoiser.diffusion.prediction_type)
    grid = hyper_sd_timesteps(steps, num_segments)
    sigmas = hyper_sd_sigmas(table, steps, num_segments)
    plan = plan_steps(table, sigmas, eta, num_segments)
    noise = torch.randn(SHAPE, generator=torch.Generator().manual_seed(seed)).double()
    draws = seeded_noise(noise, seed, iter([s.next_timestep for s in plan if s.noise]))
    x = noise  # alpha of the first level times sqrt(1 + sigma^2) is 1, and so is the last sigma of flow models
    for now, step in zip(grid, plan, strict=True):
        t = torch.full((3,), now)
        with_, without = (denoiser.predict(x, t, c) for c in (conditioning, unconditional))
        x0 = diffusion.pred_x0(x, without + guidance_scale * (with_ - without), t)
        if step.ends_clean:
            return x0
        scale = 1.0 if table.is_flow else diffusion.levels(t, x)[0]
        x = step.keep * (x0 + step.ratio * (x / scale - x0)) + (step.noise * draws() if step.noise else 0)
        x = x if table.is_flow else x * diffusion.levels(torch.full((3,), round(step.next_timestep)), x)[0]


@ALL
@pytest.mark.parametrize(
    ("steps", "segments", "eta", "scale"), [(1, 1, 0.3, 1.0), (4, 1, 0.3, 1.0), (4, 4, 0.0, 2.5), (8, 2, 1.0, 5.0)]
)
def test_preview_is_the_samplers_own_trajectory(prediction, steps, segments, eta, scale):
    options = {"steps": steps, "num_segments": segments, "eta": eta, "guidance_scale": scale, "seed": 5}
    found = sample_latents(*world(prediction), SHAPE, **options)
    torch.testing.assert_close(found, by_hand(*world(prediction), **options), rtol=1e-4, atol=1e-4)


@ALL
def test_exact_network_draws_its_own_data_in_any_number_of_steps(prediction):
    diffusion = Diffusion.from_schedule(schedule(prediction), prediction)
    c = torch.randn(2, 8, 8, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    exact = Denoiser(PointMass(diffusion, c).double(), diffusion, call)
    for steps in (1, 4, 8):
        drawn = sample_latents(exact, world()[1], {}, SHAPE, steps=steps, seed=steps)
        assert torch.allclose(drawn, c.expand(SHAPE), atol=1e-6)


def test_seed_decides_and_the_active_set_counts():
    denoiser, conditioning, unconditional = world()
    layers = LoraLayers(denoiser.network, 2, dtype=torch.float64)
    torch.manual_seed(0)
    for parameter in layers.add("student").parameters():
        torch.nn.init.normal_(parameter, std=0.3)

    def drawn(name, seed):
        with layers.using(name):
            return sample_latents(denoiser, conditioning, unconditional, SHAPE, steps=2, seed=seed)

    base = drawn(None, 1)
    assert torch.equal(base, drawn(None, 1))
    assert not torch.allclose(base, drawn(None, 2), atol=1e-2)
    assert not torch.allclose(base, drawn("student", 1), atol=1e-2)
    assert not base.requires_grad


def test_schedule_is_the_one_the_process_was_made_from():
    for kind in PREDICTION_TYPES:
        found = schedule_of_diffusion(Diffusion.from_schedule(schedule(kind), kind))
        assert found.table == pytest.approx(schedule(kind).table, rel=1e-12)


def test_grid_that_cannot_be_is_refused_before_the_network_runs():
    denoiser, conditioning, unconditional = world()
    with pytest.raises(ScheduleError, match="1 steps cannot visit 4 segments"):
        sample_latents(denoiser, conditioning, unconditional, SHAPE, steps=1, num_segments=4)


@ALL
@pytest.mark.parametrize("start", [800, 999])
def test_one_step_is_the_networks_picture_of_noise_of_deviation_one(prediction, start):
    denoiser, conditioning, unconditional = world(prediction)
    drawn = sample_latents(denoiser, conditioning, unconditional, SHAPE, steps=1, seed=5, start_timestep=start)
    noise = torch.randn(SHAPE, generator=torch.Generator().manual_seed(5)).double()
    t = torch.full((3,), start)
    expected = denoiser.diffusion.pred_x0(noise, denoiser.predict(noise, t, conditioning), t)
    torch.testing.assert_close(drawn, expected, rtol=1e-4, atol=1e-4)


def test_sheet_of_one_step_shows_that_step_alone_from_where_it_starts(tmp_path, monkeypatch):
    job, asked, shown = make_job(tmp_path, objective="TSCD distillation", one_step="on"), [], []

    def sampled(*arguments, **options):
        asked.append((options["steps"], options["start_timestep"]))
        return sample_latents(*arguments, **options)

    def decode(latents):
        shown.append(len(latents))
        return [Image.new("RGB", (8, 8)) for _ in latents]

    monkeypatch.setattr(preview, "sample_latents", sampled)
    previews = preview.Previews(job, "my_style", 0, 5.0, decode)
    for phase in job.phases:
        layers = job.trainee.layers(phase.config.rank, None, job.excluded)
        layers.add("student")
        assert previews.draw_sheet(phase, layers, phase.config.stages[-1], 3) is not None
        layers.detach()
    assert set(asked[:3]) == {(1, 999), (4, 999), (8, 999)}
    assert asked[3:] == [(1, 800)]
    assert shown == [9, 3]
