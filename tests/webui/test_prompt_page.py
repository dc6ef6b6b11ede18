"""The panel's line in a real browser: it follows the few-step LoRA of the prompt, however that came there."""

import pytest
from hyper_sd.tests.webui.browser_page import open_panel
from hyper_sd.tests.webui.panel import panel

TAG, KEPT = "<lora:Hyper-SD15-1step-lora:0.8>", "Hyper-SD15-1step-lora.safetensors of the prompt is kept"
PROMPT = "#txt2img_prompt textarea"


@pytest.fixture
def asked(page) -> list[str]:
    """What the page has asked the host for its line so far: by web sockets in gradio 3, by requests in gradio 4."""
    sent: list[str] = []

    def note(content) -> None:
        if "by the file" in str(content):  # the value of one of the panel's lists
            sent.append(str(content))

    page.on("request", lambda request: note(request.post_data))
    page.on("websocket", lambda socket: socket.on("framesent", note))
    return sent


@pytest.fixture
def line(page, asked):
    """The panel's line; the panel is switched on."""
    accordion = open_panel(page, seed=11)
    accordion.get_by_role("checkbox", name="Enable", exact=True).check()
    found = page.locator("#script_txt2img_hypersd_line").first  # gradio 3 has it twice
    found.get_by_text("Hyper-SD15-4steps-lora.safetensors, strength 1").wait_for()
    return found


def test_line_follows_what_is_typed_and_asks_the_host_only_for_whole_tags(page, asked, line):
    box = page.locator(PROMPT)
    before = [*asked]
    assert before  # by the checkbox
    box.press_sequentially(", a long prompt with many words ", delay=10)
    page.wait_for_timeout(1500)
    assert asked == before
    box.press_sequentially(TAG, delay=10)
    line.get_by_text(KEPT).wait_for()
    box.press_sequentially(" and more words", delay=10)
    page.wait_for_timeout(1500)
    assert len(asked) == len(before) + 1
    assert "strength 0.8" in line.inner_text()
    box.fill("red apple")
    line.get_by_text("Hyper-SD15-4steps-lora.safetensors, strength 1").wait_for()


def test_line_follows_a_card_of_the_loras_tab(page, line):
    page.locator("#txt2img_extra_tabs button", has_text="Lora").first.click()
    page.locator("#txt2img_lora_cards .card", has_text="Hyper-SD15-1step-lora").first.click()
    page.wait_for_function(f"() => document.querySelector('{PROMPT}').value.includes('<lora:Hyper-SD15-1step-lora:')")
    page.locator("#txt2img_extra_tabs button", has_text="Generation").first.click()
    line.get_by_text(KEPT).wait_for()


def test_line_follows_a_pasted_infotext(webui, page, line):
    first = webui.draw(prompt=f"red apple {TAG}", seed=77, **panel(steps=1))
    page.locator(PROMPT).fill(first.infotext)
    page.locator("#txt2img_tools #paste").click()
    page.wait_for_function("() => document.querySelector('#txt2img_seed input').value === '77'")
    line.get_by_text("strength 0.8, 1 step,").wait_for()
    page.wait_for_timeout(1500)  # the page fills its controls one after another, and each asks
    assert "strength 0.8, 1 step," in line.inner_text()
    assert KEPT in line.inner_text()
    assert not page.locator("#script_txt2img_hypersd_download").is_visible()


def test_the_other_tab_has_a_line_of_its_own_prompt(page, line):
    page.locator(PROMPT).fill(f"red apple {TAG}")
    line.get_by_text(KEPT).wait_for()
    page.locator("#tabs button", has_text="img2img").first.click()
    accordion = page.locator("#script_img2img_hypersd_panel")
    accordion.locator(".label-wrap").first.click()
    accordion.get_by_role("checkbox", name="Enable", exact=True).check()
    other = page.locator("#script_img2img_hypersd_line").first
    other.get_by_text("Hyper-SD15-4steps-lora.safetensors, strength 1").wait_for()
    page.locator("#img2img_prompt textarea").fill(TAG)
    other.get_by_text(KEPT).wait_for()
