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
