"""Comparisons that a host collects: names, growth, repeats, votes, and what is refused."""

import json
import random
import threading

import numpy as np
import pytest
from hyper_sd.errors import EvaluationError
from hyper_sd.evaluation import collected
from hyper_sd.evaluation.comparison import KEY, load_key
from hyper_sd.evaluation.votes import preferences
from PIL import Image


def _pictures(count: int, shade: int) -> list[Image.Image]:
    return [Image.fromarray(np.full((16, 16, 3), (shade, number, 0), np.uint8)) for number in range(count)]


def _collect(folder, count: int = 10, arms=("a", "b"), seed: int = 0) -> int:
    batches = [(arm, _pictures(count, 60 * number + 60)) for number, arm in enumerate(arms)]
    return collected.add_pairs(folder, batches, [f"prompt {n}" for n in range(count)], random.Random(seed))


def _shade(picture) -> tuple[int, ...]:
    return Image.open(picture.path).getpixel((0, 0))


def test_pairs_show_equal_places_of_two_arms_and_a_tenth_comes_again_with_sides_swapped(tmp_path):
    assert _collect(tmp_path / "one") == 11
    comparison = load_key(tmp_path / "one")
    assert comparison.arms == ("a", "b")
    for pair in comparison.pairs:
        left, right = (comparison.pictures[key] for key in (pair.left, pair.right))
        assert {left.arm, right.arm} == {"a", "b"}
        assert left.prompt == right.prompt == f"prompt {_shade(left)[1]}"
        assert _shade(left)[1] == _shade(right)[1]
    again = comparison.pairs[10]
    first = comparison.pairs[again.first]
    assert (again.left, again.right) == (first.right, first.left)


def test_sides_and_order_tell_nothing_and_no_seed_repeats_them(tmp_path):
    sides = []
    for number in range(12):
        folder = tmp_path / str(number)
        collected.add_pairs(folder, [("a", _pictures(10, 60)), ("b", _pictures(10, 120))], [""] * 10)
        comparison = load_key(folder)
        sides.append([comparison.pictures[pair.left].arm for pair in comparison.pairs[:10]])
    assert len({tuple(one) for one in sides}) >= 8  # of 1024 that are possible
    left = sum(arm == "a" for one in sides for arm in one)
    assert 30 <= left <= 90  # 60 of 120, within five deviations


def test_collection_grows_and_its_votes_stay(tmp_path):
    _collect(tmp_path, 10)
    collected.vote(tmp_path, 0, "left", 1.5)
    before = load_key(tmp_path)
    assert _collect(tmp_path, 10, ("a", "c"), seed=1) == 11
    after = load_key(tmp_path)
    assert after.id == before.id
    assert after.pairs[: len(before.pairs)] == before.pairs
    assert after.arms == ("a", "b", "c")
    assert len({picture.name for picture in after.pictures.values()}) == 20
    assert collected.next_pair(tmp_path).voted == 1


def test_four_arms_give_every_two_of_them(tmp_path):
    _collect(tmp_path, 2, ("a", "b", "c", "d"))
    comparison = load_key(tmp_path)
    kinds = [frozenset(comparison.pictures[key].arm for key in (pair.left, pair.right)) for pair in comparison.pairs]
    assert len(set(kinds)) == 6


def test_single_arms_pictures_are_compared_two_at_a_time(tmp_path):
    collected.add_pairs(tmp_path, [("mine", _pictures(4, 60))], ["p", "p", "q", "q"], random.Random(0))
    comparison = load_key(tmp_path)
    places = [{_shade(comparison.pictures[key])[1] for key in (pair.left, pair.right)} for pair in comparison.pairs]
    assert sorted(map(sorted, places)) == [[0, 1], [2, 3]]
    assert {comparison.pictures[pair.left].prompt for pair in comparison.pairs} == {"p", "q"}


def test_votes_go_pair_by_pair_and_can_be_taken_back(tmp_path):
    _collect(tmp_path)
    first = collected.next_pair(tmp_path)
    assert (first.number, first.voted, first.pairs) == (0, 0, 11)
    collected.vote(tmp_path, 0, "right", 2)
    collected.vote(tmp_path, 1, "tie", 0)
    assert collected.next_pair(tmp_path).number == 2
    collected.undo(tmp_path)
    assert collected.next_pair(tmp_path).number == 1
    comparison, ballots = collected.loaded(tmp_path)
    [(winner, loser, _)] = preferences(comparison, ballots)
    assert (winner, loser) == (comparison.pictures[first.right], comparison.pictures[first.left])
    collected.undo(tmp_path)
    with pytest.raises(EvaluationError, match="no vote to take back"):
        collected.undo(tmp_path)


def test_all_voted_shows_no_pair(tmp_path):
    _collect(tmp_path)
    for pair in range(11):
        collected.vote(tmp_path, pair, "skip", 0)
    assert collected.next_pair(tmp_path) == collected.Shown(11, 11)


