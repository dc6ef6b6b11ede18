"""The page of a blind comparison for everybody: by keyboard and touch, in two languages, with a name for each button."""

import json

import pytest
from hyper_sd.evaluation.comparison import plan_comparison
from hyper_sd.evaluation.page import write_page
from hyper_sd.tests.evaluation.comparisons import write_arms
from hyper_sd.tests.evaluation.page_visits import PHONE, press, saved, shown


def test_language_is_the_browsers_until_it_is_switched_and_stays_so(world, visit):
    page = visit(world[1], locale="zh-CN")
    shown(page, 0)
    assert page.inner_text("#question").startswith("你更喜欢哪一张图")
    assert page.get_attribute("html", "lang") == "zh-CN"
    page.click("#language")
    assert page.inner_text("#question") == "Which picture do you like better?"
    assert page.get_attribute("#left img", "alt") == "Left picture"
    page.reload()
    shown(page, 0)
    assert page.inner_text("#language") == "中文"
    assert page.evaluate("Object.keys(TEXTS.en).sort().join() === Object.keys(TEXTS.zh).sort().join()")


def test_everything_that_can_be_pressed_has_a_name(world, visit):
    page = visit(world[1])
    shown(page, 0)
    for keys in ([], ["ArrowLeft"]):
        press(page, keys)
        page.wait_for_timeout(50)
        names = page.evaluate(
            "[...document.querySelectorAll('button')].filter((b) => b.offsetParent)"
            ".map((b) => (b.textContent || b.firstChild?.alt || '').trim())"
        )
        assert len(names) >= 8
        assert all(names)
    page.click("#pause")
    assert page.evaluate("document.activeElement.id") == "finished"
    assert page.evaluate("document.querySelectorAll('main:not([hidden]) h1').length") == 1
    assert page.get_attribute("#text", "aria-label")
    page.click("#back")
    shown(page, 1)
    page.wait_for_function("document.activeElement.id === 'question'")


def test_questions_and_prompts_are_shown_as_text(tmp_path, visit):
    folders = write_arms(tmp_path, names=2)
    for number in range(2):
        (folders[0] / f"drawing-{number:03}.txt").write_text("</script><img src=x onerror=alert(1)> 苹果", encoding="utf-8")
    comparison = plan_comparison(folders)
    page = visit(write_page(comparison, tmp_path / "send", question="Which is <b>sharper</b>?").file)
    shown(page, 0)
    assert page.inner_text("#question") == "Which is <b>sharper</b>?"
    assert page.inner_text("#prompt") == "</script><img src=x onerror=alert(1)> 苹果"
    assert json.loads(page.text_content("#data"))["comparison"] == comparison.id


def test_phone_stacks_the_pictures_and_takes_touch(world, visit, tmp_path):
    comparison, file = world
    page = visit(file, **PHONE)
    shown(page, 0)
    upper, lower = (page.locator(f"#{side}").bounding_box() for side in ("left", "right"))
    assert upper["y"] + upper["height"] <= lower["y"]
    assert upper["height"] == pytest.approx(lower["height"], abs=1)
    assert page.inner_text(".choices").split() == ["Upper", "Equal", "Lower"]
    assert page.evaluate("document.documentElement.scrollWidth <= innerWidth && document.body.scrollHeight <= innerHeight")
    assert page.evaluate("[...document.querySelectorAll('main:not([hidden]) button')].every((b) => b.offsetHeight >= 44)")
    for number, choice in enumerate(["left", "tie", "right", "skip"]):
        shown(page, number)
        page.tap(f"button[data-choice={choice}] span")
    shown(page, 4)
    page.tap("#right")
    shown(page, 5)
    page.tap("#undo")
    shown(page, 4)
    page.tap("#pause")
    page.get_by_text("4 of 44 pairs are answered.").wait_for()
    ballot = saved(page, comparison, tmp_path / "votes.json")
    assert [vote.choice for vote in ballot.votes] == ["left", "tie", "right", "skip"]
    page.tap("#back")
    shown(page, 4)


def test_space_presses_the_button_with_the_focus_and_means_a_tie_after_the_mouse(world, visit):
    page = visit(world[1])
    shown(page, 0)
    page.focus("button[data-choice=right] >> nth=1")
    page.keyboard.press(" ")
    shown(page, 1)
    page.click(".choices button[data-choice=left]")
    shown(page, 2)
    page.keyboard.press(" ")
    shown(page, 3)
    assert page.evaluate("votes.map((vote) => vote[1])") == ["right", "left", "tie"]


def test_key_held_down_and_keys_of_the_browser_vote_once_or_not_at_all(world, visit):
    page = visit(world[1])
    shown(page, 0)
    page.keyboard.press("Control+z")
    page.keyboard.press("z")
    assert "nothing to undo" in page.inner_text("#status")
    for _ in range(3):
        page.keyboard.down("ArrowLeft")  # from the second on the browser marks it as repeated
    shown(page, 1)
    page.wait_for_timeout(200)
    assert page.evaluate("votes.length") == 1
