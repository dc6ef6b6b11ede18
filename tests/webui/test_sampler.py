"""The sampler "Hyper-SD TCD" on a real host, through its API."""

import json
import threading
import time

import numpy as np
import pytest
import torch
from hyper_sd.samplers.schedule import NoiseSchedule
from hyper_sd.tests.webui.panel import panel
from hyper_sd.tests.webui.webui_host import data_url

GREY = np.full((64, 64, 3), 128, np.uint8)
ETA = "hyper_sd_default_eta"


def _picture(seed: int = 5) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (8, 8, 3), np.uint8).repeat(8, 0).repeat(8, 1)


def _same(one: torch.Tensor, other: torch.Tensor, tolerance: float = 1e-4) -> bool:
    return one.shape == other.shape and (one - other).abs().max().item() <= tolerance


def _timesteps(batch) -> list[int]:
    schedule = NoiseSchedule.from_betas()
    return [round(schedule.timestep(sigma)) for sigma in batch.sigmas]


def test_sampler_is_listed_once(webui):
    assert [entry["name"] for entry in webui.ask("/sdapi/v1/samplers")].count("Hyper-SD TCD") == 1


def test_schedule_type_is_listed_once(with_schedule_types):
    assert [entry["label"] for entry in with_schedule_types.ask("/sdapi/v1/schedulers")].count("Hyper-SD") == 1


@pytest.mark.parametrize("scheduler", ["Automatic", "Hyper-SD"])
@pytest.mark.parametrize(("steps", "grid"), [(1, [999]), (2, [999, 499]), (4, [999, 759, 499, 259])])
def test_grid_is_tcds_with_both_schedule_types(webui, scheduler, steps, grid):
    batch = webui.draw(steps=steps, scheduler=scheduler)
    assert "Sampler: Hyper-SD TCD" in batch.infotext
    assert _timesteps(batch) == grid


@pytest.mark.parametrize(("start", "steps", "grid"), [(800, 1, [800]), (700, 1, [700]), (800, 4, [800, 599, 399, 199])])
def test_picture_starts_from_exact_unit_noise_at_the_start_of_ones_own(webui, start, steps, grid):
    batch = webui.draw(steps=steps, seed=7, **panel(enabled=False, start_timestep=start))
    assert _timesteps(batch) == grid
    assert f"Hyper-SD start: {start}" in batch.infotext
    highest = webui.draw(steps=steps, seed=7)
    first, usual = (drawn.x(0) / (1 + drawn.sigmas[0] ** 2) ** 0.5 for drawn in (batch, highest))
    torch.testing.assert_close(first, usual, rtol=0, atol=1e-5)


def test_schedule_type_serves_other_samplers(with_schedule_types):
    batch = with_schedule_types.draw(sampler_name="Euler", scheduler="Hyper-SD")
    assert "Sampler: Euler, Schedule type: Hyper-SD" in batch.infotext
    assert _timesteps(batch) == [999, 759, 499, 259]


def test_other_schedule_types_serve_the_sampler(with_schedule_types):
    batch = with_schedule_types.draw(scheduler="Karras")
    assert "Sampler: Hyper-SD TCD, Schedule type: Karras" in batch.infotext
    assert _timesteps(batch) != [999, 759, 499, 259]


@pytest.mark.parametrize("name", ["Hyper-SD TCD", "Hyper-SD TCD Automatic", "Hyper-SD TCD Hyper-SD"])
def test_name_is_never_taken_for_another_sampler(with_schedule_types, name):
    batch = with_schedule_types.draw(sampler_name=name, scheduler=None)
    assert "Sampler: Hyper-SD TCD" in batch.infotext


def test_same_seed_gives_the_same_latents_after_another(webui):
    first, other, again = (webui.draw(seed=seed, eta=0.7) for seed in (1, 2, 1))
    assert torch.equal(first.latents, again.latents)
    assert np.array_equal(first.pictures[0], again.pictures[0])
    assert not _same(first.latents, other.latents, 0.05)


