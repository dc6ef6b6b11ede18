"""ComfyUI's page in a real browser: the panel, the loaders' lists, the node."""

import pytest
from hyper_sd.disk import format_bytes
from hyper_sd.models.progress import format_duration
from hyper_sd.tests.nodes.model_world import CANCEL, ROUTES, START, lora, until, weights


@pytest.fixture
def panel(page):
    """The open panel."""
    page.evaluate("app.extensionManager.command.execute('HyperSD.OpenModels')")
    page.locator(".hyper-sd-model").first.wait_for()
    return page.get_by_role("region", name="Hyper-SD models")


def _offered(panel, entry_id: str):
    """Returns an entry's row after another look at the catalogue."""
    panel.get_by_role("button", name="Look again").click()
    return _row(panel, entry_id)


def _row(panel, entry_id: str):
    row = panel.locator(f'.hyper-sd-model[data-id="{entry_id}"]')
    row.scroll_into_view_if_needed()
    return row


def _press(row, text: str) -> None:
    row.get_by_role("button", name=text).click()


def _wait(row, state: str) -> None:
    row.and_(row.page.locator(f'[data-state="{state}"]')).wait_for()


def test_click_moves_the_bar_and_the_file_appears_in_the_open_loader(world, page, panel, screenshot):
    name = world.offer("page-lora", weights(12_000_000, 200), title="SD1.5, test LoRA of the page")
    world.slow(name, 4_000_000)
    page.evaluate("() => { window.loader = LiteGraph.createNode('LoraLoaderModelOnly'); app.graph.add(window.loader) }")
    listed = "name => window.loader.widgets[0].options.values.includes(name)"
    row = _offered(panel, "page-lora")
    assert not page.evaluate(listed, name)
    assert row.get_by_role("progressbar").count() == 0
    _press(row, "Download")
    bar, seen = row.get_by_role("progressbar"), set()
    until(lambda: seen.add(int(bar.get_attribute("aria-valuenow"))) or max(seen) > 30)
    screenshot(page, "downloading")
    until(lambda: seen.add(int(bar.get_attribute("aria-valuenow"))) or max(seen) > 60)
    assert "/s" in row.inner_text()
    assert "left" in row.inner_text()
    _wait(row, "ready")
    assert len(seen) > 3
    assert row.get_by_role("button").is_disabled()
    page.wait_for_function(listed, arg=name)
    assert (world.loras / name).is_file()
    screenshot(page, "ready")


def test_page_tells_sizes_and_durations_in_the_words_of_the_python_side(page):
    module = "import('/extensions/hyper-sd/model_row.js')"
    sizes = [0, 999, 999.6, 1000, 123_456, 999_600_000, 6.94e9, 23.8e9]
    assert page.evaluate(f"async (sizes) => sizes.map((await {module}).formatBytes)", sizes) == list(map(format_bytes, sizes))
    times = [0, 0.2, 1.4, 59.4, 59.6, 61, 200, 3599.4, 3599.6, 3900, 7169, 7171, 1e5]
    assert page.evaluate(f"async (times) => times.map((await {module}).formatDuration)", times) == list(
        map(format_duration, times)
    )


def test_panel_is_found_by_name_in_sidebar_and_menu(page, panel):
    button = page.get_by_role("button", name="Hyper-SD models")
    button.click()
    panel.wait_for(state="detached")
    button.click()
    panel.get_by_role("heading", name="SDXL").wait_for()
    button.click()
    panel.wait_for(state="detached")
    page.locator("[class*=logo]").first.click()
    page.get_by_role("menuitem", name="Hyper-SD").hover()
    page.get_by_role("menuitem", name="Models", exact=True).click()
    panel.wait_for()


def test_every_entry_stands_in_its_family_with_size_and_licence(world, panel):
    rows = {row["id"]: row for row in world.ask(ROUTES)[1]["entries"]}
    shown = panel.locator(".hyper-sd-model").evaluate_all("rows => rows.map(row => row.dataset.id)")
    assert sorted(shown) == sorted(rows)
    flux = panel.get_by_role("region", name="FLUX.1-dev")
    assert flux.locator('[data-id="hyper-flux1-dev-8steps-lora"]').inner_text().split("\n")[0] == "8-step LoRA"
    row = _row(panel, "hyper-sd15-1step-lora")
    assert "269 MB" in row.inner_text()
    assert row.get_by_role("link").get_attribute("href") == rows["hyper-sd15-1step-lora"]["licence"]["url"]


def test_scorers_files_stand_below_the_models_under_their_own_heading(panel):
    headings = panel.get_by_role("heading", level=3).evaluate_all("all => all.map(one => one.firstChild.textContent)")
    assert headings[-1] == "Scores of pictures"
    scores = panel.get_by_role("region", name="Scores of pictures")
    row = scores.locator('[data-id="reward-image-reward"]')
    row.scroll_into_view_if_needed()
    assert "1.79 GB" in row.inner_text()
    assert row.get_by_role("link").get_attribute("title") == "Apache License 2.0"


def test_cancel_and_resume_by_the_same_button(world, panel):
    name = world.offer("page-resumed-lora", weights(6_000_000, 201))
    world.slow(name, 2_000_000)
    row = _offered(panel, "page-resumed-lora")
    _press(row, "Download")
    until(lambda: int(row.get_by_role("progressbar").get_attribute("aria-valuenow")) > 10)
    _press(row, "Cancel")
    _wait(row, "partial")
    _press(row, "Resume")
    _wait(row, "ready")
    assert world.row("page-resumed-lora")["file"] == name


