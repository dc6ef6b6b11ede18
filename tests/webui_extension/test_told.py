"""What a picture and the panel's line say of a plan that is not exactly as the authors made the file."""

import json
from pathlib import Path

import pytest
import torch
from hyper_sd.models.inside import FEW_STEP
from hyper_sd.tests.webui_extension.lora_files import FOUR, known_by_content, own_file, place
from hyper_sd.tests.webui_extension.stub_run import Processing, paste, process_images
from hyper_sd.webui_extension.settings_table import TABLE
from safetensors.torch import save_file

TWICE = "Two few-step LoRAs at once often burn the picture: "


def make(host, prompt: str = "cat", steps: int = 4, given: dict | None = None, **named) -> Processing:
    """Makes an image with settings by name; `given` is of the host's own."""
    p = Processing(prompt=prompt, args=[{"enabled": True, "steps": steps, **named}], **(given or {}))
    p.images = process_images(host, p)
    return p


def look(prompt: str, **named) -> tuple[str, dict]:
    """Returns what the panel shows."""
    from hyper_sd.webui_extension import accordion

    return accordion.look(*({"enabled": True, **named}.get(spec.name, spec.default) for spec in TABLE), prompt)


@pytest.fixture
def named(host, monkeypatch, tmp_path):
    """Gives the host a checkpoint of another name; its folder is the current one."""
    from hyper_sd.webui_extension import chosen_model, script

    monkeypatch.chdir(tmp_path)

    def name(stem: str, family: str = "sd15") -> None:
        model = chosen_model.Model(family, Path(f"{stem}.safetensors"), family)
        monkeypatch.setattr(script.Model, "of", classmethod(lambda cls, sd_model: model))
        monkeypatch.setattr(script.Model, "on_page", classmethod(lambda cls: model))

    return name


@pytest.mark.parametrize(
    ("steps", "settings", "words"),
    [
        (4, {}, ""),
        (8, {}, "set steps to 4, others are untried."),
        (4, {"start_timestep": 900}, "It starts at 900, as you chose, in place of 999."),
        (4, {"variant": "unified"}, "The variant that you chose is kept"),
        (4, {"method": "lcm"}, "Sampled by the method that you chose."),
    ],
)
def test_a_known_lora_of_the_prompt_says_what_is_not_as_its_authors_made_it(host, flash, steps, settings, words):
    p = make(host, f"cat {flash}", steps, **settings)
    assert len(p.images) == 1
    assert [words in comment for comment in p.comments] == [True] * bool(words)
    assert words in look(f"cat {flash}", steps=steps, **settings)[0]


def test_a_merged_checkpoint_and_a_few_step_lora_of_the_prompt_are_two_at_once(host, flash):
    said = f"{TWICE}quick.safetensors of the prompt and what the checkpoint has inside, as you chose; remove one."
    p = make(host, f"cat {flash}", variant="merged")
    assert len(p.images) == 1
    assert [comment for comment in p.comments if TWICE in comment] == [f"Hyper-SD: {said}"]
    assert look(f"cat {flash}", variant="merged")[0].endswith(said)
    assert not any(TWICE in comment for comment in make(host, variant="merged").comments)


def test_a_checkpoint_that_its_name_tells_and_the_released_file_are_two_at_once(host, named):
    place(host, FOUR)
    named("photoLCM")
    said = (
        f"{TWICE}{FOUR}.safetensors, which the panel adds and what the checkpoint has inside (photoLCM.safetensors has LCM "
        "inside by its name alone); remove one."
    )
    p = make(host, variant="n-step")
    assert p.activations[-1] == [(FOUR, 1.0)]
    assert p.comments == [f"Hyper-SD: {said}"]
    assert look("cat", variant="n-step")[0].endswith(said)
    assert not any(TWICE in comment for comment in make(host).comments)
    off = make(host, variant="n-step", given={"disable_extra_networks": True})
    assert off.comments == []


