"""The tab's script in a real browser, on parts that fold as gradio's do: its label's class says whether a part is open."""

import pytest
from hyper_sd.tests.repository import ROOT

SCRIPT = (ROOT / "javascript" / "hyper_sd_tab.js").read_text(encoding="utf-8")
PARTS = ("sd15", "sd15_more", "sdxl", "sdxl_more", "flux")
HOST = "const gradioApp = () => document; const hasLocalization = () => false; const onAfterUiUpdate = () => {};"
PAGE = """(names) => {
  document.body.innerHTML = "<div id='other'><button class='label-wrap'></button></div>";
  for (const name of names) {
    const part = document.createElement("div");
    part.id = `hyper_sd_part_${name}`;
    part.innerHTML = "<button class='label-wrap'></button><div></div>";
    part.firstChild.onclick = ({ currentTarget }) => currentTarget.classList.toggle("open");
    const around = name.endsWith("_more") ? document.body.lastChild.lastChild : document.body;
    around.append(part);
  }
}"""


@pytest.fixture
def page(browser):
    """A page with folded parts and the script."""
    opened = browser.new_page()
    opened.evaluate(PAGE, PARTS)
    opened.add_script_tag(content=HOST + SCRIPT)
    yield opened
    opened.close()


def opened(page) -> list[str]:
    labels = page.locator(".label-wrap.open").evaluate_all("labels => labels.map((label) => label.parentElement.id)")
    return [label.removeprefix("hyper_sd_part_") for label in labels]


def click(page, *names: str) -> None:
    for name in names:
        page.locator(f"#hyper_sd_part_{name} > .label-wrap").click()


def search(page, asked: str) -> None:
    page.evaluate("(asked) => window.hyperSDSearch(asked)", asked)


def test_search_opens_every_part_and_an_emptied_one_leaves_each_as_it_was(page):
    click(page, "sd15", "flux", "sdxl_more")
    search(page, "l")
    search(page, "lightning 4")
    assert opened(page) == list(PARTS)
    search(page, " ")
    assert opened(page) == ["sd15", "sdxl_more", "flux"]


def test_what_a_person_folds_while_searching_is_for_that_search_alone(page):
    click(page, "sdxl")
    search(page, "pcm")
    click(page, "sd15", "sdxl")
    assert "sdxl" not in opened(page)
    search(page, "pcm 4")
    assert opened(page) == list(PARTS)
    search(page, "")
    assert opened(page) == ["sdxl"]
    click(page, "sdxl", "flux")
    search(page, "x")
    search(page, "")
    assert opened(page) == ["flux"]