def test_batch_equals_single_images(webui):
    batch = webui.draw(batch_size=3, seed=40)
    assert batch.seeds == [40, 41, 42]
    for i, latents in enumerate(batch.latents):
        assert _same(latents[None], webui.draw(seed=40 + i).latents, 1e-3)


@pytest.fixture
def ahead(webui):
    """Has the host draw ComfyUI's noise ahead, as on a graphics card; gives a function that returns the drawing threads."""
    webui.ask("/recorder/ahead/true")
    yield lambda: webui.ask("/recorder/ahead/true")["threads"]
    webui.ask("/recorder/ahead/false")


@pytest.mark.parametrize("steps", [4, 8])
def test_noise_drawn_ahead_by_threads_gives_the_same_pictures_to_the_bit(webui, request, steps):
    wish = {"steps": steps, "seed": 40, "override_settings": {"hyper_sd_noise": "as ComfyUI", ETA: 1.0}}
    plain = {size: webui.draw(batch_size=size, **wish) for size in (1, 2)}
    threads = request.getfixturevalue("ahead")
    for size in (1, 2, 1, 2):
        drawn = webui.draw(batch_size=size, **wish)
        assert torch.equal(drawn.latents, plain[size].latents)
        assert all(map(np.array_equal, drawn.pictures, plain[size].pictures))
        assert [name.startswith("hyper_sd_noise") for name in threads()] == [True] * (steps - 1)
    assert _same(plain[2].latents[:1], plain[1].latents, 1e-3)


def test_eta_is_its_own_and_zero_is_deterministic(webui):
    by_eta = {eta: webui.draw(override_settings={ETA: eta}) for eta in (0.0, 0.3, 1.0)}
    assert not _same(by_eta[0.0].latents, by_eta[0.3].latents, 0.05)
    assert not _same(by_eta[0.3].latents, by_eta[1.0].latents, 0.05)
    hosts = webui.draw(override_settings={ETA: 0.3, "eta_ancestral": 0.0})
    assert torch.equal(by_eta[0.3].latents, hosts.latents)
    assert "Hyper-SD eta: 0.3" in by_eta[0.3].infotext


@pytest.mark.parametrize("steps", [1, 2, 4, 8])
def test_img2img_strength_matters_at_every_step_count(webui, steps):
    strengths = (0.2, 0.5, 0.8, 1.0)
    picture = data_url(_picture())
    batches = [webui.draw("img2img", init_images=[picture], denoising_strength=s, steps=steps) for s in strengths]
    starts = [batch.sigmas[0] for batch in batches]
    assert starts == sorted(set(starts))
    assert _timesteps(batches[-1])[0] == 999
    assert abs(_timesteps(batches[1])[0] - 499) <= 1
    image = batches[0].tensors["image"]
    distances = [(batch.latents - image).abs().mean().item() for batch in batches]
    assert distances[0] < distances[-1]


def test_img2img_can_take_every_step_of_the_setting(webui):
    wish = {"init_images": [data_url(_picture())], "denoising_strength": 0.4, "steps": 4}
    exact = webui.draw("img2img", **wish, override_settings={"img2img_fix_steps": True})
    assert len(exact.sigmas) == 4
    assert abs(_timesteps(exact)[0] - 399) <= 1


def test_inpainting_leaves_what_is_not_masked(webui):
    mask = np.zeros((64, 64, 3), np.uint8)
    mask[:, 32:] = 255
    wish = {"mask": data_url(mask), "mask_blur": 0, "inpainting_fill": 1, "denoising_strength": 0.8}
    batch = webui.draw("img2img", init_images=[data_url(_picture())], **wish)
    image = batch.tensors["image"]
    assert _same(batch.latents[..., :4], image[..., :4])
    assert not _same(batch.latents[..., 4:], image[..., 4:], 0.05)


def test_hires_pass_takes_its_steps_from_the_strength(webui, hires):
    batch = webui.draw(**hires)
    assert batch.latents.shape[-2:] == (16, 16)
    assert batch.pictures[0].shape == (128, 128, 3)
    steps = _timesteps(batch)
    assert steps[:4] == [999, 759, 499, 259]
    assert len(steps) == 6
    assert abs(steps[4] - 499) <= 1


