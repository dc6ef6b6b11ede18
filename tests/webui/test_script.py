"""The script "Hyper-SD" on a real host, through its API: which LoRA counts when, and infotext that makes the image again."""

import json

import numpy as np
import pytest
import torch
from hyper_sd.tests.webui.panel import by_name, panel

FOUR, ONE = "Hyper-SD15-4steps-lora", "Hyper-SD15-1step-lora"


def _names(batch) -> list[list[str]]:
    return [[name for name, _ in call] for call in batch.loras]


def _same(one: torch.Tensor, other: torch.Tensor) -> bool:
    """Whether latents are equal but for the order in which a larger batch adds up."""
    return (one - other).abs().max().item() <= 1e-3


def test_script_is_listed_in_both_tabs(webui):
    listed = webui.ask("/sdapi/v1/scripts")
    assert listed["txt2img"].count("hyper-sd") == 1
    assert listed["img2img"].count("hyper-sd") == 1


@pytest.mark.parametrize(("steps", "file"), [(1, ONE), (4, FOUR)])
def test_panel_brings_lora_steps_sampler_and_guidance(webui, steps, file):
    batch = webui.draw(steps=20, cfg_scale=7, sampler_name="Euler", **panel(steps=steps))
    assert _names(batch) == [[file]] * steps
    for words in (f"Steps: {steps}", "Sampler: Hyper-SD TCD", "CFG scale: 1", f"Hyper-SD LoRA: {file}"):
        assert words in batch.infotext
    assert "<lora" not in batch.infotext


def test_panel_that_is_off_changes_nothing(webui):
    plain = webui.draw()
    off = webui.draw(**panel(enabled=False))
    assert torch.equal(plain.latents, off.latents)
    assert _names(off) == [[]] * 4
    after = webui.draw(**panel())
    assert not torch.equal(plain.latents, after.latents)
    assert torch.equal(plain.latents, webui.draw().latents)


def test_panel_equals_the_tag_written_by_hand(webui):
    ours = webui.draw(**panel(strength=0.8, auto_eta=False))
    settings = {"hyper_sd_default_eta": 0.3}
    number = webui.draw(
        prompt=f"red apple <lora:{FOUR}:0.8>", override_settings=settings, **panel(enabled=False, segments=4, auto_eta=False)
    )
    assert _names(number) == [[FOUR]] * 4
    assert _same(ours.latents, number.latents)


def test_strength_counts(webui):
    weak, strong = (webui.draw(**panel(strength=strength)) for strength in (0.3, 1.0))
    assert weak.loras[0] == [[FOUR, 0.3]]
    assert strong.loras[0] == [[FOUR, 1.0]]
    assert not torch.equal(weak.latents, strong.latents)


def test_missing_arguments_keep_their_defaults(webui):
    batch = webui.draw(alwayson_scripts={"Hyper-SD": {"args": [True]}})
    assert _names(batch) == [[FOUR]] * 4


@pytest.mark.parametrize(
    "chosen",
    [
        {"steps": 4, "variant": "auto"},
        {"steps": 1, "variant": "unified", "strength": 0.8},
        {"steps": 2, "variant": "merged"},
        {"auto_eta": False, "eta": 0.55},
    ],
)
def test_named_settings_make_the_image_and_infotext_of_a_plain_list(webui, chosen):
    named = webui.draw(steps=20, cfg_scale=7, sampler_name="Euler", **by_name(enabled=True, **chosen))
    labels = {"variant": "merged checkpoint"} if chosen.get("variant") == "merged" else {}
    listed = webui.draw(steps=20, cfg_scale=7, sampler_name="Euler", **panel(**{**chosen, **labels}))
    assert "Sampler: Hyper-SD TCD" in named.infotext
    assert named.infotext == listed.infotext
    assert named.loras == listed.loras
    assert torch.equal(named.latents, listed.latents)


@pytest.mark.parametrize(
    ("named", "words"),
    [
        (
            {"enabled": True, "stpes": 4},
            "no setting 'stpes'; did you mean 'steps'? The settings are enabled, steps, variant",
        ),
        ({"enabled": True, "variant": "best"}, "allowed is auto, unified, n-step, cfg (CFG-preserving)"),
        ({"enabled": True, "steps": "4"}, "got '4', allowed is 1 to 16"),
    ],
)
def test_named_settings_that_are_wrong_stop_the_run_and_say_so(webui, named, words):
    request = {"prompt": "red apple", "width": 64, "height": 64, **by_name(**named)}
    answer = webui.ask("/sdapi/v1/txt2img", request)
    assert answer["images"] == []
    assert "Hyper-SD problem: " in answer["info"]
    assert words in json.loads(answer["info"])["infotexts"][0]
    assert _names(webui.draw(**by_name(enabled=True))) == [[FOUR]] * 4


