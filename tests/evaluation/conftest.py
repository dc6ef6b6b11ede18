"""A comparison's page, and browsers that visit it."""

import pytest
from hyper_sd.evaluation.comparison import plan_comparison
from hyper_sd.evaluation.page import write_page
from hyper_sd.tests.evaluation.comparisons import write_arms
from hyper_sd.tests.evaluation.page_visits import DESKTOP


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    """40 pictures of two arms, their comparison, and its page."""
    folder = tmp_path_factory.mktemp("comparison")
    comparison = plan_comparison(write_arms(folder, names=40))
    return comparison, write_page(comparison, folder / "send").file


@pytest.fixture
def visit(browser):
    """Opens a page in a fresh browser profile and returns it; in the end it must have met no error and asked for nothing."""
    opened, asked, errors = [], [], []

    def open_page(file, script="", **settings):
        context = browser.new_context(**{**DESKTOP, **settings})
        opened.append(context)
        page = context.new_page()
        page.set_default_timeout(15_000)
        page.on("request", lambda request: asked.append(request.url.split(",")[0].split("/")[0]))
        page.on("pageerror", lambda error: errors.append(str(error)))
        if script:
            page.add_init_script(script)
        page.goto(file.as_uri())
        return page

    yield open_page
    for context in opened:
        context.close()
    assert {url.split(";")[0] for url in asked} <= {"file:", "data:", "data:image", "blob:"}
    assert errors == []