def test_zero_terminal_snr_starts_on_its_own_first_level(webui):
    plain, zero = (webui.draw(override_settings={"sd_noise_schedule": kind}) for kind in ("Default", "Zero Terminal SNR"))
    if "Noise Schedule: Zero Terminal SNR" not in zero.infotext:
        pytest.skip("this host does not give such a model the option's noise levels")  # Forge-classic, but for v-prediction
    assert zero.sigmas[0] > 100 * plain.sigmas[0]
    assert zero.latents.isfinite().all()
    after = webui.draw()
    assert torch.equal(after.latents, plain.latents)


def test_xyz_grid_varies_eta(webui):
    (grid,) = [
        entry for entry in webui.ask("/sdapi/v1/script-info") if entry["name"] == "x/y/z plot" and not entry["is_img2img"]
    ]
    values = [arg["label"] == "Include Sub Images" or arg["value"] for arg in grid["args"]]  # with their infotexts, on reForge
    axes = [i for i, arg in enumerate(grid["args"]) if "[Hyper-SD] Eta" in (arg["choices"] or [])]
    for i in axes:
        values[i] = grid["args"][i]["choices"].index("Nothing")
    values[axes[0] : axes[0] + 2] = grid["args"][axes[0]]["choices"].index("[Hyper-SD] Eta"), "0, 1"
    request = {"prompt": "red apple", "steps": 4, "width": 64, "height": 64, "sampler_name": "Hyper-SD TCD"}
    grid = {"script_name": "x/y/z plot", "script_args": values, "save_images": False}
    records = len(list((webui.data / "records").iterdir()))
    answer = webui.ask("/sdapi/v1/txt2img", {**request, **grid})
    info = json.loads(answer["info"])["infotexts"]
    assert [f"Hyper-SD eta: {eta}" in text for eta, text in zip((0, 1), info[1:], strict=False)] == [True, True]
    assert len(list((webui.data / "records").iterdir())) == records + 2


def test_interrupt_ends_a_long_run_and_the_next_one_works(webui):
    before, results = webui.draw(seed=9), []
    run = threading.Thread(target=lambda: results.append(webui.draw(steps=150, width=128, height=128)))
    run.start()
    end, preview = time.monotonic() + 120, None
    while run.is_alive() and time.monotonic() < end:
        progress = webui.ask("/sdapi/v1/progress")
        preview = preview or progress["current_image"]
        if progress["state"]["sampling_step"] >= 3 and preview:
            break
        time.sleep(0.05)
    webui.ask("/sdapi/v1/interrupt", {})  # without a preview as well, or the next test would wait for the whole run
    run.join(120)
    assert preview, "no live preview was shown"
    assert results
    assert len(results[0].sigmas) < 140
    assert torch.equal(webui.draw(seed=9).latents, before.latents)


def test_refiner_takes_over_at_the_switch(with_yaml):
    plain = with_yaml.draw()
    refined = with_yaml.draw(refiner_checkpoint="tiny_v.safetensors", refiner_switch_at=0.5)  # another kind of prediction, too
    assert refined.sigmas == plain.sigmas
    assert torch.equal(refined.x(1), plain.x(1))
    assert not torch.equal(refined.x(3), plain.x(3))
    assert refined.latents.isfinite().all()
    assert torch.equal(with_yaml.draw().latents, plain.latents)


def test_log_has_no_traceback_of_the_pack(webui):
    log = webui.log.read_text(encoding="utf-8", errors="replace")
    ours = [part for part in log.split("Traceback (most recent call last):")[1:] if "hyper-sd" in part.split("\n---")[0]]
    assert ours == []


def test_interrogators_own_module_is_found(webui):
    file = webui.ask("/recorder/blip")["file"]
    if file is None:
        pytest.skip("this host has no Interrogate CLIP")
    assert "BLIP" in file
