"""Which pictures are paired, in which order and on which sides, and the key that tells them apart."""

import json
import random
from collections import Counter

import pytest
from hyper_sd.errors import EvaluationError
from hyper_sd.evaluation.comparison import KEY, find_pictures, load_key, plan_comparison, save_key, without_partner
from hyper_sd.tests.evaluation.comparisons import comparison_of, write_arms


def test_pictures_of_equal_names_are_paired_and_the_others_are_named(tmp_path):
    base, hyper = write_arms(tmp_path)
    (base / "drawing-002.png").rename(base / "another.png")
    (hyper / "drawing-001.txt").write_text("a red\n apple ", encoding="utf-8")
    found = find_pictures([base, hyper])
    assert without_partner(found) == ["another", "drawing-002"]
    comparison = plan_comparison([base, hyper])
    assert comparison.arms == ("base", "hyper")
    assert {picture.name for picture in comparison.pictures.values()} == {"drawing-000", "drawing-001", "drawing-003"}
    assert {picture.prompt for picture in comparison.pictures.values() if picture.name == "drawing-001"} == {"a red apple"}
    assert len(comparison.pairs) == 3


def test_endings_may_differ(tmp_path):
    base, hyper = write_arms(tmp_path, names=1)
    (base / "drawing-000.png").rename(base / "drawing-000.WEBP")
    assert len(plan_comparison({"a": base, "b": hyper}).pairs) == 1


def test_folders_of_one_name_are_told_apart_by_their_parents(tmp_path):
    folders = [write_arms(tmp_path / run, ["images"])[0] for run in ("monday", "tuesday")]
    assert plan_comparison(folders).arms == ("monday/images", "tuesday/images")


