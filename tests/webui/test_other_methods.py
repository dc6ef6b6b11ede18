"""Another method's list in img2img and hires fix, and a LoRA of the prompt that nobody knows, on a real host."""

import numpy as np
import pytest
from hyper_sd.samplers.schedule import NoiseSchedule
from hyper_sd.tests.webui.panel import by_name
from hyper_sd.tests.webui.webui_host import data_url

TAG = "<lora:other:0.5>"  # a LoRA that no catalogue has


def _timesteps(batch) -> list[int]:
    """Returns where the network was asked."""
    return [round(NoiseSchedule.from_betas().timestep(sigma)) for sigma in batch.sigmas]


def _flash(**more) -> dict:
    return by_name(enabled=True, steps=4, variant="merged", method="flash", **more)


@pytest.mark.parametrize(("strength", "timesteps"), [(0.3, [299, 249]), (0.5, [499, 374, 249]), (1.0, [999, 749, 499, 249])])
def test_img2img_walks_the_methods_list_below_its_strength(webui, strength, timesteps):
    picture = data_url(np.full((64, 64, 3), 127, np.uint8))
    batch = webui.draw("img2img", init_images=[picture], denoising_strength=strength, **_flash())
    assert f"Hyper-SD timesteps: {' '.join(map(str, timesteps))}," in batch.infotext
    assert _timesteps(batch) == timesteps


def test_hires_pass_walks_the_methods_list_below_its_strength(webui, hires):
    assert _timesteps(webui.draw(**hires, **_flash())) == [999, 749, 499, 249, 499, 249]


def test_unknown_lora_with_the_variant_of_others_keeps_the_persons_settings(webui):
    own = {"prompt": f"red apple {TAG}", "steps": 3, "sampler_name": "Euler", "cfg_scale": 1.5}
    plain, kept = webui.draw(**own), webui.draw(**own, **by_name(enabled=True, variant="other"))
    assert "Steps: 3, Sampler: Euler," in kept.infotext
    assert "Hyper-SD variant: other few-step LoRA" in kept.infotext
    assert kept.loras == plain.loras == [[["other", 0.5]]] * 3
    assert np.array_equal(kept.pictures[0], plain.pictures[0])


def test_unknown_lora_with_a_method_is_sampled_by_it_and_loaded_once(webui):
    batch = webui.draw(prompt=f"red apple {TAG}", **by_name(enabled=True, variant="other", method="lcm"))
    assert batch.loras == [[["other", 0.5]]] * 4
    assert _timesteps(batch) == [999, 759, 499, 259]
    assert "Hyper-SD method: LCM" in batch.infotext
    assert "Hyper-SD jumps: to the clean image" in batch.infotext
