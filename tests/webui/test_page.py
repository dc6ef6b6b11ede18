"""The host's page in a real browser: the lists, the panel, an infotext pasted back, Reload UI."""

import re

import pytest
import torch
from hyper_sd.samplers.schedule import NoiseSchedule
from hyper_sd.tests.webui.browser_page import PANEL, open_page, open_panel, paste
from hyper_sd.tests.webui.panel import panel

OURS = re.compile("hyper.?sd", re.IGNORECASE)
SHOWN, FOLDED = ("enabled", "steps", "variant"), (
    "recommended", "strength", "hires_strength", "auto_eta", "eta", "segments", "start_timestep",
    "sort_by",
)  # fmt: skip


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
    before = len(list((webui.data / "records").glob("*")))
    page.locator("#txt2img_generate").click()
    page.wait_for_function("() => document.querySelector('#html_info_txt2img')?.innerText.includes('Steps:')", timeout=400_000)
    tensors, loras, _ = webui.record()
    assert len(list((webui.data / "records").iterdir())) == before + 1
    return page.locator("#html_info_txt2img").first.inner_text(), tensors["latents"], loras


def _first_timestep(webui) -> int:
    """Returns where the newest picture's first network call stood."""
    return round(NoiseSchedule.from_betas().timestep(webui.record()[0]["0.sigma"][0].item()))


def _write(page, **numbers: float) -> None:
    """Writes into the fields beside the panel's sliders, as a person does."""
    for name, number in numbers.items():
        field = page.locator(f"#script_txt2img_hypersd_{name} input[type=number]")
        field.fill(str(number))
        field.press("Tab")


def test_panel_is_in_both_tabs_and_its_checkbox_brings_the_lora(webui, page):
    expected = webui.draw(seed=11, **panel())
    assert page.locator(PANEL.format(tab="img2img")).count() == 1
    accordion = open_panel(page, seed=11)
    accordion.get_by_role("checkbox", name="Enable", exact=True).check()
    accordion.get_by_text("Hyper-SD15-4steps-lora").first.wait_for()
    infotext, latents, loras = _run(page, webui)
    assert [[name for name, _ in call] for call in loras] == [["Hyper-SD15-4steps-lora"]] * 4
    assert "Hyper-SD LoRA: Hyper-SD15-4steps-lora" in infotext
    assert torch.equal(latents, expected.latents)


def test_start_set_in_the_accordion_reaches_the_picture_and_its_infotext(webui, page):
    expected = webui.draw(seed=11, **panel(steps=1, start_timestep=800))
    accordion = open_panel(page, seed=11)
    accordion.get_by_role("checkbox", name="Enable", exact=True).check()
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
    paste(page, usual.infotext, seed=11)
    open_panel(page)
    _write(page, start_timestep=700)
    infotext, latents, loras = _run(page, webui)
    assert loras == [[]]
    assert "Hyper-SD start: 700" in infotext
    assert "Hyper-SD LoRA" not in infotext
    assert _first_timestep(webui) == 700
    assert torch.equal(latents, expected.latents)


def _choose(page, name: str, label: str) -> None:
    """Picks an entry of one of the panel's lists, as a person does."""
    page.locator(f"#script_txt2img_hypersd_{name} input").click()
    page.locator("ul.options li").filter(has_text=label).click()


def _gallery(page, count: int) -> list[str]:
    """Returns the infotext that the page shows for each picture of its gallery, in its order."""
    thumbnails, texts = page.locator("#txt2img_gallery .thumbnail-item"), []
    for i in range(count):
        before = page.locator("#html_info_txt2img").first.inner_text()
        thumbnails.nth(i).click()
        if i:
            page.wait_for_function(
                "before => document.querySelector('#html_info_txt2img').innerText !== before", arg=before, timeout=60_000
            )
        texts.append(page.locator("#html_info_txt2img").first.inner_text())
    return texts


def _sorted_batch(page, webui, sort_by: str) -> list[str]:
    """Makes four pictures with the panel off, and returns what the page shows for the grid and for each of them."""
    open_panel(page, seed=40)
    page.locator("#txt2img_batch_size input[type=number]").fill("4")
    page.locator("#txt2img_steps input[type=number]").fill("4")
    _choose(page, "sort_by", sort_by)
    _run(page, webui)
    return _gallery(page, 5)


def test_gallery_is_sorted_by_the_score_that_was_chosen_in_the_accordion(webui, page):
    grid, *texts = _sorted_batch(page, webui, "demo model: shows what was asked for")
    assert "Hyper-SD score" not in grid
    scores = [float(re.search(r'Hyper-SD score: "(\S+) \(demo model', text)[1]) for text in texts]
    assert scores == sorted(scores, reverse=True)
    seeds = [int(re.search(r"Seed: (\d+)", text)[1]) for text in texts]
    assert sorted(seeds) == [40, 41, 42, 43]
    page.locator("#txt2img_reuse_seed, #txt2img_seed_row button").last.click()  # of the picture that is shown, the last
    page.wait_for_function(f"() => document.querySelector('#txt2img_seed input').value === '{seeds[-1]}'")
    assert webui.ask("/recorder/scorers") == {"held": []}


def test_scorer_without_its_files_is_told_before_and_below_the_pictures(webui, page):
    accordion = open_panel(page, seed=40)
    page.locator("#txt2img_batch_size input[type=number]").fill("2")
    _choose(page, "sort_by", "PickScore")
    accordion.get_by_text("PickScore lacks its files: ").first.wait_for()
    _, latents, _ = _run(page, webui)
    said = page.locator("#txt2img_results").get_by_text("Hyper-SD: the pictures are not sorted.").first
    said.wait_for()
    assert "in the tab Hyper-SD models" in said.inner_text()
    assert len(latents) == 2
    assert page.locator("#txt2img_gallery .thumbnail-item").count() in (3, 6)  # a grid and two, in newer pages also as a strip


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
    paste(page, first.infotext, seed=12345)
    assert page.locator("#script_txt2img_hypersd_start_timestep input[type=number]").input_value() == "900"
    infotext, latents, _ = _run(page, webui)
    assert torch.equal(latents, first.latents)
    assert re.sub(r"\s+", " ", first.infotext) in re.sub(r"\s+", " ", infotext)


def test_pasted_infotext_with_a_score_brings_the_option_back(webui, page):
    first = webui.draw(seed=55, cfg_scale=1.5, **panel(enabled=False, sort_by="demo model: how well it is drawn"))
    assert "Hyper-SD score: " in first.infotext
    paste(page, first.infotext, seed=55)
    assert page.locator("#script_txt2img_hypersd_sort_by input").input_value() == "demo model: how well it is drawn"
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
    open_page(page, webui)


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