def test_named_settings_go_before_those_of_an_infotext(pasting):
    first = pasting.draw(seed=9, **panel(strength=0.6, auto_eta=False, eta=0.8))
    again = pasting.draw(infotext=first.infotext, **by_name(enabled=True))
    assert again.infotext == first.infotext
    assert torch.equal(again.latents, first.latents)
    stronger = pasting.draw(infotext=first.infotext, **by_name(enabled=True, strength=0.9))
    assert [call[0][1] for call in stronger.loras] == [0.9] * 4
    assert "Hyper-SD eta: 0.8" in stronger.infotext


def test_users_tag_is_respected(webui):
    batch = webui.draw(prompt=f"red apple <lora:{FOUR}:0.5>", **panel())
    assert batch.loras == [[[FOUR, 0.5]]] * 4


def test_another_lora_stands_beside(webui):
    batch = webui.draw(prompt="red apple <lora:other:0.6>", **panel())
    assert {name for name, _ in batch.loras[0]} == {FOUR, "other"}
    assert ["other", 0.6] in batch.loras[0]


def test_hires_pass_has_the_lora(webui, hires):
    batch = webui.draw(**hires, **panel())
    assert _names(batch) == [[FOUR]] * 6
    first_only = webui.draw(**hires, **panel(hires_strength=0.4))
    assert [call[0][1] for call in first_only.loras] == [batch.loras[0][0][1]] * 4 + [0.4] * 2
    assert not torch.equal(batch.latents, first_only.latents)


def test_hires_pass_has_the_recommended_schedule_whatever_the_option_of_all_images_says(webui, hires):
    if webui.has_schedule_types:
        pytest.skip("this host's images have a schedule type of their own")
    automatic = webui.draw(**hires, **panel())
    karras = webui.draw(**hires, **panel(), override_settings={"k_sched_type": "karras"})
    assert karras.sigmas == automatic.sigmas
    assert torch.equal(karras.latents, automatic.latents)
    assert "chedule type" not in karras.infotext


def test_prompt_is_not_touched(webui):
    batch = webui.draw(prompt="red apple, (shiny:1.2)", **panel())
    assert batch.infotext.split("\n")[0] == "red apple, (shiny:1.2)"


@pytest.mark.parametrize("steps", [1, 4])
def test_infotext_makes_the_image_again(pasting, steps):
    first = pasting.draw(seed=77, **panel(steps=steps))
    pasting.draw(seed=78)
    again = pasting.draw(infotext=first.infotext)
    assert again.infotext == first.infotext
    assert torch.equal(again.latents, first.latents)
    assert np.array_equal(again.pictures[0], first.pictures[0])


def test_infotext_of_own_values_makes_the_image_again(pasting, hires):
    own = {"strength": 0.7, "hires_strength": 0.4, "auto_eta": False, "eta": 0.55, "recommended": False}
    first = pasting.draw(steps=4, cfg_scale=1.5, seed=5, **hires, **panel(**own))
    # A1111's API takes "Use same sampler", which its own infotext parser fills in, for a sampler's name.
    same = {"hr_sampler_name": "Hyper-SD TCD", "hr_scheduler": "Automatic"}
    modules = {name: value for name, value in hires.items() if name == "hr_additional_modules"}
    again = pasting.draw(infotext=first.infotext, **same, **modules)
    assert again.infotext == first.infotext
    assert torch.equal(again.latents, first.latents)


def test_infotext_of_the_sampler_alone_makes_the_image_again(pasting):
    first = pasting.draw(seed=3, steps=3, **panel(enabled=False, auto_eta=False, eta=0.85, segments=3))
    assert "Hyper-SD eta: 0.85" in first.infotext
    again = pasting.draw(infotext=first.infotext)
    assert torch.equal(again.latents, first.latents)


def test_batch_equals_single_images_with_the_lora(webui):
    batch = webui.draw(batch_size=2, seed=60, **panel())
    for i, latents in enumerate(batch.latents):
        assert _same(latents, webui.draw(seed=60 + i, **panel()).latents[0])


def test_missing_file_stops_the_run_and_says_so(webui):
    answer = webui.ask("/sdapi/v1/txt2img", {"prompt": "red apple", "width": 64, "height": 64, **panel(steps=8)})
    assert "Hyper-SD15-8steps-lora.safetensors is missing" in answer["info"]
    batch = webui.draw(**panel())
    assert _names(batch) == [[FOUR]] * 4


def test_cfg_one_skips_the_negative_prompt_and_changes_nothing(webui):
    quick = webui.draw(seed=8, negative_prompt="green", override_settings={"hyper_sd_skip_negative": True})
    whole = webui.draw(seed=8, negative_prompt="green", override_settings={"hyper_sd_skip_negative": False})
    assert _same(quick.latents, whole.latents)
    guided = webui.draw(seed=8, negative_prompt="green", cfg_scale=3)
    assert not torch.equal(guided.latents, whole.latents)
