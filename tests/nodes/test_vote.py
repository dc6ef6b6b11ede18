"""The node Hyper-SD Vote on the real host, its routes on a running server, and its tab in a real browser."""

import io
import json
import urllib.error
import urllib.request

import numpy as np
import pytest
import torch
from hyper_sd.errors import EvaluationError
from hyper_sd.evaluation import collected
from hyper_sd.evaluation.comparison import load_key
from PIL import Image

VOTES = "/hyper_sd/votes"


@pytest.fixture
def node(pack, monkeypatch, tmp_path):
    """The node, with a user's folder of the test's own."""
    import folder_paths

    monkeypatch.setattr(folder_paths, "get_user_directory", lambda: str(tmp_path))
    return pack["HyperSDVote"]


def _images(count: int, level: float, alpha: bool = False) -> torch.Tensor:
    return torch.full((count, 16, 16, 4 if alpha else 3), level)


def test_node_collects_pairs_under_labels_and_says_how_many(node, tmp_path):
    ways = [_images(3, 0.2)], [_images(3, 0.8, alpha=True)]
    out = node.execute(*ways, labels=["four\neight"], prompt=["cat"], comparison=["speed"])
    assert out.args == ("speed",)
    assert "3 pairs added to 'speed', 0 of 3 voted on" in str(out.ui.as_dict())
    comparison = load_key(tmp_path / "hyper_sd" / "comparisons" / "speed")
    assert comparison.arms == ("four", "eight")
    levels = {picture.arm: Image.open(picture.path).getpixel((0, 0)) for picture in comparison.pictures.values()}
    assert levels == {"four": (51,) * 3, "eight": (204,) * 3}
    assert {picture.prompt for picture in comparison.pictures.values()} == {"cat"}


def test_labels_that_do_not_fit_are_refused_before_anything_is_kept(node, tmp_path):
    for labels, message in (("a\nb\nc", "3 lines for 2 ways"), ("same\nsame", "the same label")):
        with pytest.raises(EvaluationError, match=message):
            node.execute([_images(1, 0.1)], [_images(1, 0.2)], labels=[labels])
    with pytest.raises(EvaluationError, match="cannot be called"):
        node.execute([_images(1, 0.1)], [_images(1, 0.2)], comparison=["../up"])
    with pytest.raises(EvaluationError, match="3 is odd"):
        node.execute([_images(2, 0.1), _images(3, 0.1)], prompt=["a", "b"])
    with pytest.raises(EvaluationError, match="2 prompts for 3 batches"):
        node.execute([_images(2, 0.1)] * 3, prompt=["a", "b"])
    assert list(tmp_path.iterdir()) == []


def test_prompts_of_one_run_are_collected_together_and_no_pair_mixes_them(node, tmp_path):
    out = node.execute([_images(4, 0.2), _images(2, 0.4)], prompt=["cat", "dog"], comparison=["both"])
    assert "3 pairs added" in str(out.ui.as_dict())
    comparison = load_key(tmp_path / "hyper_sd" / "comparisons" / "both")
    prompts = [[comparison.pictures[key].prompt for key in (pair.left, pair.right)] for pair in comparison.pairs]
    assert sorted(prompts) == [["cat"] * 2, ["cat"] * 2, ["dog"] * 2]


@pytest.fixture(scope="module")
def collection(world):
    """The folder of a collection of the running server: 12 pairs whose left or right picture is a shade of red."""
    folder = world.base / "user" / "hyper_sd" / "comparisons" / "taste"
    shades = [
        [Image.fromarray(np.full((64, 64, 3), (200 if red else 20, 7 * n, 90), np.uint8)) for n in range(12)] for red in (1, 0)
    ]
    collected.add_pairs(folder, [("secretly red", shades[0]), ("secretly blue", shades[1])], ["a colour"] * 12)
    return folder


def test_routes_tell_pairs_and_pictures_and_no_arm(world, collection):
    status, listing = world.ask(VOTES)
    assert status == 200
    assert {"name": "taste", "pairs": 13, "voted": 0, "problem": ""} in listing["comparisons"]
    status, shown = world.ask(f"{VOTES}/next?comparison=taste")
    assert set(shown) == {"pair", "pairs", "voted", "left", "right", "prompt"}
    assert "secretly" not in json.dumps([listing, shown])
    address = f"{world.server.address}{VOTES}/picture?comparison=taste&id={shown['left']}"
    with urllib.request.urlopen(address) as answer:
        headers, content = dict(answer.headers), answer.read()
    assert headers["Content-Type"] == "image/png"
    assert not {"Last-Modified", "ETag", "Content-Disposition"} & set(headers)
    assert Image.open(io.BytesIO(content)).info == {}