@pytest.mark.parametrize("names", [5, 8, 40, 100, 300])
def test_a_tenth_comes_again_later_with_sides_swapped(names):
    for seed in range(20):
        pairs = comparison_of(names, seed=seed).pairs
        repeats = [(number, pair) for number, pair in enumerate(pairs) if pair.first is not None]
        assert len(repeats) == max(round(names / 10), 1)
        assert len(pairs) == names + len(repeats)
        assert len({pair.first for _, pair in repeats}) == len(repeats)
        for number, pair in repeats:
            first = pairs[pair.first]
            assert first.first is None
            assert (pair.left, pair.right) == (first.right, first.left)
            assert number - pair.first > min(5, names // 4)


def test_order_and_sides_tell_nothing_about_the_arms():
    sides, firsts, lefts = Counter(), Counter(), Counter()
    for seed in range(300):
        comparison = comparison_of(10, seed=seed)
        pair = comparison.pairs[0]
        sides[comparison.pictures[pair.left].arm] += 1
        firsts[comparison.pictures[pair.left].name] += 1
        lefts[sum(comparison.pictures[pair.left].arm == "base" for pair in comparison.pairs)] += 1
    assert 110 < sides["base"] < 190
    assert len(firsts) == 10
    assert min(firsts.values()) > 10
    assert len(lefts) > 5  # how many stand on the left is left to chance as well


def test_three_arms_make_three_pairs_of_each_name_and_a_limit_keeps_them_even():
    comparison = comparison_of(12, ("a", "b", "c"))
    assert len([pair for pair in comparison.pairs if pair.first is None]) == 36
    limited = comparison_of(12, ("a", "b", "c"), limit=15)
    kinds = Counter(
        frozenset(limited.pictures[key].arm for key in (pair.left, pair.right)) for pair in limited.pairs if pair.first is None
    )
    assert sorted(kinds.values()) == [5, 5, 5]


def test_no_seed_of_a_random_number_generator_gives_the_shuffle(tmp_path):
    folders = write_arms(tmp_path, names=6)
    drawn = [plan_comparison(folders) for _ in range(2)]
    assert drawn[0].id != drawn[1].id
    assert drawn[0].pictures.keys().isdisjoint(drawn[1].pictures)

    def layout(comparison):
        return [(comparison.pictures[pair.left].arm, comparison.pictures[pair.left].name) for pair in comparison.pairs]

    seeded = [layout(plan_comparison(folders, rng=random.Random(seed))) for seed in range(200)]
    assert layout(drawn[0]) not in seeded
    assert layout(drawn[1]) not in seeded


def test_key_gives_the_comparison_back(tmp_path):
    folders = write_arms(tmp_path / "round one", names=6)
    comparison = plan_comparison(folders)
    assert save_key(comparison, tmp_path / "round one").name == KEY
    assert load_key(tmp_path / "round one") == comparison
    assert {entry["file"][:4] for entry in read(tmp_path / "round one")["pictures"].values()} == {"base", "hype"}
    save_key(comparison, tmp_path / "elsewhere")
    assert load_key(tmp_path / "elsewhere" / KEY) == comparison


def read(folder):
    return json.loads((folder / KEY).read_text(encoding="utf-8"))


def test_folder_that_was_moved_with_its_pictures_still_finds_them(tmp_path):
    comparison = plan_comparison(write_arms(tmp_path / "here", names=2))
    save_key(comparison, tmp_path / "here")
    (tmp_path / "here").rename(tmp_path / "there")
    assert all(picture.path.is_file() for picture in load_key(tmp_path / "there").pictures.values())


@pytest.mark.parametrize(
    "change",
    [
        lambda key: key.update(format="hyper-sd votes 1"),
        lambda key: key.pop("pairs"),
        lambda key: key["pairs"][0].update(left="0" * 16),
        lambda key: key["pairs"][0].update(right=key["pairs"][0]["left"]),
        lambda key: key.update(arms=["base", "other"]),
        lambda key: key["pairs"][0].update(first=len(key["pairs"])),
        lambda key: key["pairs"][1].update(first=-2),
        lambda key: key["pairs"][1].update(first=0),
    ],
)
def test_damaged_key_is_refused(tmp_path, change):
    save_key(plan_comparison(write_arms(tmp_path)), tmp_path)
    key = read(tmp_path)
    change(key)
    (tmp_path / KEY).write_text(json.dumps(key), encoding="utf-8")
    with pytest.raises(EvaluationError, match="no key of a comparison"):
        load_key(tmp_path)


def test_folder_without_a_key_is_named(tmp_path):
    with pytest.raises(EvaluationError, match=r"no comparison\.json in .*give the folder"):
        load_key(tmp_path)


def test_what_cannot_be_compared_is_refused_with_what_to_do(tmp_path):
    base, hyper = write_arms(tmp_path)
    with pytest.raises(EvaluationError, match="at least 2 folders, got 1"):
        plan_comparison([base])
    with pytest.raises(EvaluationError, match="given twice"):
        plan_comparison([base, base])
    with pytest.raises(EvaluationError, match="no folder"):
        plan_comparison([base, tmp_path / "nowhere"])
    (tmp_path / "empty").mkdir()
    with pytest.raises(EvaluationError, match="has no picture"):
        plan_comparison([base, tmp_path / "empty"])
    (others,) = write_arms(tmp_path, ["others"], names=1)
    (others / "drawing-000.png").rename(others / "else.png")
    with pytest.raises(EvaluationError, match="the same file name in every folder"):
        plan_comparison([base, others])
    with pytest.raises(EvaluationError, match="No picture of others has a partner"):
        plan_comparison([base, hyper, others])
    (hyper / "drawing-000.jpg").write_bytes(b"")
    with pytest.raises(EvaluationError, match=r"both drawing-000\.jpg and drawing-000\.png"):
        plan_comparison([base, hyper])
    with pytest.raises(EvaluationError, match="limit must be at least 1, got 0"):
        comparison_of(4, limit=0)


def test_deeply_nested_key_is_refused(tmp_path):
    (tmp_path / KEY).write_text("[" * 100_000, encoding="utf-8")
    with pytest.raises(EvaluationError, match="no key of a comparison"):
        load_key(tmp_path)
