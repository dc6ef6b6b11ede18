"""The panel's folded part with the other few-step methods, and its search, in a real browser."""

import re

import pytest
from hyper_sd.models.catalog import load_catalog
from hyper_sd.models.search import is_found
from hyper_sd.tests.nodes.model_world import ROUTES, weights

MORE = "More few-step LoRAs"
ASKED = [
    "lightning 4",
    "sd15 pcm",
    "SD1.5 PCM",
    "4 steps",
    "8-step",
    "nitro",
    "clip",
    "hyper-sd 1",
    "6",
    "tdd 6",
    "x y z",
    "",
    "32",
]
LIGHT, DARK = "light", "dark"


@pytest.fixture
def panel(page):
    """The open panel, with nothing searched and every folded part folded."""
    page.evaluate("app.extensionManager.command.execute('HyperSD.OpenModels')")
    panel = page.locator(".hyper-sd-panel")
    panel.locator(".hyper-sd-model").first.wait_for()
    yield panel
    _search(panel, "")
    panel.locator('.hyper-sd-fold[aria-expanded="true"]').evaluate_all("folds => folds.forEach((fold) => fold.click())")


def _search(panel, asked: str) -> None:
    panel.get_by_role("searchbox").fill(asked)


def _shown(panel) -> list[str]:
    return panel.locator(".hyper-sd-model:visible").evaluate_all("rows => rows.map(row => row.dataset.id)")


def _fold(panel, family: str):
    return panel.get_by_role("region", name=family, exact=True).get_by_role("button", name=MORE)


def _colours(page, theme: str) -> None:
    page.evaluate(f"app.extensionManager.setting.set('Comfy.ColorPalette', '{theme}')")


def test_hyper_sd_stands_first_and_other_methods_are_folded_below_it(world, page, panel, screenshot):
    rows = world.ask(ROUTES)[1]["entries"]
    others = {row["id"] for row in rows if row["method"] not in ("", "Hyper-SD")}
    assert len(rows) >= 58
    assert len(others) >= 31
    assert set(_shown(panel)) == {row["id"] for row in rows} - others
    screenshot(page, "folded")
    for family in ("SD1.5", "SDXL"):
        assert _fold(panel, family).get_attribute("aria-expanded") == "false"
        _fold(panel, family).click()
    assert set(_shown(panel)) == {row["id"] for row in rows}
    assert "SDXL-Lightning, LCM, TCD, PCM, TDD, DMD2, Flash Diffusion, NitroSD" in _fold(panel, "SDXL").inner_text()
    tcd = panel.locator('[data-id="tcd-sd15-lora"]')
    assert "size is asked at the download" in tcd.inner_text()
    assert not re.search(r"\b0 B", panel.inner_text())
    _fold(panel, "SD1.5").scroll_into_view_if_needed()
    screenshot(page, "unfolded")


def test_folded_part_opens_with_the_keyboard_and_stays_open_for_the_session(page, panel):
    _fold(panel, "SD1.5").focus()
    page.keyboard.press("Enter")
    assert "lcm-lora-sdv1-5" in _shown(panel)
    tab = page.get_by_role("button", name="Hyper-SD models")
    tab.click()
    panel.wait_for(state="detached")
    tab.click()
    panel.locator(".hyper-sd-model").first.wait_for()
    assert [_fold(panel, family).get_attribute("aria-expanded") for family in ("SD1.5", "SDXL")] == ["true", "false"]


@pytest.mark.parametrize("theme", [LIGHT, DARK])
def test_search_opens_what_fits_and_folds_it_again_when_it_is_emptied(page, panel, screenshot, theme):
    _colours(page, theme)
    before = _shown(panel)
    _search(panel, "lightning 4")
    assert _shown(panel) == ["sdxl-lightning-4step-lora"]
    assert panel.get_by_role("status").inner_text() == "1 found"
    screenshot(page, f"search_{theme}")
    panel.get_by_role("button", name="Look again").click()
    assert _shown(panel) == ["sdxl-lightning-4step-lora"]
    _search(panel, "sd15 pcm")
    assert len(_shown(panel)) == 8
    _search(panel, "")
    assert _shown(panel) == before
    _colours(page, DARK)


