"""From files of votes to a scorer, and what is said of it."""

import random
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from hyper_sd.errors import EvaluationError, RewardError
from hyper_sd.evaluation.comparison import Picture, load_key, plan_comparison, save_key
from hyper_sd.evaluation.intervals import Share, wilson
from hyper_sd.evaluation.taste import (
    FILE,
    choose_features,
    features_of_pictures,
    foreseeable,
    groups_of,
    learn_taste,
    missing_votes,
    report,
    write_taste,
)
from hyper_sd.evaluation.vote_file import Ballot, Vote, load_ballot, save_ballot
from hyper_sd.rewards.personal import FLOOR
from hyper_sd.rewards.table import MY_TASTE, load
from PIL import Image

NAMES, SIZE = 40, 32


@pytest.fixture(scope="module")
def comparison(tmp_path_factory):
    """Forty pairs of plain colours in a folder with its key."""
    folder, draw = tmp_path_factory.mktemp("comparison"), random.Random(0)
    for arm in ("one", "other"):
        (folder / arm).mkdir()
        for name in range(NAMES):
            colour = tuple(draw.randrange(256) for _ in range(3))
            Image.new("RGB", (SIZE, SIZE), colour).save(folder / arm / f"{name:02}.png")
    planned = plan_comparison([folder / "one", folder / "other"], rng=draw)
    save_key(planned, folder)
    return load_key(folder)


def ballot_of(comparison, likes, voter="0" * 8, limit=None):
    """Returns answers to all pairs by a function of (left's red, right's red, number)."""

    def red(key):
        with Image.open(comparison.pictures[key].path) as image:
            return image.getpixel((0, 0))[0]

    pairs = list(enumerate(comparison.pairs))[:limit]
    votes = (Vote(number, likes(red(pair.left), red(pair.right), number), 1.0) for number, pair in pairs)
    return Ballot(comparison.id, voter, tuple(votes))


def redder(left, right, number):
    return "left" if left > right else "right"


@pytest.fixture(scope="module")
def taste(comparison):
    seen = []
    learnt = learn_taste(comparison, [ballot_of(comparison, redder)], "embedded", progress=lambda *at: seen.append(at))
    assert seen[-1] == (2 * NAMES, 2 * NAMES)
    return learnt


def test_votes_become_a_scorer_that_likes_what_was_liked(comparison, taste, tmp_path):
    path = tmp_path / "votes.json"
    save_ballot(ballot_of(comparison, redder), path)
    again = learn_taste(comparison, [load_ballot(path, comparison)], "embedded")
    assert torch.equal(again.head.weight, taste.head.weight)
    assert write_taste(taste, tmp_path / FILE) is None
    scorer = load(MY_TASTE, [tmp_path])
    pictures = torch.tensor([[0.9, 0.2, 0.2], [0.1, 0.2, 0.2]])[:, :, None, None].expand(2, 3, SIZE, SIZE)
    red, other = scorer.score(pictures.contiguous(), ["", ""])
    assert red > other
    assert scorer.about == taste.about
    assert (taste.about.votes, taste.about.missing, taste.about.is_sure) == (NAMES, 0, True)


def test_accuracy_stands_beside_the_voters_own_agreement(taste):
    assert taste.about.low == pytest.approx(wilson(taste.accuracy.count, NAMES).low)
    assert (taste.about.ceiling, taste.agreement.total) == (1.0, 4)
    text = report(taste)
    assert f"Learnt from {NAMES} votes on {NAMES} pairs, on the demo model's own scorer." in text
    assert "the same answer came in 100% of 4 cases" in text
    assert "good enough for a reward" in text
    assert "knows small drawings alone" in text


def test_votes_by_chance_are_too_few_for_a_reward(comparison):
    draw = random.Random(3)
    taste = learn_taste(comparison, [ballot_of(comparison, lambda *_: draw.choice(["left", "right"]))], "embedded")
    assert not taste.about.is_sure
    text = report(taste)
    assert "too unsure to be used as a reward" in text
    assert "it sorts pictures all the same" in text


def test_two_voters_of_the_same_pairs_make_the_interval_no_narrower(comparison, taste):
    both = [ballot_of(comparison, redder), ballot_of(comparison, redder, "1" * 8)]
    together = learn_taste(comparison, both, "embedded")
    assert (together.about.votes, together.accuracy.total) == (2 * NAMES, NAMES)
    assert together.agreement.total == 2 * taste.agreement.total
    assert together.about.high - together.about.low >= 0.9 * (taste.about.high - taste.about.low)


def test_ties_teach_nothing_and_no_repeats_are_told(comparison):
    def undecided(left, right, number):
        return "tie" if number % 2 else redder(left, right, number)

    taste = learn_taste(comparison, [ballot_of(comparison, undecided, limit=40)], "embedded")
    assert taste.about.votes <= 22
    with pytest.raises(RewardError, match="got 0 votes"):
        learn_taste(comparison, [ballot_of(comparison, lambda *_: "tie")], "embedded")
    first = next(number for number, pair in enumerate(comparison.pairs) if pair.first is not None)
    alone = learn_taste(comparison, [ballot_of(comparison, redder, limit=first)], "embedded")
    assert alone.about.ceiling == -1
    assert "No pair was answered twice" in report(alone)


