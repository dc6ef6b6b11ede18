"""The panel's line about the few-step LoRA that stands in the prompt, and what the page asks of the host for it."""

import re
from types import SimpleNamespace

import pytest
from hyper_sd.tests.webui_extension.lora_files import FOUR, own_file, place
from hyper_sd.tests.webui_extension.stub_host import Component
from hyper_sd.webui_extension.settings_table import TABLE


def look(prompt: str, **chosen) -> tuple[str, dict]:
    """Returns what the panel shows for a prompt; the settings that are not given are the page's own."""
    from hyper_sd.webui_extension import accordion

    given = {"enabled": True, **chosen}
    return accordion.look(*(given.get(spec.name, spec.default) for spec in TABLE), prompt)


def test_the_line_says_what_the_prompts_lora_is_and_offers_no_download(host, flash):
    text, button = look(f"cat {flash} on a wall")
    assert text.startswith("quick.safetensors, strength 0.9, 4 steps, Hyper-SD TCD, trailing grid, 1 segment, eta 1, CFG 1.")
    assert "quick.safetensors of the prompt is kept. This is x.safetensors. " in text
    assert "LCM-like" in text
    assert button == {"visible": False}
    text, button = look("cat on a wall")
    assert text.startswith(f"**{FOUR}.safetensors is missing**")
    assert button == {"visible": True}


def test_a_lora_of_the_prompt_with_an_error_has_no_download_button(host, flash):
    text, button = look(f"cat {flash}", variant="unified", method="lcm")
    assert "are of different LoRAs" in text
    assert button == {"visible": False}


def test_the_line_says_that_the_persons_own_settings_are_used(host, flash):
    place(host, FOUR)
    assert look(f"cat {flash}", recommended=False)[0].endswith("Your own steps, sampler and CFG are used instead.")
    assert look("cat", recommended=False)[0].endswith("CFG are used instead; the file follows your steps.")


def test_a_style_of_the_prompt_leaves_the_released_file(host):
    place(host, FOUR)
    own_file(host, "ink")
    assert look("cat <lora:ink:1>")[0].startswith(f"{FOUR}.safetensors, strength 1")


@pytest.mark.parametrize(
    ("tag", "strength"),
    [
        ("<lora:quick>", "1"),
        ("<lora:quick:0.5>", "0.5"),
        ("<lyco:quick:0.5:0.7>", "0.7"),
        ("<lora:quick:0.5:unet=0.8>", "0.8"),
        ("<lora:quick:te=0.2>", "0.2"),
        ("<lora:quick:much>", "1"),  # the host's own error says the rest
    ],
)
def test_the_line_has_the_strength_that_the_tag_gives_the_network(host, flash, tag, strength):
    assert look(f"cat {tag}")[0].startswith(f"quick.safetensors, strength {strength}, 4 steps")


def test_the_download_button_fetches_nothing_where_the_prompt_has_the_lora(host, flash, monkeypatch):
    from hyper_sd.webui_extension import accordion, host_models

    monkeypatch.setattr(host_models.DOWNLOADS, "start", pytest.fail)
    values = [{"enabled": True}.get(spec.name, spec.default) for spec in TABLE]
    ((text, _),) = accordion.fetch(*values, f"cat {flash}")
    assert text.startswith("quick.safetensors, strength 0.9")


@pytest.mark.parametrize(("forge", "script"), [(False, "_js"), (True, "js")])
def test_the_page_asks_only_where_the_tags_of_the_prompt_have_changed(make_host, forge, script):
    host = make_host(forge=forge)
    controls = host.scripts[0].controls
    (typed,) = host.prompt.wired
    assert (typed.event, typed.handler, typed.inputs) == ("change", None, [host.prompt])
    assert re.search(r"lora\|lyco", getattr(typed, script))
    (tags,) = typed.outputs
    assert tags.visible is False
    (changed,) = tags.wired
    assert (changed.event, changed.inputs) == ("change", [*controls, host.prompt])
    assert changed.handler is controls[0].handlers["change"]
    assert controls[0].wired[0].inputs == [*controls, host.prompt]
    assert len(controls) == len(TABLE)  # the API's arguments


def test_the_line_follows_a_lora_that_a_style_brings_as_the_picture_does(host, flash):
    styles = Component(elem_id="txt2img_styles", value=[])
    apply = {"quick": f"{{prompt}}, {flash}"}
    host.shared.prompt_styles = SimpleNamespace(
        apply_styles_to_prompt=lambda prompt, names: [apply[name].format(prompt=prompt) for name in names][-1]
    )
    script = type(host.scripts[0])()
    for part in (Component(elem_id="txt2img_prompt", value=""), styles):
        script.after_component(part)
    controls = script.ui(False)
    (changed,) = styles.wired
    assert (changed.event, changed.inputs) == ("change", [*controls, script.prompt, styles])
    values = [{"enabled": True}.get(spec.name, spec.default) for spec in TABLE]
    text, button = changed.handler(*values, "cat", ["quick"])
    assert text.startswith("quick.safetensors, strength 0.9, 4 steps")
    assert button == {"visible": False}
    assert changed.handler(*values, "cat", [])[0].startswith(f"**{FOUR}.safetensors is missing**")


def test_the_line_is_asked_for_beside_the_hosts_queue(host):
    controls = host.scripts[0].controls
    assert {wired.queue for control in controls for wired in control.wired} == {False}


def test_a_page_without_the_prompts_box_has_the_panel(host):
    script = type(host.scripts[0])()
    controls = script.ui(False)
    assert controls[0].wired[0].inputs == controls
