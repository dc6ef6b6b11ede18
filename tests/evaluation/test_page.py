"""The page of a blind comparison in a browser: votes, undo, reload, files, and that it loads and sends nothing."""

import hashlib
import socket

import pytest
from hyper_sd.evaluation.comparison import plan_comparison
from hyper_sd.evaluation.page import PICTURES, write_page
from hyper_sd.evaluation.vote_file import load_ballot
from hyper_sd.evaluation.votes import answers, self_agreement
from hyper_sd.tests.evaluation.comparisons import write_arms
from hyper_sd.tests.evaluation.page_visits import DESKTOP, press, saved, shown

NO_STORAGE = "Storage.prototype.setItem = () => { throw new DOMException('full', 'QuotaExceededError'); };"
SHARES_TEXT = (
    "navigator.canShare = ({ files }) => files[0].type === 'text/plain';navigator.share = (what) => { window.sent = what; };"
)
REPORT = "addEventListener('securitypolicyviolation', (event) => (window.refused ||= []).push(event.violatedDirective));"
WISHES = (
    "fetch(address).catch(() => 0)",
    "new Image().src = address",
    "navigator.sendBeacon(address)",
)
BAD_KEPT = ("{", "null", '{"voter": "x", "votes": []}', '{"voter": "0123456789abcdef", "votes": [[3, "left", 1]]}')
PRESSED = {"ArrowLeft": "left", "ArrowRight": "right", "ArrowDown": "tie", " ": "tie", "s": "skip"}


def test_votes_by_keyboard_with_undo_and_a_reload_in_the_middle(world, visit, tmp_path):
    comparison, file = world
    page = visit(file)
    keys = [list(PRESSED)[number % 5] for number in range(44)]
    press(page, keys[:20])
    shown(page, 20)
    page.keyboard.press("ArrowLeft")
    shown(page, 21)
    page.keyboard.press("Backspace")
    shown(page, 20)
    assert "Undone. Pair 21 again." in page.inner_text("#status")
    page.reload()
    shown(page, 20)
    assert page.inner_text("#count") == "Pair 21 of 44"
    page.keyboard.press("z")
    press(page, keys[19:], first=19)
    page.get_by_text("Thank you. All 44 pairs are answered.").wait_for()
    ballot = saved(page, comparison, tmp_path / "votes.json")
    assert [(vote.pair, vote.choice) for vote in ballot.votes] == [(n, PRESSED[key]) for n, key in enumerate(keys)]
    assert all(vote.seconds < 60 for vote in ballot.votes)
    assert "Saved as votes-" in page.inner_text("#status")


def test_repeated_pairs_show_the_same_two_pictures_on_swapped_sides(world, visit):
    comparison, file = world
    page, seen = visit(file), []
    for number in range(44):
        shown(page, number)
        seen.append([page.locator(f"#{side} img").get_attribute("src") for side in ("left", "right")])
        page.keyboard.press("ArrowDown")
    for number, pair in enumerate(comparison.pairs):
        if pair.first is not None:
            assert seen[number] == seen[pair.first][::-1]
    assert len({frozenset(sides) for sides in seen}) == 40


def test_somebody_who_looks_at_the_pictures_is_understood(world, visit, tmp_path):
    comparison, file = world
    page = visit(file)
    liked = "hyper"  # its pictures are brighter red; the page itself is asked what is on the left
    for number in range(44):
        shown(page, number)
        red = page.evaluate(
            "() => ['left', 'right'].map((side) => { const c = document.createElement('canvas').getContext('2d');"
            "c.drawImage(byId(side).firstChild, 0, 0); return c.getImageData(4, 4, 1, 1).data[0]; })"
        )
        page.click("#left" if red[0] > red[1] else "#right")
    ballot = saved(page, comparison, tmp_path / "votes.json")
    assert {comparison.pictures[picture].arm for picture in answers(comparison, ballot).values()} == {liked}
    assert self_agreement(comparison, ballot).value == 1


def test_browser_that_keeps_nothing_is_named_and_votes_go_on(world, visit, tmp_path):
    comparison, file = world
    page = visit(file, script=NO_STORAGE)
    press(page, ["ArrowLeft", "ArrowRight"])
    shown(page, 2)
    assert "does not keep your votes" in page.inner_text("#memory")
    page.click("#pause")
    assert len(saved(page, comparison, tmp_path / "votes.json").votes) == 2
    page.reload()
    shown(page, 0)


