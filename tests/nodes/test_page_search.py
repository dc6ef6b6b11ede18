"""The panel's folded part with the other few-step methods, and its search, in a real browser."""

import re

import pytest
from hyper_sd.models.catalog import HEADINGS, load_catalog
from hyper_sd.models.chinese import in_chinese
from hyper_sd.models.search import is_found
from hyper_sd.tests.nodes.model_world import ROUTES, weights
from hyper_sd.tests.nodes.server_routes import ask

MORE = "More few-step models"
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
    "小CFG 4步 SDXL",
    "一步",
    "用于SD1.5",
    "图像评分",
    "完整模型、UNet",
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
    names = {
        row: panel.locator(f'[data-id="{row}"] .hyper-sd-title').inner_text()
        for row in ("lcm-lora-sdxl", "hyper-sdxl-2steps-lora")
    }
    assert list(names.values()) == ["LCM, 2 to 8 steps", "2-step LoRA"]  # the family stands above them
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


def test_folds_are_as_before_once_the_search_is_cleared(page, panel):
    def states() -> list[str]:
        return [_fold(panel, family).get_attribute("aria-expanded") for family in ("SD1.5", "SDXL")]

    _fold(panel, "SD1.5").click()
    _search(panel, "4 steps")
    assert states() == ["true", "true"]
    for family in ("SD1.5", "SDXL"):
        _fold(panel, family).click()  # for this search alone
    assert states() == ["false", "false"]
    panel.get_by_role("searchbox").press("Escape")
    assert states() == ["true", "false"]
    _fold(panel, "SDXL").click()
    _fold(panel, "SD1.5").click()
    _search(panel, "pcm")
    panel.get_by_role("button", name="Look again").click()
    _search(panel, "")
    assert states() == ["false", "true"]


def test_search_is_used_by_keyboard_and_said_aloud(page, panel):
    field = panel.get_by_role("searchbox", name="Search by name, method, family, steps")
    status = panel.get_by_role("status")
    assert status.get_attribute("aria-live") == "polite"
    field.focus()
    page.keyboard.type("nitro vibrant")
    assert status.inner_text() == "2 found"
    seen = []
    while "fold" not in str(seen[-1:]) and len(seen) < 5:  # the field, then the first thing that is shown: the fold
        page.keyboard.press("Tab")
        seen.append(page.evaluate("document.activeElement.className"))
    page.keyboard.press("Enter")
    assert _fold(panel, "SDXL").get_attribute("aria-expanded") == "false"
    page.keyboard.press("Space")
    assert _fold(panel, "SDXL").get_attribute("aria-expanded") == "true"
    page.keyboard.press("Tab")
    assert "NitroSD-Vibrant" in page.evaluate("document.activeElement.getAttribute('aria-label')")
    field.focus()
    page.evaluate("window.escapes = 0, addEventListener('keydown', ({ key }) => (window.escapes += key === 'Escape'))")
    page.keyboard.press("Escape")
    assert field.input_value() == ""
    assert page.evaluate("window.escapes") == 0  # the page's own Escape is for when the field is empty
    page.keyboard.press("Escape")
    assert page.evaluate("window.escapes") == 1
    assert int(re.fullmatch(r"(\d+) found", status.inner_text())[1]) >= 58
    assert panel.is_visible()


def test_licence_against_commercial_use_is_seen_and_asked_for_after_a_search(page, panel, screenshot):
    _search(panel, "dmd2")
    row = panel.locator('[data-id="dmd2-sdxl-4step-lora"]')
    assert "CC BY-NC 4.0: no commercial use" in row.locator(".hyper-sd-facts").inner_text()
    row.get_by_role("button", name="Download").press("Enter")
    question = row.get_by_role("group", name="Licence")
    question.wait_for()
    assert "CC BY-NC 4.0: no commercial use" in question.inner_text()
    assert page.evaluate("document.activeElement.href").startswith("https://creativecommons.org/")
    screenshot(page, "licence_after_search")
    question.get_by_role("button", name="Not now").press("Enter")
    assert row.get_attribute("data-state") == "missing"


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
          const found = (text) => (row) => isFound(row, models.families[row.family], text, models.chinese);
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