def test_licence_is_shown_and_accepted_with_the_keyboard(world, page, panel, screenshot):
    world.offer("page-strict-lora", weights(3000, 202), family="flux", licence="strict")
    row = _offered(panel, "page-strict-lora")
    question = row.get_by_role("group", name="Licence")
    row.get_by_role("button", name="Download").focus()
    page.keyboard.press("Enter")
    question.wait_for()
    assert "no commercial use" in question.inner_text()
    assert question.get_by_role("link").get_attribute("href") == "https://huggingface.co/tests/strict"
    screenshot(page, "licence")
    question.get_by_role("button", name="Not now").click()
    question.wait_for(state="hidden")
    assert world.row("page-strict-lora")["state"] == "missing"
    page.keyboard.press("Enter")  # the focus is on the button again
    page.keyboard.press("Tab")
    page.keyboard.press("Enter")
    _wait(row, "ready")


def test_problem_is_shown_with_its_remedy_and_nothing_of_it_is_markup(world, page, panel, screenshot):
    title = '<img src=x onerror="window.hacked = 1">'
    world.offer("page-known-repo", weights(3000, 203))
    world.offer("page-gone-lora", weights(3000, 204), on_hub=False, sha256="0" * 64, title=title)
    row = _offered(panel, "page-gone-lora")
    _press(row, "Download")
    row.locator(".hyper-sd-problem").wait_for()
    assert "moved or removed" in row.inner_text()
    assert title in row.inner_text()
    assert row.locator("img").count() == 0
    assert page.evaluate("window.hacked") is None
    screenshot(page, "problem")


def test_corrupt_file_is_set_aside_by_its_button(world, panel):
    name = world.offer("page-corrupt-lora", weights(3000, 205))
    (world.loras / name).write_bytes(b"something else")
    row = _offered(panel, "page-corrupt-lora")
    assert "It will be renamed, not deleted." in row.inner_text()
    _press(row, "Set aside and download again")
    _wait(row, "ready")
    assert (world.loras / f"{name}.corrupt").is_file()


def test_closed_and_opened_panel_goes_on_showing_the_download(world, page, panel):
    name = world.offer("page-reopened-lora", weights(8_000_000, 206))
    world.slow(name, 2_000_000)
    _press(_offered(panel, "page-reopened-lora"), "Download")
    button = page.get_by_role("button", name="Hyper-SD models")
    button.click()
    panel.wait_for(state="detached")
    button.click()
    row = _row(panel, "page-reopened-lora")
    row.get_by_role("progressbar").wait_for()
    _wait(row, "ready")


def test_lost_websocket_is_made_up_for(world, page, panel):
    name = world.offer("page-lost-lora", weights(3000, 207))
    row = _offered(panel, "page-lost-lora")
    with page.expect_response(lambda answer: answer.url.endswith(ROUTES)):
        page.evaluate("app.api.socket.close()")
        world.ask(START, {"id": "page-lost-lora"})
        world.when("page-lost-lora", "ready")
    _wait(row, "ready")
    assert (world.loras / name).is_file()


def test_broken_own_catalogue_is_told_in_the_panel(world, panel):
    world.offer("page-after-lora", weights(3000, 208))
    world.write_catalogue("{")
    panel.get_by_role("button", name="Look again").click()
    alert = panel.get_by_role("alert")
    alert.wait_for()
    assert "Your own catalogue file is left out" in alert.inner_text()
    world.offer("page-afterwards-lora", weights(3000, 209))
    panel.get_by_role("button", name="Look again").click()
    alert.wait_for(state="hidden")


WIRE = """async () => {
  app.graph.clear();
  const [model, get, load, use] = ['HyperSDDemoModel', 'HyperSDModelDownload', 'LoraLoaderModelOnly', 'PreviewAny']
    .map((type) => LiteGraph.createNode(type));
  [model, get, load, use].forEach((node, i) => { node.pos = [60 + 330 * i, 200]; app.graph.add(node); });
  get.widgets.find((widget) => widget.name === 'model').value = 'page-node-lora';
  model.connect(0, load, 0);
  const wired = get.connect(0, load, load.inputs.findIndex((input) => input.name === 'lora_name'));
  load.connect(0, use, 0);
  window.ended = new Promise((resolve) => {
    app.api.addEventListener('execution_success', () => resolve('success'));
    app.api.addEventListener('execution_error', ({ detail }) => resolve(detail.exception_message));
  });
  window.loader = load;
  await app.queuePrompt(0, 1);
  return wired !== null && get.title;
}"""


def test_node_wires_into_a_loader_and_its_download_reaches_the_lists(world, page, screenshot):
    name = world.offer("page-node-lora", lora(2), title="A test LoRA for the node")
    world.slow(name, 1_500_000)
    assert page.evaluate(WIRE) == "Hyper-SD Model Download"
    text = "app.graph._nodes[1].widgets.find((widget) => widget.name === 'hyper_sd_text')?.value ?? ''"
    page.wait_for_function(f"({text}).includes('/s')")
    screenshot(page, "node")
    assert page.evaluate("window.ended") == "success"
    assert page.evaluate(text) == f"ready: {name}"
    page.wait_for_function("name => window.loader.widgets[0].options.values.includes(name)", arg=name)


def test_panel_shows_what_others_start_and_stop(world, panel):
    name = world.offer("page-others-lora", weights(6_000_000, 210))
    world.slow(name, 2_000_000)
    row = _offered(panel, "page-others-lora")
    world.ask(START, {"id": "page-others-lora"})
    _wait(row, "downloading")
    world.ask(CANCEL, {"id": "page-others-lora"})
    row.get_by_role("button", name="Resume").or_(row.get_by_role("button", name="Download")).wait_for()