def test_a_lora_that_nobody_knows_keeps_the_persons_own_settings(host):
    place(host, FOUR)
    own_file(host, "ink")
    given = {"steps": 7, "cfg_scale": 1.5, "sampler_name": "Euler"}
    p = make(host, "cat <lora:ink:0.5>", variant="other", given=given)
    assert (p.steps, p.cfg_scale, p.sampler_name, p.scheduler) == (7, 1.5, "Euler", "Automatic")
    assert p.activations == [[("ink", 0.5)]]
    (comment,) = p.comments
    assert comment.startswith("Hyper-SD: ink.safetensors of the prompt does not say what it was made for, so your own steps, ")
    assert look("cat <lora:ink:0.5>", variant="other") == (comment.removeprefix("Hyper-SD: "), {"visible": False})
    again = paste(host, host.scripts[0], p.infotext)
    again.prompt = p.prompt
    again.images = process_images(host, again)
    assert torch.equal(again.images[0], p.images[0])
    assert again.infotext == p.infotext


@pytest.mark.parametrize("variant", ["auto", "other"])
def test_a_lora_that_nobody_knows_is_sampled_by_the_method_that_the_person_names(host, variant):
    place(host, FOUR)
    own_file(host, "ink")
    p = make(host, "cat <lora:ink:0.5>", variant=variant, method="lcm")
    assert p.activations[-1] == [("ink", 0.5)]
    assert p.extra_generation_params["Hyper-SD jumps"] == "to the clean image"
    (comment,) = p.comments
    assert comment.startswith("Hyper-SD: ink.safetensors of the prompt is kept. Sampled by the method that you chose. LCM")
    own_file(host, "oil")
    p = make(host, "cat <lora:ink:0.5> <lora:oil:1>", variant=variant, method="lcm")
    assert "ink.safetensors or oil.safetensors of the prompt is kept." in p.comments[0]
    assert p.activations[-1] == [("ink", 0.5), ("oil", 1.0)]


@pytest.mark.parametrize("prompt", ["cat", "cat <lora:ink:1>"])
def test_the_variant_of_other_loras_without_one_says_what_to_do(host, prompt):
    own_file(host, "ink", hyper_sd_objective="style finetune", hyper_sd_stages="none")
    p = make(host, prompt, variant="other")
    assert p.images == []
    assert "is for a LoRA that stands in the prompt, which has none of them; write it there" in p.comments[0]


def test_a_one_step_checkpoint_refuses_a_method_and_notes_none(host, named):
    named("Hyper-SDXL-1step-Unet-Comfyui.fp16", "sdxl")
    p = make(host, variant="one-step", method="lcm")
    assert p.images == []
    assert "is sampled in its own way, not by LCM; leave Method to the file" in p.comments[0]
    assert "Hyper-SD method" not in p.extra_generation_params
    assert make(host, variant="one-step").images


def test_steps_that_a_guessed_merge_cannot_take_say_that_it_is_a_guess(host, named):
    named("photo-hyper")
    p = make(host, steps=12)
    assert p.images == []
    assert "photo-hyper.safetensors has Hyper-SD inside by its name alone, so no LoRA is added. If not, choose" in p.comments[0]
    assert "choose 4, which is usual" in p.comments[0]


@pytest.mark.parametrize(("steps", "words"), [(4, ""), (12, "set steps to 8, others are untried.")])
def test_what_artists_found_is_in_the_line_and_below_a_picture_only_where_steps_are_untried(host, steps, words):
    row = {"id": "small-tcd", "kind": "other", "steps": 4, "recipe": "tcd"}
    tag = known_by_content(host, "calm", file="x.safetensors", **row)
    p = make(host, f"cat {tag}", steps)
    assert [words in comment for comment in p.comments] == [True] * bool(words)
    assert "steps (field practice)" in look(f"cat {tag}", steps=steps)[0]


@pytest.mark.parametrize(
    ("recipe", "steps", "words"),
    [
        ("lcm", 4, ""),
        ("lcm", 12, "It is made for 2 to 8 steps: set steps to 8, others are untried."),
        (None, 4, ""),
        (None, 3, "set steps to 4, since fewer jump across its segments."),
    ],
)
def test_a_checkpoint_that_was_baked_here_says_steps_that_its_lora_was_not_made_for(host, named, recipe, steps, words):
    named("mix")
    variant = {"variant": "other", "recipe": recipe} if recipe else {"variant": "n-step", "steps": 4}
    note = {"file": "few.safetensors", "strength": 0.8, "evidence": "metadata", "steps": 0, **variant}
    save_file({"a": torch.zeros(1)}, "mix.safetensors", {FEW_STEP: json.dumps(note)})
    p = make(host, "cat", steps)
    assert [words in comment for comment in p.comments] == [True] * bool(words)
    assert words in look("cat", steps=steps)[0]