def test_votes_of_one_prompt_are_held_out_together_where_there_are_enough_prompts():
    pictures = [Picture(str(number), "one", Path(), f"prompt {number % 6}") for number in range(30)]
    assert groups_of(pictures) == [picture.prompt for picture in pictures]
    few = [replace(picture, prompt="a cat") for picture in pictures]
    assert groups_of(few) == [picture.name for picture in few]
    assert groups_of([replace(picture, prompt="") for picture in pictures]) == [picture.name for picture in pictures]


def test_missing_votes_are_those_that_bring_the_interval_above_the_floor():
    accuracy = Share(63, 100)
    missing = missing_votes(accuracy)
    assert missing > 0
    assert wilson(0.63 * (100 + missing), 100 + missing).low > FLOOR
    assert wilson(0.63 * (90 + missing), 90 + missing).low <= FLOOR
    assert missing_votes(Share(90, 100)) == 0
    assert missing_votes(Share(50, 100)) == -1


@pytest.mark.parametrize(("agreement", "share"), [(1.0, 1.0), (0.75, 0.854), (0.5, 0.5), (0.3, 0.5)])
def test_what_can_be_foreseen_follows_from_the_answers_that_are_repeated(agreement, share):
    assert foreseeable(agreement) == pytest.approx(share, abs=1e-3)


def test_older_taste_is_kept_beside_the_new_one(taste, tmp_path):
    target = tmp_path / "rewards" / FILE
    assert write_taste(taste, target) is None
    first = target.read_bytes()
    assert write_taste(taste, target).name == f"{FILE}.bak"
    assert write_taste(taste, target).name == f"{FILE}.bak1"
    assert target.with_name(f"{FILE}.bak").read_bytes() == first
    assert len(list(target.parent.iterdir())) == 3
    (tmp_path / "file").write_text("")
    with pytest.raises(EvaluationError, match="Your taste was not written"):
        write_taste(taste, tmp_path / "file" / FILE)


def test_picture_that_is_gone_is_named(comparison, tmp_path):
    for arm in ("one", "other"):
        (tmp_path / arm).mkdir()
        for name in range(6):
            Image.new("RGB", (SIZE, SIZE)).save(tmp_path / arm / f"{name}.png")
    planned = plan_comparison([tmp_path / "one", tmp_path / "other"])
    ballot = Ballot(planned.id, "0" * 8, tuple(Vote(number, "left", 1.0) for number in range(len(planned.pairs))))
    gone = tmp_path / "other" / "3.png"
    gone.write_bytes(b"no picture")
    with pytest.raises(EvaluationError, match=r"picture .*3\.png cannot be read"):
        learn_taste(planned, [ballot], "embedded")


def test_features_are_clips_only_where_its_file_is(tmp_path):
    assert choose_features("auto", [tmp_path]) == "embedded"
    assert choose_features("clip_l", [tmp_path]) == "clip_l"
    with pytest.raises(RewardError, match="no features 'dino'"):
        choose_features("dino", [tmp_path])


def test_missing_file_of_the_features_says_how_it_is_had(comparison, tmp_path):
    with pytest.raises(RewardError, match=r"a taste on CLIP ViT-L/14 lacks its files: .*download reward-clip-vit-l-14"):
        learn_taste(comparison, [ballot_of(comparison, redder)], "clip_l", [tmp_path])


def test_person_who_saved_twice_counts_once(comparison, taste):
    early = ballot_of(comparison, redder, limit=20)
    again = learn_taste(comparison, [early, ballot_of(comparison, redder)], "embedded")
    assert again.about == taste.about
    assert again.agreement == taste.agreement


def test_pictures_are_seen_as_the_page_shows_them(tmp_path):
    path, exif = tmp_path / "turned.jpg", Image.Exif()
    exif[0x0112] = 6  # to be turned by a quarter
    Image.new("RGB", (16, 32)).save(path, exif=exif)
    Image.new("I;16", (8, 8), 32768).save(tmp_path / "deep.png")
    shapes = []

    def sight(pixels):
        shapes.append((tuple(pixels.shape), round(float(pixels.mean()), 2)))
        return torch.zeros(1, 1)

    features_of_pictures([Picture("a", "x", path), Picture("b", "x", tmp_path / "deep.png")], sight, "cpu")
    assert shapes == [((1, 3, 16, 32), 0.0), ((1, 3, 8, 8), 0.5)]


def test_picture_of_absurd_size_is_refused_with_a_sentence(tmp_path, monkeypatch):
    Image.new("RGB", (64, 64)).save(tmp_path / "large.png")
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 100)
    with pytest.raises(EvaluationError, match=r"large\.png cannot be read"):
        features_of_pictures([Picture("a", "x", tmp_path / "large.png")], None, "cpu")