@pytest.mark.parametrize(
    ("path", "body", "status"),
    [
        ("/next?comparison=nothing", None, 404),
        ("/next?comparison=..", None, 404),
        ("/next", None, 404),
        ("/picture?comparison=taste&id=..%2Fcomparison.json", None, 404),
        ("/vote", {"id": "taste", "pair": 99, "choice": "left", "milliseconds": 1}, 404),
        ("/vote", {"id": "taste", "pair": 0, "choice": "up", "milliseconds": 1}, 404),
        ("/vote", {"id": "taste", "pair": "0", "choice": "left", "milliseconds": 1}, 400),
        ("/vote", {"id": "taste", "pair": 0}, 400),
        ("/vote", {"id": "taste", "pair": 0, "choice": "left", "milliseconds": 10**12}, 400),
        ("/vote", {"id": "taste", "pair": 0, "choice": "left", "milliseconds": 10**400}, 400),
        ("/vote", {"id": "taste", "pair": 10**400, "choice": "left", "milliseconds": 1}, 404),
        ("/vote", {"id": "a" * 61, "pair": 0, "choice": "left", "milliseconds": 1}, 404),
        ("/next?comparison=taste%00", None, 404),
        ("/next?comparison=COM1.txt", None, 404),
        ("/undo", {"id": "taste", "more": True}, 400),
    ],
)
def test_wrong_request_is_refused_with_a_sentence_and_changes_nothing(world, collection, path, body, status):
    before = sorted((file.name, file.read_bytes()) for file in collection.iterdir() if file.is_file())
    found, answer = world.ask(VOTES + path, body)
    assert found == status
    assert answer["error"].endswith(".")
    assert sorted((file.name, file.read_bytes()) for file in collection.iterdir() if file.is_file()) == before


def test_other_sites_page_cannot_vote(world, collection):
    request = urllib.request.Request(
        f"{world.server.address}{VOTES}/vote",
        json.dumps({"id": "taste", "pair": 0, "choice": "left", "milliseconds": 1}).encode(),
        {"Content-Type": "application/json", "Sec-Fetch-Site": "cross-site"},
    )
    with pytest.raises(urllib.error.HTTPError) as refused:
        urllib.request.urlopen(request)
    assert refused.value.code == 403


@pytest.fixture
def tab(page):
    """The open tab."""
    page.evaluate("app.extensionManager.command.execute('HyperSD.OpenVotes')")
    panel = page.get_by_role("region", name="Hyper-SD votes")
    panel.wait_for()
    panel.get_by_role("button", name="Look again").click()
    return panel


def _progress(tab, text: str) -> None:
    tab.locator(".hyper-sd-numbers", has_text=text).wait_for()


def test_pairs_are_voted_on_by_keys_and_buttons_blind_and_undone(page, collection, tab, screenshot):
    _progress(tab, "0 of 13")
    assert "secretly" not in page.content()
    assert tab.locator(".hyper-sd-pair img").evaluate_all("all => all.map((one) => one.alt)") == [
        "first picture",
        "second picture",
    ]
    screenshot(page, "votes")
    tab.get_by_role("button", name="Left").click()
    _progress(tab, "1 of 13")
    page.keyboard.press("ArrowRight")  # the focus stays on the button
    _progress(tab, "2 of 13")
    page.keyboard.press("ArrowDown")
    _progress(tab, "3 of 13")
    page.keyboard.press("u")
    _progress(tab, "2 of 13")
    page.keyboard.press("s")
    _progress(tab, "3 of 13")
    [ballot] = collected.loaded(collection)[1]
    assert [vote.choice for vote in ballot.votes] == ["left", "right", "skip"]
    assert all(0 < vote.seconds < 600 for vote in ballot.votes)


def test_votes_are_there_after_a_reload_of_the_tab_and_results_name_the_ways(page, collection, tab):
    voted = len(collected.loaded(collection)[1][0].votes)
    comparison = load_key(collection)
    for number in range(voted, len(comparison.pairs)):
        _progress(tab, f"{number} of 13")
        pair = comparison.pairs[number]
        red = "Left" if comparison.pictures[pair.left].arm == "secretly red" else "Right"
        tab.get_by_role("button", name=red).click()
    tab.get_by_text("All pairs have a vote").first.wait_for()
    assert "secretly" not in page.content()
    tab.get_by_role("button", name="Show results").click()
    tab.locator(".hyper-sd-results", has_text='"secretly red" is liked better than "secretly blue"').wait_for()
    assert collected.next_pair(collection).number is None
