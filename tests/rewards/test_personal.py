"""A person's taste: what the head learns, its file, and the scorer that it becomes."""

from dataclasses import replace

import pytest
import torch
from hyper_sd.errors import RewardError
from hyper_sd.rewards import weights
from hyper_sd.rewards.personal import FILE, FLOOR, About, find_taste, load_taste, save_taste
from hyper_sd.rewards.sights import CLIP_L, EMBEDDED, FEATURES, load_sight, network_of
from hyper_sd.rewards.table import MY_TASTE, load, own_file
from hyper_sd.rewards.taste_head import FOLDS, Head, folds_of, learn_head
from safetensors.torch import load_file, save_file

WIDTH = FEATURES[EMBEDDED].width


def votes_of(count, width=40, noise=0.0, seed=0):
    """Returns features of winners and losers, and the taste that they were chosen by."""
    generator = torch.Generator().manual_seed(seed)
    taste = torch.randn(width, generator=generator).double()
    first, other = torch.randn(2, count, width, generator=generator).double()
    lead = (first - other) @ taste + noise * torch.randn(count, generator=generator).double()
    first_wins = (lead > 0)[:, None]
    return torch.where(first_wins, first, other), torch.where(first_wins, other, first), taste


def about_of(**more):
    given = {
        "features": EMBEDDED,
        "network": network_of(EMBEDDED, {}),
        "votes": 300,
        "accuracy": 0.8,
        "low": 0.75,
        "high": 0.84,
    }
    return About(**given | more)


@pytest.fixture
def head():
    weight = torch.randn(WIDTH, generator=torch.Generator().manual_seed(1)).double()
    return Head(torch.zeros(WIDTH).double(), torch.ones(WIDTH).double(), weight / 100)


@pytest.fixture
def written(head, tmp_path):
    save_taste(tmp_path / FILE, head, about_of(ceiling=0.75))
    return tmp_path / FILE


def test_head_learns_a_linear_taste():
    winners, losers, taste = votes_of(400)
    learnt = learn_head(winners, losers, range(400))
    direction = learnt.head.weight / learnt.head.deviation
    assert torch.cosine_similarity(direction, taste, dim=0) > 0.9
    assert sum(learnt.right) > 0.85 * 400


def test_scores_of_the_pictures_that_were_seen_have_a_deviation_of_one():
    winners, losers, _ = votes_of(60)
    head = learn_head(winners, losers, range(60)).head
    assert head.score(torch.cat([winners, losers])).std() == pytest.approx(1, abs=1e-6)


def test_answers_by_chance_are_not_foreseen():
    winners, losers, _ = votes_of(300, noise=1e4)
    learnt = learn_head(winners, losers, range(300))
    assert 0.4 < sum(learnt.right) / 300 < 0.6


def test_fewer_votes_than_features_and_more_give_the_least_loss():
    for votes in (30, 90):
        winners, losers, _ = votes_of(votes, noise=5)
        differences = winners - losers
        weight = newton_of(differences, 0.01).requires_grad_()
        loss = torch.nn.functional.softplus(-differences @ weight).mean() + 0.01 * 40 / 2 * weight.square().sum()
        (slope,) = torch.autograd.grad(loss, weight)
        assert slope.abs().max() < 1e-9


def newton_of(differences, strength):
    """Returns the weight that the head's own method finds."""
    from hyper_sd.rewards.taste_head import _newton

    return _newton(differences, strength)


def test_same_votes_give_the_same_head():
    winners, losers, _ = votes_of(50, noise=3)
    one, other = (learn_head(winners, losers, range(50)) for _ in range(2))
    assert torch.equal(one.head.weight, other.head.weight)
    assert one.right == other.right


def test_votes_of_one_group_are_held_out_together():
    groups = [f"prompt {number % 12}" for number in range(60)]
    folds = folds_of(groups)
    assert all(len({int(fold) for fold, own in zip(folds, groups, strict=True) if own == group}) == 1 for group in groups)
    assert sorted(set(folds.tolist())) == list(range(FOLDS))


def test_feature_that_is_always_the_same_does_no_harm():
    winners, losers, _ = votes_of(50)
    winners[:, 3] = losers[:, 3] = 7
    assert learn_head(winners, losers, range(50)).head.weight.isfinite().all()


@pytest.mark.parametrize(("votes", "groups"), [(9, 9), (40, 4), (0, 0)])
def test_too_few_votes_or_names_are_refused(votes, groups):
    features = torch.rand(2, votes, 5)
    with pytest.raises(RewardError, match=f"from 10 votes on 5 names or more, got {votes} votes on {groups}"):
        learn_head(*features, [number % groups for number in range(votes)])


def test_gradient_reaches_the_pictures_through_the_scorer_of_the_table(written):
    scorer = load(MY_TASTE, [written.parent])
    pictures = torch.rand(2, 3, 64, 48, requires_grad=True)
    scores = scorer.score(pictures, ["", "anything"])
    assert scores.shape == (2,)
    scores.sum().backward()
    assert pictures.grad.abs().sum() > 0
    assert not any(weight.requires_grad for weight in scorer.parameters())
    assert (scorer.reads_prompt, scorer.unfit) == (False, "")
    assert "knows small drawings alone" in scorer.notice


