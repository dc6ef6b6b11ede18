"""A host's page as a person uses it: opened, the panel unfolded, an infotext pasted."""

PANEL = "#script_{tab}_hypersd_panel"


def open_page(page, webui) -> None:
    """Loads the page, and waits until its scripts have come."""
    page.goto(webui.address, wait_until="domcontentloaded")
    _wait(page)


def _wait(page) -> None:
    page.locator("#txt2img_generate").wait_for()
    page.wait_for_function("() => typeof gradioApp === 'function' && gradioApp().querySelector('#txt2img_prompt textarea')")


def open_panel(page, seed: int | None = None):
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


def paste(page, infotext: str, seed: int) -> None:
    """Presses the arrow under the prompt, which reads an infotext into the page's controls."""
    page.locator("#txt2img_prompt textarea").fill(infotext)
    page.locator("#txt2img_tools #paste").click()
    page.wait_for_function(f"() => document.querySelector('#txt2img_seed input').value === '{seed}'")
    page.wait_for_function("() => document.querySelector('#txt2img_prompt textarea').value === 'red apple'")
    page.wait_for_timeout(1500)  # the page fills its controls one after another
