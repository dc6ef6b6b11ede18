"""Schedule types on the stub host: Hyper-SD's for other samplers, and a host that has none."""

import torch
from hyper_sd.tests.webui_extension.lora_files import FOUR, place
from hyper_sd.tests.webui_extension.stub_host import StubHost
from hyper_sd.tests.webui_extension.stub_run import Processing, process_images


def draw(host: StubHost, *panel, **given) -> tuple[torch.Tensor, str]:
    """Returns an image of 4 steps with our sampler, and its infotext."""
    p = Processing(sampler_name="Hyper-SD TCD", steps=4, cfg_scale=1.0, args=list(panel), **given)
    (image,) = process_images(host, p)
    return image, p.infotext


def test_schedule_type_serves_other_samplers_at_any_count(host):
    sampler = host._modules["modules.sd_samplers"].all_samplers_map["Euler"].constructor(host.model)
    for count in (0, 1, 8, 50, 51, 1000, 1001, 8000):
        sigmas = sampler.get_sigmas(Processing(scheduler="Hyper-SD"), count)
        assert len(sigmas) == count + 1
        assert bool((sigmas[1:] < sigmas[:-1]).all())


def test_host_without_schedule_types_has_the_sampler(make_host):
    image, infotext = draw(make_host(forge=True, schedule_types=False), False)
    assert "Hyper-SD timesteps: 999 759 499 259" in infotext
    assert torch.isfinite(image).all()


def test_recommended_schedule_serves_both_passes_on_a_host_without_schedule_types(make_host):
    host = make_host(forge=True, schedule_types=False)
    place(host, FOUR)
    images = {}
    for chosen in ("Automatic", "karras"):
        host.shared.opts.data["k_sched_type"] = chosen
        images[chosen], infotext = draw(host, True, 4, enable_hr=True, hr_second_pass_steps=2)
        assert "Hyper-SD timesteps: 999 749 499 249" in infotext
        assert "chedule type" not in infotext
    assert torch.equal(images["karras"], images["Automatic"])


def test_option_of_a_host_without_schedule_types_counts_with_the_panel_off(make_host):
    host = make_host(forge=True, schedule_types=False)
    host.shared.opts.data["k_sched_type"] = "karras"
    _, infotext = draw(host, False)
    assert "Schedule type: karras" in infotext
    assert "Hyper-SD timesteps" not in infotext