@pytest.mark.parametrize(
    ("pair", "choice", "seconds", "message"),
    [(11, "left", 1, "0 to 10"), (-1, "left", 1, "0 to 10"), (0, "up", 1, "left, right, tie"), (0, "left", -1, "does not fit")],
)
def test_vote_that_does_not_fit_is_refused_and_nothing_is_kept(tmp_path, pair, choice, seconds, message):
    _collect(tmp_path)
    with pytest.raises(EvaluationError, match=message):
        collected.vote(tmp_path, pair, choice, seconds)
    assert not (tmp_path / collected.BALLOT).exists()


def test_second_vote_on_a_pair_is_refused(tmp_path):
    _collect(tmp_path)
    collected.vote(tmp_path, 3, "left", 1)
    with pytest.raises(EvaluationError, match="has a vote already"):
        collected.vote(tmp_path, 3, "right", 1)


def test_votes_of_many_windows_at_once_are_all_kept(tmp_path):
    _collect(tmp_path, 20)
    threads = [threading.Thread(target=collected.vote, args=(tmp_path, pair, "left", 1)) for pair in range(20)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert collected.next_pair(tmp_path).voted == 20


def test_unequal_batches_and_an_odd_single_one_are_refused(tmp_path):
    with pytest.raises(EvaluationError, match="a 3, b 2"):
        collected.add_pairs(tmp_path / "x", [("a", _pictures(3, 1)), ("b", _pictures(2, 2))], [""] * 3)
    with pytest.raises(EvaluationError, match="3 is odd"):
        collected.add_pairs(tmp_path / "x", [("a", _pictures(3, 1))], [""] * 3)
    assert not (tmp_path / "x").exists()


@pytest.mark.parametrize("name", ["", " ", "..", "a/b", "a\\b", ".hidden", "nul", "com1.txt", "x" * 61, "a\nb", "end."])
def test_name_that_is_no_folders_is_refused(tmp_path, name):
    with pytest.raises(EvaluationError, match="cannot be called"):
        collected.folder_of(tmp_path, name)


@pytest.mark.parametrize("name", ["my taste", "味道", "v1.2 (new)", "x" * 60])
def test_name_of_one_folder_is_taken(tmp_path, name):
    assert collected.folder_of(tmp_path, f" {name} ") == tmp_path / name


def test_list_has_newest_first_and_says_what_is_damaged(tmp_path):
    assert collected.comparisons(tmp_path / "nothing") == []
    _collect(tmp_path / "old")
    _collect(tmp_path / "broken")
    (tmp_path / "broken" / "comparison.json").write_text("{", encoding="utf-8")
    _collect(tmp_path / "new")
    found = collected.comparisons(tmp_path)
    assert [row.name for row in found] == ["new", "broken", "old"]
    assert (found[0].pairs, found[0].voted, found[0].problem) == (11, 0, "")
    assert "no key of a comparison" in found[1].problem


def test_picture_is_had_by_its_id_alone(tmp_path):
    _collect(tmp_path)
    key = load_key(tmp_path).pairs[0].left
    assert collected.picture_bytes(tmp_path, key)[:4] == b"\x89PNG"
    with pytest.raises(EvaluationError, match="has no picture"):
        collected.picture_bytes(tmp_path, "../comparison.json")


def test_results_count_decisions_and_second_times(tmp_path):
    _collect(tmp_path)
    assert "no pair has an answer" in collected.results(tmp_path)
    comparison = load_key(tmp_path)
    for number, pair in enumerate(comparison.pairs):
        side = "left" if comparison.pictures[pair.left].arm == "a" else "right"
        collected.vote(tmp_path, number, "tie" if number < 2 else side, 1)
    text = collected.results(tmp_path)
    assert '"a" is liked better than "b": 90 % of 10 answers, 2 of them ties that count half' in text


@pytest.mark.parametrize("kind", ["relative", "absolute", "link", "no name"])
def test_file_outside_of_the_comparison_is_not_shown(tmp_path, kind):
    folder, secret = tmp_path / "taste", tmp_path / "secret.txt"
    secret.write_text("secret", encoding="utf-8")
    _collect(folder)
    key = load_key(folder).pairs[0].left
    said = json.loads((folder / KEY).read_text(encoding="utf-8"))
    picture = folder / said["pictures"][key]["file"]
    if kind == "link":
        picture.unlink()
        picture.symlink_to(secret)
    else:
        file = {"relative": "pictures/../../secret.txt", "absolute": str(secret), "no name": "a\0b"}[kind]
        said["pictures"][key]["file"] = file
        (folder / KEY).write_text(json.dumps(said), encoding="utf-8")
    with pytest.raises(EvaluationError, match="no valid name" if kind == "no name" else "lies outside"):
        collected.picture_bytes(folder, key)


@pytest.mark.parametrize("seconds", [-1, 1e9, float("nan")])
def test_vote_whose_time_could_not_be_read_again_is_not_kept(tmp_path, seconds):
    _collect(tmp_path)
    with pytest.raises(EvaluationError, match="0 seconds or more"):
        collected.vote(tmp_path, 0, "left", seconds)
    assert collected.next_pair(tmp_path).voted == 0
