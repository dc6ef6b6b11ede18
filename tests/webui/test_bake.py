"""The tab bakes a LoRA into a checkpoint of a real host, which then draws without the LoRA what it drew with it."""

import shutil

import pytest
import torch
from hyper_sd.tests.webui.panel import panel

TAB = "#tab_hyper_sd_models"
SETTINGS = {"sd_model_checkpoint": "baked.safetensors"}


@pytest.fixture
def drawn(webui):
    """What the host draws with the LoRA and without; before its page is open, which asks for much at its start."""
    loaded = webui.draw(prompt="red apple <lora:other:0.8>", **panel(enabled=False))
    return loaded.latents, webui.draw(**panel(enabled=False)).latents


@pytest.fixture
def section(browser, webui, drawn):
    """The tab's section for baking, opened."""
    page = browser.new_page(viewport={"width": 1400, "height": 1400})
    page.set_default_timeout(60_000)
    page.goto(webui.address, wait_until="domcontentloaded")
    page.locator("#txt2img_generate").wait_for()
    page.locator("#tabs button", has_text="Hyper-SD models").first.click()
    page.locator(TAB).get_by_text("Bake a LoRA into a checkpoint").click()
    yield page.locator(TAB)
    page.close()


def _choose(section, label: str, name: str) -> None:
    section.get_by_label(label).last.click()
    section.page.locator("ul.options li").filter(has_text=name).first.click()


def test_baked_checkpoint_draws_what_the_lora_drew(webui, drawn, section, tmp_path):
    checkpoints = webui.data / "models" / "Stable-diffusion"
    _choose(section, "Checkpoint to bake into", "tiny.safetensors")
    _choose(section, "LoRA to bake", "other")
    numbers = section.locator("input[type=number]")
    for number in (numbers.first, numbers.last):
        number.fill("0.8")
        number.press("Tab")
    section.get_by_label("Name of the new checkpoint").last.fill("baked")
    section.get_by_label("fp32").last.check()  # as this host computes
    section.get_by_role("button", name="Build checkpoint").last.click()
    said = section.get_by_label("Progress").last
    section.page.wait_for_function("area => area.value.includes('modules matched.')", arg=said.element_handle())
    section.page.screenshot(path=tmp_path / "bake.png")
    assert said.input_value().startswith("baked.safetensors is built.")
    assert "left out" not in said.input_value()
    assert not list(checkpoints.glob("baked*.part"))
    if webui.reads_yaml:
        shutil.copy(checkpoints / "tiny.yaml", checkpoints / "baked.yaml")
    baked = webui.draw(override_settings=SETTINGS, **panel(enabled=False))
    assert "Model: baked" in baked.infotext
    difference, effect = ((baked.latents - other).abs().max() for other in drawn)
    assert effect > 0.1
    assert difference < 1e-3 * effect
    assert torch.isfinite(baked.latents).all()
    (checkpoints / "baked.safetensors").unlink()
