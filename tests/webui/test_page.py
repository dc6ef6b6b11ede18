"""The host's page in a real browser: the lists, the panel, an infotext pasted back, Reload UI."""

import re

import pytest
import torch
from hyper_sd.samplers.schedule import NoiseSchedule
from hyper_sd.tests.webui.panel import panel

PANEL = "#script_{tab}_hypersd_panel"
OURS = re.compile("hyper.?sd", re.IGNORECASE)
SHOWN, FOLDED = ("enabled", "steps", "variant"), (
    "recommended", "strength", "hires_strength", "auto_eta", "eta", "segments", "start_timestep",
)  # fmt: skip


@pytest.fixture
def page(browser, webui):
    """The page, freshly loaded."""
    opened = browser.new_page(viewport={"width": 1400, "height": 1000})
    opened.set_default_timeout(60_000)
    _open(opened, webui)
    yield opened
    opened.close()


def _open(page, webui) -> None:
    page.goto(webui.address, wait_until="domcontentloaded")
    _wait(page)


def _wait(page) -> None:
    page.locator("#txt2img_generate").wait_for()
    page.wait_for_function("() => typeof gradioApp === 'function' && gradioApp().querySelector('#txt2img_prompt textarea')")


def _components(webui) -> dict[str, dict]:
    """Returns the page's components by their HTML id."""
    listed = webui.ask("/config")["components"]
    return {part["props"]["elem_id"]: part["props"] for part in listed if part["props"].get("elem_id")}


def _labels(component: dict) -> list[str]:
    """Returns a list's entries; newer pages have (label, value) in place of a label."""
    return [choice if isinstance(choice, str) else choice[0] for choice in component.get("choices") or []]


@pytest.mark.parametrize(
    ("name", "entry"),
    [
        ("txt2img_sampling", "Hyper-SD TCD"), ("img2img_sampling", "Hyper-SD TCD"), ("hr_sampler", "Hyper-SD TCD"),
        ("txt2img_scheduler", "Hyper-SD"), ("img2img_scheduler", "Hyper-SD"), ("hr_scheduler", "Hyper-SD"),
    ],
)  # fmt: skip
def test_lists_of_the_page_offer_it_once(webui, name, entry):
    if entry == "Hyper-SD" and not webui.has_schedule_types:
        pytest.skip("this host has no schedule types")
    assert _labels(_components(webui)[name]).count(entry) == 1


def _run(page, webui) -> tuple:
    """Presses Generate; returns the infotext under the picture and the latents."""
    before = len(list((webui.data / "records").iterdir()))
    page.locator("#txt2img_generate").click()
    page.wait_for_function("() => document.querySelector('#html_info_txt2img')?.innerText.includes('Steps:')", timeout=400_000)
    tensors, loras, _ = webui.record()
    assert len(list((webui.data / "records").iterdir())) == before + 1
    return page.locator("#html_info_txt2img").first.inner_text(), tensors["latents"], loras


def _first_timestep(webui) -> int:
    """Returns where the newest picture's first network call stood."""
    return round(NoiseSchedule.from_betas().timestep(webui.record()[0]["0.sigma"][0].item()))


def _open_panel(page, seed: int | None = None):
    """Opens the panel and what it folds away, and returns it; with a seed, asks for a small red apple first."""
    if seed is not None:
        page.locator("#txt2img_prompt textarea").fill("red apple")
        page.locator("#txt2img_seed input").fill(str(seed))
        for side in ("width", "height"):
            page.locator(f"#txt2img_{side} input[type=number]").fill("64")
    accordion = page.locator(PANEL.format(tab="txt2img"))
    accordion.locator(".label-wrap").first.click()
    page.locator("#script_txt2img_hypersd_variant").wait_for()
    accordion.locator(".label-wrap").nth(1).click()
    page.locator("#script_txt2img_hypersd_segments").wait_for()
    return accordion


def _write(page, **numbers: float) -> None:
    """Writes into the fields beside the panel's sliders, as a person does."""
    for name, number in numbers.items():
        field = page.locator(f"#script_txt2img_hypersd_{name} input[type=number]")
        field.fill(str(number))
        field.press("Tab")


def _paste(page, infotext: str, seed: int) -> None:
    """Presses the arrow under the prompt, which reads an infotext into the page's controls."""
    page.locator("#txt2img_prompt textarea").fill(infotext)
    page.locator("#txt2img_tools #paste").click()
    page.wait_for_function(f"() => document.querySelector('#txt2img_seed input').value === '{seed}'")
    page.wait_for_function("() => document.querySelector('#txt2img_prompt textarea').value === 'red apple'")
    page.wait_for_timeout(1500)  # the page fills its controls one after another


def test_panel_is_in_both_tabs_and_its_checkbox_brings_the_lora(webui, page):
    expected = webui.draw(seed=11, **panel())
    assert page.locator(PANEL.format(tab="img2img")).count() == 1
    accordion = _open_panel(page, seed=11)
    accordion.get_by_label("Enable").check()
    accordion.get_by_text("Hyper-SD15-4steps-lora").first.wait_for()
    infotext, latents, loras = _run(page, webui)
    assert [[name for name, _ in call] for call in loras] == [["Hyper-SD15-4steps-lora"]] * 4
    assert "Hyper-SD LoRA: Hyper-SD15-4steps-lora" in infotext
    assert torch.equal(latents, expected.latents)