def test_gradient_is_finite_for_a_picture_of_one_colour(written):
    pictures = torch.full((1, 3, 32, 32), 0.5, requires_grad=True)
    load(MY_TASTE, [written.parent]).score(pictures, [""]).sum().backward()
    assert pictures.grad.isfinite().all()


def test_features_of_clip_are_those_of_the_released_file_alone(small, head, tmp_path, monkeypatch):
    paths = {"reward-clip-vit-l-14": small.paths["reward-clip-vit-l-14"]}
    sight = load_sight(CLIP_L, paths)
    found = sight(torch.rand(2, 3, 40, 30))
    torch.testing.assert_close(found.norm(dim=1), torch.ones(2))
    narrow = Head(*(getattr(head, name).repeat(2)[: FEATURES[CLIP_L].width] for name in ("mean", "deviation", "weight")))
    save_taste(tmp_path / FILE, narrow, about_of(features=CLIP_L, network=network_of(CLIP_L, paths)))
    scorer = load_taste(tmp_path / FILE, paths)
    assert scorer.score(torch.rand(2, 3, 40, 30), ["", ""]).shape == (2,)
    assert scorer.notice == ""
    with pytest.raises(RewardError, match=r"my taste .* lacks its files: .*download reward-clip-vit-l-14"):
        load(MY_TASTE, [tmp_path])
    monkeypatch.setattr(weights, "released_sha256", lambda entry_id: "0" * 64)
    with pytest.raises(RewardError, match="another CLIP sees other features"):
        load_taste(tmp_path / FILE, paths)


def test_taste_under_the_floor_says_how_many_votes_are_missing(head, tmp_path):
    save_taste(tmp_path / FILE, head, about_of(accuracy=0.6, low=FLOOR, high=0.66, missing=120))
    scorer = load(MY_TASTE, [tmp_path])
    assert "about 120 more votes are missing" in scorer.unfit
    assert scorer.notice.startswith("This taste is weak: this taste is too unsure")
    assert scorer.score(torch.rand(1, 3, 16, 16), [""]).isfinite().all()
    assert "is not known" in replace(scorer.about, missing=-1).unfit
    assert not replace(scorer.about, low=FLOOR + 0.001).unfit


def test_missing_taste_says_how_one_is_had(tmp_path):
    with pytest.raises(RewardError, match=r"no taste of yours yet in .*install.py taste VOTES"):
        load(MY_TASTE, [tmp_path])
    assert own_file(MY_TASTE, [tmp_path]) == own_file("clip", [tmp_path]) == ""


def test_taste_is_found_under_another_name_unless_there_are_several(written):
    other = written.with_name("red things.safetensors")
    written.rename(other)
    save_file({"a": torch.zeros(1)}, written.with_name("other.safetensors"))
    assert find_taste([written.parent]) == other
    before = own_file(MY_TASTE, [written.parent])
    other.with_name("blue.safetensors").write_bytes(other.read_bytes())
    with pytest.raises(RewardError, match=f"several tastes .*name the one that is to be used {FILE}"):
        find_taste([written.parent])
    written.write_bytes(other.read_bytes())
    assert find_taste([written.parent]) == written
    assert own_file(MY_TASTE, [written.parent]) != before


@pytest.mark.parametrize("how", ["cut", "no taste", "other numbers", "wrong words", "other network", "not a number"])
def test_damaged_file_is_refused(written, head, how):
    content = written.read_bytes()
    if how == "cut":
        written.write_bytes(content[: len(content) // 2])
    elif how == "no taste":
        save_file(load_file(written), written)
    elif how == "other numbers":
        save_taste(written, Head(head.mean[1:], head.deviation, head.weight), about_of())
    elif how == "wrong words":
        written.write_bytes(content.replace(b'"votes":"300"', b'"votes":"3x0"'))
    elif how == "other network":
        save_taste(written, head, about_of(network="0" * 64))
    else:
        save_taste(written, Head(head.mean, head.deviation, head.weight * float("nan")), about_of())
    with pytest.raises(RewardError, match="learn your taste again"):
        load(MY_TASTE, [written.parent])


def test_unknown_features_are_refused(written, head):
    save_taste(written, head, about_of(features="dreams"))
    with pytest.raises(RewardError, match=r"no features 'dreams' .*clip_l, embedded"):
        load(MY_TASTE, [written.parent])


@pytest.mark.parametrize(("name", "value"), [("weight", float("nan")), ("mean", float("inf")), ("deviation", 0.0)])
def test_taste_of_numbers_that_cannot_be_is_refused(head, tmp_path, name, value):
    save_taste(tmp_path / FILE, replace(head, **{name: torch.full((WIDTH,), value).double()}), about_of())
    with pytest.raises(RewardError, match="numbers that no taste has"):
        load_taste(tmp_path / FILE, {})


@pytest.mark.parametrize("wrong", [{"low": float("nan")}, {"accuracy": 7.0}, {"high": float("inf")}, {"votes": -3}])
def test_taste_that_says_the_impossible_of_itself_is_refused(head, tmp_path, wrong):
    save_taste(tmp_path / FILE, head, about_of(**wrong))
    with pytest.raises(RewardError, match="is damaged"):
        load_taste(tmp_path / FILE, {})
