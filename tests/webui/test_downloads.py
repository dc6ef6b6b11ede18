"""The tab "Hyper-SD models" of a real host: what is folded, and the search."""

import pytest

TAB = "#tab_hyper_sd_models"


@pytest.fixture
def tab(browser, webui):
    """The tab, opened."""
    page = browser.new_page(viewport={"width": 1400, "height": 1000})
    page.set_default_timeout(60_000)
    page.goto(webui.address, wait_until="domcontentloaded")
    page.locator("#txt2img_generate").wait_for()
    page.locator("#tabs button", has_text="Hyper-SD models").first.click()
    yield page.locator(TAB)
    page.close()


def test_search_opens_the_folded_part_in_which_something_fits(tab):
    own, other = (tab.locator(f"#hyper_sd_model_{name}") for name in ("hyper-sdxl-4steps-lora", "sdxl-lightning-4step-lora"))
    own.wait_for()
    assert not other.is_visible()
    field = tab.get_by_label("Search")
    field.fill("lightning 4")
    other.wait_for()
    own.wait_for(state="hidden")
    rows = tab.locator("[id^=hyper_sd_model_]")
    assert [row.get_attribute("id") for row in rows.all() if row.is_visible()] == [other.get_attribute("id")]
    field.fill("zebra")
    tab.get_by_text("Nothing found.").wait_for()
    field.fill("")
    own.wait_for()
    other.wait_for(state="hidden")


def _label(tab, part: str):
    return tab.locator(f"#hyper_sd_part_{part} .label-wrap").first


def _is_open(tab, part: str) -> bool:
    return "open" in _label(tab, part).get_attribute("class").split()


def test_parts_are_as_before_once_the_search_is_cleared(tab):
    own, other, flux = (
        tab.locator(f"#hyper_sd_model_{name}")
        for name in ("hyper-sd15-4steps-lora", "tcd-sd15-lora", "hyper-flux1-dev-8steps-lora")
    )
    own.wait_for()
    _label(tab, "flux").click()
    flux.wait_for()
    _label(tab, "sd15").click()
    own.wait_for(state="hidden")
    field = tab.get_by_label("Search")
    field.fill("sd15 tcd")
    other.wait_for()  # in a part that was folded by hand, and in one that was folded at first
    field.fill("")
    flux.wait_for()
    assert [_is_open(tab, part) for part in ("sd15", "sd15_more", "sdxl", "sdxl_more", "sd3", "flux")] == [
        False, False, True, False, False, True,
    ]  # fmt: skip
