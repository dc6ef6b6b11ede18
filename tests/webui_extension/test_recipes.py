"""Which LoRA of a prompt is a few-step one, whatever its file is called, and by whose recipe it is then sampled."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from hyper_sd.models.files import known_sha256
from hyper_sd.tests.webui_extension.lora_files import FOUR, lora_bytes, own_file, place
from hyper_sd.tests.webui_extension.stub_run import Processing, process_images


def make(host, *panel, **given) -> Processing:
    p = Processing(**{"args": [True, *panel], **given})
    p.images = process_images(host, p)
    return p


@pytest.mark.parametrize(
    ("steps", "cfg", "comments"),
    [
        (8, 5.0, []),
        (4, 3.5, ["The authors made this file for 8 steps; artists use it from 3 on, at a lower CFG."]),
    ],
)
def test_a_renamed_cfg_lora_of_the_prompt_gets_its_cfg(host, renamed, steps, cfg, comments):
    place(host, FOUR)
    p = make(host, steps, prompt=f"cat {renamed}")
    assert (p.steps, p.cfg_scale, p.activations[-1]) == (steps, cfg, [("favourite", 0.9)])
    assert p.extra_generation_params["Hyper-SD variant"] == "CFG-preserving"
    kept = "Hyper-SD: favourite.safetensors of the prompt is kept. This is small-8steps-CFG-lora.safetensors. "
    assert p.comments == [f"{kept}{words}" for words in comments]


def test_a_hires_pass_gets_the_renamed_lora_as_well(host, renamed):
    p = make(host, 8, prompt=f"cat {renamed}", hr_prompt="dog", enable_hr=True)
    assert p.activations == [[("favourite", 0.9)], [("favourite", 0.9)], [("favourite", 1.0)]]


def test_a_lora_that_was_trained_here_is_kept_in_place_of_hyper_sd(host):
    place(host, FOUR)
    own_file(host, "ink", hyper_sd_objective="style, then distil", hyper_sd_stages="8-4-2-1")
    p = make(host, 4, prompt="cat <lora:ink:1>")
    assert (p.cfg_scale, p.activations[-1]) == (1.0, [("ink", 1.0)])
    assert p.extra_generation_params["Hyper-SD variant"] == "unified"
    assert p.extra_generation_params["Hyper-SD segments"] == 1


@pytest.mark.parametrize("metadata", [{}, {"hyper_sd_objective": "style finetune", "hyper_sd_stages": "none"}])
def test_a_style_of_the_prompt_stays_beside_hyper_sd(host, metadata):
    place(host, FOUR)
    path = own_file(host, "ink", **metadata)
    p = make(host, 4, prompt="cat <lora:ink:1>")
    assert p.activations[-1] == [("ink", 1.0), (FOUR, 1.0)]
    assert p.comments == []
    assert known_sha256(path) is None  # no catalogue file has its size, so nothing was hashed


def test_a_released_name_with_another_content_is_a_guess_that_is_shown(host):
    place(host, FOUR)
    p = make(host, 4, prompt=f"cat <lora:{FOUR}:1>")
    assert p.extra_generation_params["Hyper-SD segments"] == 4
    (comment,) = p.comments
    assert "By its name alone this file was made for exactly 4 steps" in comment
    assert "set variant" in comment


def test_an_explicit_variant_wins_over_the_prompts_lora_and_is_said(host, renamed):
    p = make(host, 4, "unified", prompt=f"cat {renamed}")
    assert (p.cfg_scale, p.activations[-1]) == (1.0, [("favourite", 0.9)])
    assert p.extra_generation_params["Hyper-SD segments"] == 1
    (comment,) = p.comments
    assert "The variant that you chose is kept, but this is small-8steps-CFG-lora.safetensors" in comment
    p = make(host, 4, "merged checkpoint", prompt=f"cat {renamed}")
    assert p.cfg_scale == 2.0
    assert "favourite.safetensors of the prompt is kept. Hyper-SD is in the checkpoint already" in p.comments[0]


def test_a_released_file_that_came_after_the_hosts_list_is_found(host):
    (host.root / "Lora" / f"{FOUR}.safetensors").write_bytes(lora_bytes("sd15"))
    p = make(host, 4, prompt=f"cat <lora:{FOUR}:0.5>")
    assert p.activations[-1] == [(FOUR, 0.5)]


def test_a_tag_without_a_file_does_not_stand_in_for_one(host):
    place(host, "Hyper-SD15-8steps-lora")
    p = make(host, 8, prompt=f"cat <lora:{FOUR}:0.5>")
    assert ("Hyper-SD15-8steps-lora", 1.0) in p.activations[-1]


def test_another_methods_lora_of_the_prompt_is_sampled_by_its_recipe(host, flash):
    p = make(host, 4, prompt=f"cat {flash}")
    noted = p.extra_generation_params
    assert (p.steps, p.cfg_scale, noted["Hyper-SD variant"]) == (4, 1.0, "other few-step LoRA")
    assert noted["Hyper-SD timesteps"] == "999 749 499 249"
    assert (noted["Hyper-SD eta"], noted["Hyper-SD jumps"]) == ("1", "to the clean image")
    plain = make(host, 4, prompt=f"cat {flash}", args=[False, 4, "auto", 0, 0, True, False, 1.0, 0])
    assert not torch.equal(p.images[0], plain.images[0])


def test_shift_of_the_timesteps_reaches_the_sampler_and_the_infotext(host, flash, monkeypatch):
    from hyper_sd.webui_extension import planning

    whole = planning.plan_for_file
    monkeypatch.setattr(planning, "plan_for_file", lambda *given: replace(whole(*given), timestep_shift=0.25))
    p = make(host, 4, prompt=f"cat {flash}")
    assert p.extra_generation_params["Hyper-SD shift"] == "0.25"
    monkeypatch.undo()
    assert not torch.equal(p.images[0], make(host, 4, prompt=f"cat {flash}").images[0])


def test_second_few_step_lora_of_the_prompt_is_named_and_the_picture_is_made(host, flash):
    place(host, FOUR)
    p = make(host, 4, prompt=f"cat {flash} <lora:{FOUR}:1>")
    assert len(p.images) == 1
    (comment,) = [comment for comment in p.comments if "Two few-step LoRAs at once" in comment]
    assert f"quick.safetensors of the prompt and {FOUR}.safetensors of the prompt; remove one." in comment


@pytest.mark.parametrize(
    ("name", "timesteps", "words"),
    [
        ("photoLCM_v2", "999 759 499 259", "photoLCM_v2.safetensors has LCM inside"),
        ("photo-hyper-4steps", "999 759 499 259", "has Hyper-SD inside"),
    ],
)
def test_checkpoint_whose_name_says_what_is_inside_gets_its_recipe_and_no_lora(host, name, timesteps, words, monkeypatch):
    from hyper_sd.webui_extension import chosen_model, script

    place(host, FOUR)
    model = chosen_model.Model("sd15", Path(f"{name}.safetensors"), "SD1.5")
    monkeypatch.setattr(script.Model, "of", classmethod(lambda cls, sd_model: model))
    p = make(host, 4, prompt="cat")
    assert p.extra_generation_params["Hyper-SD variant"] == "merged checkpoint"
    assert p.extra_generation_params["Hyper-SD timesteps"] == timesteps
    assert any(words in comment and "by its name alone" in comment for comment in p.comments)
    assert "Hyper-SD LoRA" not in p.extra_generation_params
    assert p.extra_generation_params.get("Hyper-SD method") == ("LCM" if "LCM" in name else None)
    assert make(host, 4, "n-step", prompt="cat").extra_generation_params["Hyper-SD LoRA"] == FOUR
    both = make(host, 4, prompt=f"cat <lora:{FOUR}:1>")
    assert any("Two few-step LoRAs at once" in comment and "by its name alone" in comment for comment in both.comments)


def test_persons_method_is_taken_noted_and_refused_where_it_cannot_be(host, flash):
    def by(name: str, **more):
        return [{"enabled": True, "steps": 4, "method": name, **more}]

    place(host, FOUR)
    p = make(host, prompt=f"cat {flash}", args=by("LCM"))
    assert p.extra_generation_params["Hyper-SD timesteps"] == "999 759 499 259"
    assert p.extra_generation_params["Hyper-SD method"] == "LCM"
    assert any("the method that you chose" in comment for comment in p.comments)
    merged = make(host, prompt="cat", args=by("lcm", variant="merged"))
    assert merged.extra_generation_params["Hyper-SD jumps"] == "to the clean image"
    assert make(host, prompt="cat", args=by("lcm")).extra_generation_params["Hyper-SD problem"].startswith("LCM needs its LoRA")
    unlike = make(host, prompt="cat", args=by("lcm", variant="unified")).extra_generation_params["Hyper-SD problem"]
    assert unlike.startswith("The method LCM and the variant unified are of different LoRAs; choose the variant auto")