def test_start_set_in_the_accordion_reaches_the_picture_and_its_infotext(webui, page):
    expected = webui.draw(seed=11, **panel(steps=1, start_timestep=800))
    accordion = _open_panel(page, seed=11)
    accordion.get_by_label("Enable").check()
    _write(page, steps=1, start_timestep=800)
    accordion.get_by_text("Hyper-SD15-1step-lora").first.wait_for()
    infotext, latents, loras = _run(page, webui)
    assert [[name for name, _ in call] for call in loras] == [["Hyper-SD15-1step-lora"]]
    assert "Hyper-SD start: 800" in infotext
    assert "Hyper-SD timesteps: 800" in infotext
    assert _first_timestep(webui) == 800
    assert torch.equal(latents, expected.latents)


def test_start_set_in_the_accordion_counts_for_the_sampler_where_the_panel_is_off(webui, page):
    usual, expected = (webui.draw(steps=1, seed=11, **panel(enabled=False, start_timestep=start)) for start in (0, 700))
    _paste(page, usual.infotext, seed=11)
    _open_panel(page)
    _write(page, start_timestep=700)
    infotext, latents, loras = _run(page, webui)
    assert loras == [[]]
    assert "Hyper-SD start: 700" in infotext
    assert "Hyper-SD LoRA" not in infotext
    assert _first_timestep(webui) == 700
    assert torch.equal(latents, expected.latents)


def test_panel_shows_three_controls_and_no_checkbox_has_a_neighbour(page):
    accordion = page.locator(PANEL.format(tab="txt2img"))
    parts = {name: page.locator(f"#script_txt2img_hypersd_{name}") for name in (*SHOWN, *FOLDED)}
    accordion.locator(".label-wrap").first.click()
    parts["variant"].wait_for()
    assert [name for name, part in parts.items() if part.is_visible()] == list(SHOWN)
    accordion.locator(".label-wrap").nth(1).click()
    parts["segments"].wait_for()
    boxes = {name: part.bounding_box() for name, part in parts.items()}
    for name in ("enabled", "recommended", "auto_eta"):
        top, bottom = boxes[name]["y"], boxes[name]["y"] + boxes[name]["height"]
        level = [other for other, box in boxes.items() if box["y"] < bottom - 1 and box["y"] + box["height"] > top + 1]
        assert level == [name]


def test_infotext_pasted_into_the_page_makes_the_image_again(webui, page):
    own = {"recommended": False, "strength": 0.65, "auto_eta": False, "eta": 0.55, "start_timestep": 900}
    first = webui.draw(seed=12345, cfg_scale=1.5, **panel(**own))
    webui.draw(seed=2)
    _paste(page, first.infotext, seed=12345)
    assert page.locator("#script_txt2img_hypersd_start_timestep input[type=number]").input_value() == "900"
    infotext, latents, _ = _run(page, webui)
    assert torch.equal(latents, first.latents)
    assert re.sub(r"\s+", " ", first.infotext) in re.sub(r"\s+", " ", infotext)


def _said(webui, words: str) -> int:
    return webui.log.read_text(encoding="utf-8", errors="replace").count(words)


def _reload(page, webui) -> None:
    """Presses Reload UI, and opens the page when the host is up; the page's own asking would break a slow host's start."""
    starts, restarts = _said(webui, "Startup time:"), _said(webui, "Restarting UI")
    page.locator("#footer").get_by_text("Reload UI").click()
    for _ in range(300):
        if _said(webui, "Restarting UI") > restarts:
            break
        page.wait_for_timeout(100)
    page.goto("about:blank")
    webui.wait(starts + 1)
    _open(page, webui)


def test_reload_ui_twice_keeps_one_of_each_and_the_same_image(webui, page):
    before, module = webui.draw(seed=21, **panel()), webui.ask("/recorder/blip")
    for _ in range(2):
        _reload(page, webui)
    assert [entry["name"] for entry in webui.ask("/sdapi/v1/samplers")].count("Hyper-SD TCD") == 1
    if webui.has_schedule_types:
        assert [entry["label"] for entry in webui.ask("/sdapi/v1/schedulers")].count("Hyper-SD") == 1
    assert webui.ask("/sdapi/v1/scripts")["txt2img"].count("hyper-sd") == 1
    assert _labels(_components(webui)["txt2img_sampling"]).count("Hyper-SD TCD") == 1
    after = webui.draw(seed=21, **panel())
    assert torch.equal(after.latents, before.latents)
    assert after.infotext == before.infotext
    assert webui.ask("/recorder/blip") == module


def _ours(webui) -> list[str]:
    """Returns this pack's entries in the lists of the tabs, its components and its script, in the page's order."""
    components, scripts = _components(webui), webui.ask("/sdapi/v1/scripts")["txt2img"]
    # The host's own settings list LoRA files, and Forge's the samplers of its first start.
    entries = [entry for name in components if not name.startswith("setting_") for entry in _labels(components[name])]
    return [text for text in [*entries, *components, *scripts] if OURS.search(text)]


def test_reload_ui_with_the_extension_switched_off_leaves_nothing_and_with_it_on_all_is_back(webui, page):
    before = _ours(webui)
    assert {"Hyper-SD TCD", "[Hyper-SD] Eta", "setting_hyper_sd_end", "hyper-sd"} <= set(before)
    try:
        webui.ask("/sdapi/v1/options", {"disabled_extensions": ["hyper-sd"]})
        _reload(page, webui)
        assert _ours(webui) == []
    finally:
        webui.ask("/sdapi/v1/options", {"disabled_extensions": []})
        _reload(page, webui)
    assert _ours(webui) == before


def test_settings_page_has_our_section(webui, page):
    components = _components(webui)
    for name in ("hyper_sd_default_eta", "hyper_sd_end", "hyper_sd_skip_negative"):
        assert f"setting_{name}" in components