def test_search_that_finds_nothing_says_so(page, panel, screenshot):
    _search(panel, "<b>flying</b> carpet")
    assert _shown(panel) == []
    assert "Nothing found for “<b>flying</b> carpet”." in panel.inner_text()
    screenshot(page, "nothing")


def test_page_finds_what_the_python_side_finds(page):
    entries = list(load_catalog())
    module = "import('/extensions/hyper-sd/model_search.js')"
    found = page.evaluate(
        f"""async (asked) => {{
          const [{{ isFound }}, {{ models }}] = [await {module}, await import('/extensions/hyper-sd/model_list.js')];
          const found = (text) => (row) => isFound(row, models.families[row.family], text);
          return asked.map((text) => [...models.rows.values()].filter(found(text)).map(({{ id }}) => id));
        }}""",
        ASKED,
    )
    ids = {entry.id for entry in entries}
    for asked, listed in zip(ASKED, found, strict=True):
        assert [one for one in listed if one in ids] == [entry.id for entry in entries if is_found(entry, asked)], asked


def test_folded_row_is_downloaded_by_a_click_after_its_licence_is_accepted(world, page, panel, screenshot):
    changes = {"family": "sdxl", "kind": "other", "steps": 4, "recipe": "sdxl-lightning", "licence": "strict"}
    name = world.offer("page-other-method", weights(3_000_000, 230), title="A file of the test", **changes)
    panel.get_by_role("button", name="Look again").click()
    _search(panel, "of the test 4")
    row = panel.locator('[data-id="page-other-method"]')
    row.get_by_role("button", name="Download").click()
    row.get_by_role("group", name="Licence").wait_for()
    assert "SDXL-Lightning" in row.locator(".hyper-sd-facts").inner_text()
    assert not (world.loras / name).exists()
    screenshot(page, "other_licence")
    row.get_by_role("button", name="Accept and download").click()
    row.and_(page.locator('[data-state="ready"]')).wait_for()
    assert (world.loras / name).read_bytes() == weights(3_000_000, 230)
    screenshot(page, "other_ready")


def test_narrow_panel_has_nothing_that_is_cut_off(page, panel, screenshot):
    _fold(panel, "SD1.5").click()
    panel.evaluate("element => (element.style.width = '180px')")
    screenshot(page, "narrow")
    assert panel.evaluate("element => element.scrollWidth <= element.clientWidth")
    wide = ".hyper-sd-model:not([hidden]), .hyper-sd-fold, .hyper-sd-search"
    assert panel.locator(wide).evaluate_all("all => all.every((one) => one.scrollWidth <= one.clientWidth + 1)")
    panel.evaluate("element => (element.style.width = '')")


def test_panel_speaks_chinese_where_the_page_does(page, screenshot):
    page.evaluate("app.extensionManager.setting.set('Comfy.Locale', 'zh')")
    try:
        module = "import('/extensions/hyper-sd/model_panel.js')"
        page.evaluate(
            f"async () => {{ window.other = new (await {module}).ModelPanel(); document.body.append(other.element) }}"
        )
        other = page.locator("body > .hyper-sd-panel")
        text = other.inner_text()
        assert "更多少步数 LoRA" in text
        assert "大小在下载时查询" in other.locator('[data-id="tcd-sd15-lora"]').text_content()
        for english in ("Download", "not downloaded", "licence", "ready", MORE):
            assert english not in text
        other.get_by_role("searchbox").fill("飞毯")
        assert "没有找到“飞毯”" in other.inner_text()
    finally:
        page.evaluate("app.extensionManager.setting.set('Comfy.Locale', 'en')")
        page.evaluate("window.other.close(), window.other.element.remove()")