@pytest.mark.parametrize("kept", BAD_KEPT)
def test_kept_votes_that_make_no_sense_are_left_out(world, visit, kept):
    page = visit(world[1])
    shown(page, 0)
    page.keyboard.press("ArrowLeft")
    shown(page, 1)
    page.evaluate("text => localStorage.setItem(STORE, text)", kept)
    page.reload()
    shown(page, 0)


def test_another_person_begins_anew_in_the_same_browser(world, visit, tmp_path):
    comparison, file = world
    page = visit(file)
    press(page, ["ArrowLeft"] * 44)
    first = saved(page, comparison, tmp_path / "one.json")
    page.once("dialog", lambda dialog: dialog.accept())
    page.click("#another")
    press(page, ["ArrowRight"] * 44)
    second = saved(page, comparison, tmp_path / "two.json")
    assert first.voter != second.voter
    assert {vote.choice for vote in second.votes} == {"right"}


def test_votes_can_be_copied_as_text_and_shared_where_the_browser_can(world, visit, tmp_path):
    comparison, file = world
    page = visit(file, script=SHARES_TEXT)
    press(page, ["ArrowLeft"])
    shown(page, 1)
    page.click("#pause")
    page.click("summary")
    (tmp_path / "copied.txt").write_text(page.input_value("#text"), encoding="utf-8")
    assert len(load_ballot(tmp_path / "copied.txt", comparison).votes) == 1
    page.click("#share")
    page.get_by_text("The votes were shared.").wait_for()
    assert page.evaluate("sent.files[0].text()") == page.input_value("#text")
    assert page.evaluate("sent.files[0].name").endswith(".json.txt")


def test_page_can_send_nothing_even_if_it_wanted_to(world, browser):
    context = browser.new_context(**DESKTOP)
    page = context.new_page()
    page.add_init_script(REPORT)
    page.goto(world[1].as_uri())
    shown(page, 0)
    with socket.create_server(("127.0.0.1", 0)) as server:
        server.settimeout(0.5)
        for wish in WISHES:
            page.evaluate(f"(address) => {{ {wish} }}", f"http://127.0.0.1:{server.getsockname()[1]}/")
        page.wait_for_function("window.refused?.length >= 3")
        with pytest.raises(TimeoutError):
            server.accept()
    assert set(page.evaluate("refused")) == {"connect-src", "img-src"}
    context.close()


def test_pictures_beside_the_page_are_shown_and_a_missing_one_is_named(tmp_path, visit):
    comparison = plan_comparison(write_arms(tmp_path, names=6))
    written = write_page(comparison, tmp_path / "send", inside=False)
    page = visit(written.file)
    shown(page, 0)
    assert page.evaluate("byId('left').firstChild.naturalWidth") == 16
    (tmp_path / "send" / PICTURES / f"{comparison.pairs[1].left}.png").unlink()
    page.reload()
    shown(page, 0)
    page.keyboard.press("ArrowLeft")
    page.get_by_text("A picture of this pair cannot be shown.").wait_for()
    page.keyboard.press("ArrowLeft")
    assert page.is_disabled("#left")
    page.keyboard.press("s")
    shown(page, 2)
    assert page.evaluate("votes.map((vote) => vote[1])") == ["left", "skip"]
    assert page.is_enabled("#left")


def test_a_thousand_pairs_keep_the_page_small(tmp_path, visit):
    comparison = plan_comparison(write_arms(tmp_path, names=1000, size=8), limit=1000)
    page = visit(write_page(comparison, tmp_path / "send").file)
    press(page, ["ArrowLeft"] * 12)
    shown(page, 12)
    assert page.inner_text("#count") == "Pair 13 of 1100"
    assert page.locator("img").count() == 2
    assert page.evaluate("ready.size") == 6
    page.evaluate("votes = DATA.pairs.map((_, n) => [n, 'left', 1]).slice(0, 1099); store(); show()")
    press(page, ["ArrowLeft"], first=1099)
    page.get_by_text("All 1100 pairs are answered").wait_for()


@pytest.mark.parametrize("text", ["", "abc", "x" * 55, "x" * 56, "x" * 64, "votes\n" * 5000, "盲测 é"])
def test_sha256_is_that_of_everyone_else(world, visit, text):
    page = visit(world[1])
    assert page.evaluate("text => sha256(text)", text) == hashlib.sha256(text.encode()).hexdigest()