@pytest.fixture
def chinese(page):
    """The open panel in a Chinese page."""
    tab = page.get_by_role("button", name="Hyper-SD models")
    page.evaluate("app.extensionManager.setting.set('Comfy.Locale', 'zh')")
    page.evaluate("app.extensionManager.command.execute('HyperSD.OpenModels')")
    page.locator(".hyper-sd-panel").wait_for()
    tab.click()  # a panel is in the language that it was opened in
    page.locator(".hyper-sd-panel").wait_for(state="detached")
    tab.click()
    panel = page.locator(".hyper-sd-panel")
    panel.locator(".hyper-sd-model").first.wait_for()
    yield panel
    _search(panel, "")
    panel.locator('.hyper-sd-fold[aria-expanded="true"]').evaluate_all("folds => folds.forEach((fold) => fold.click())")
    _colours(page, DARK)
    page.evaluate("app.extensionManager.setting.set('Comfy.Locale', 'en')")
    tab.click()
    panel.wait_for(state="detached")


def test_tabs_menu_and_commands_are_in_the_language_that_the_page_was_loaded_in(browser, server):
    ask(server, "/api/settings/Comfy.Locale", "zh")
    opened = browser.new_page()
    try:
        opened.goto(server.address)
        opened.locator(".hyper-sd-models-tab-button").wait_for()
        opened.locator("[class*=logo]").first.click()
        opened.get_by_role("menuitem", name="Hyper-SD").hover()
        for name in ("模型", "投票"):
            opened.get_by_role("menuitem", name=name, exact=True).wait_for()
        told = opened.evaluate(
            "app.extensionManager.command.commands.filter(({ id }) => id.startsWith('HyperSD')).map((one) => one.label)"
        )
        labels = [opened.locator(f".hyper-sd-{name}-tab-button").get_attribute("aria-label") for name in ("models", "votes")]
    finally:
        ask(server, "/api/settings/Comfy.Locale", "en")
        opened.close()
    assert labels == ["Hyper-SD 模型", "Hyper-SD 投票"]
    assert told == ["打开 Hyper-SD 模型", "打开 Hyper-SD 投票"]


@pytest.mark.parametrize("theme", [LIGHT, DARK])
def test_panel_speaks_chinese_where_the_page_does(page, chinese, screenshot, theme):
    _colours(page, theme)
    screenshot(page, f"chinese_{theme}")
    chinese.locator(".hyper-sd-fold").evaluate_all("folds => folds.forEach((fold) => fold.click())")
    entries = [entry for entry in load_catalog() if entry.recipe]
    for entry in entries:
        row = chinese.locator(f'[data-id="{entry.id}"]')
        title = in_chinese(entry.title)
        family = re.escape(HEADINGS[entry.family])
        assert row.locator(".hyper-sd-title").inner_text() == re.sub(f"（用于 {family}）", "", title)  # noqa: RUF001
        assert title in row.get_by_role("button").first.get_attribute("aria-label")
        if entry.licence.acknowledge:
            assert in_chinese(entry.licence.title) in row.inner_text()
    assert chinese.locator('[data-id="hyper-sdxl-1step-unet"] .hyper-sd-title').inner_text() == "一步 UNet"
    released = {entry.id for entry in load_catalog()}  # what tests before this one offered is in English
    fine = chinese.locator(".hyper-sd-model").filter(has=chinese.page.locator(".hyper-sd-problem[hidden]"))  # as are problems
    rows = [row for row in fine.all() if row.get_attribute("data-id") in released]
    text = "\n".join(part.inner_text() for part in [*rows, *chinese.locator("h2, h3, .hyper-sd-fold").all()])
    assert "其他少步数模型" in text
    assert "LCM、TCD、PCM、Flash Diffusion" in text
    assert "大小在下载时查询" in text
    for english in ("Download", "not downloaded", "licence", "ready", MORE, "steps", "LoRA for", "one-step", "no commercial"):
        assert english not in text, english
    screenshot(page, f"chinese_unfolded_{theme}")
    _search(chinese, "小CFG 4步")
    assert len(_shown(chinese)) == 2
    assert chinese.get_by_role("status").inner_text() == "找到 2 个"
    screenshot(page, f"chinese_search_{theme}")
    _search(chinese, "飞毯")
    assert "没有找到“飞毯”" in chinese.inner_text()
