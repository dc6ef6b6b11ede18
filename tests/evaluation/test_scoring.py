"""Scores are kept by picture, and only what is new is measured."""

import json

import pytest
import torch
from hyper_sd.errors import EvaluationError, RewardError
from hyper_sd.evaluation import features, scoring
from hyper_sd.evaluation.drawing import draw, missing
from hyper_sd.evaluation.plan import Model
from hyper_sd.evaluation.prompts import all_labels
from hyper_sd.evaluation.scoring import EMBEDDED, choose_metrics, measure, read_picture
from hyper_sd.models.embedded import SCORERS, TOKENIZER
from hyper_sd.rewards.embedded import load_match
from hyper_sd.rewards.table import load
from hyper_sd.tests.evaluation.evaluations import Painter, make_plan

pytest.importorskip("transformers")


def drawn(plan, out):
    list(draw(plan, out, missing(plan, out), Painter()))
    return plan


@pytest.fixture
def looked_at(monkeypatch):
    """How many pictures were scored, and how many had features made, in order."""
    counts, score_all, batches = [], scoring.score_all, scoring._batches

    def counted(scorer, images, *rest):
        counts.append((type(scorer).__name__, len(images)))
        return score_all(scorer, images, *rest)

    def seen(jobs, out, title, report):
        if title.startswith("features"):
            counts.append(("features", len(jobs)))
        return batches(jobs, out, title, report)

    monkeypatch.setattr(scoring, "score_all", counted)
    monkeypatch.setattr(scoring, "_batches", seen)
    return counts


def total(counts):
    found = {}
    for name, count in counts:
        found[name] = found.get(name, 0) + count
    return found


def test_scores_are_those_of_the_scorers(tmp_path):
    plan = drawn(make_plan(("pear", "wolf"), 2), tmp_path)
    scores = measure(plan, tmp_path, EMBEDDED, [])
    jobs = list(plan.jobs())
    pictures = torch.stack([read_picture(job.path(tmp_path)) for job in jobs])
    for metric in EMBEDDED:
        expected = load(metric, []).score(pictures, [job.prompt for job in jobs])
        found = torch.tensor([scores.by_metric[metric][plan.key(job)] for job in jobs])
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)
    match = load_match(SCORERS, TOKENIZER)
    features = torch.stack([scores.features[plan.key(job)] for job in jobs])
    torch.testing.assert_close(features, match.pictures(pictures), rtol=1e-4, atol=1e-5)
    nearest = (features @ match.words(all_labels()).T).argmax(1)
    right = [float(all_labels()[place] == job.prompt) for place, job in zip(nearest, jobs, strict=True)]
    assert [scores.right[plan.key(job)] for job in jobs] == right


def test_second_run_scores_only_what_is_new(tmp_path, looked_at):
    plan = drawn(make_plan(("pear", "wolf"), 1), tmp_path)
    first = measure(plan, tmp_path, EMBEDDED, [])
    assert total(looked_at) == {"EmbeddedMatch": 6, "EmbeddedQuality": 6, "features": 6}
    looked_at.clear()
    assert measure(plan, tmp_path, EMBEDDED, []).by_metric == first.by_metric
    assert looked_at == []
    grown = drawn(make_plan(("pear", "wolf", "tiger"), 1), tmp_path)
    measure(grown, tmp_path, EMBEDDED, [])
    assert total(looked_at) == {"EmbeddedMatch": 3, "EmbeddedQuality": 3, "features": 3}


def test_interrupted_scoring_keeps_what_it_has(tmp_path, monkeypatch, looked_at):
    plan = drawn(make_plan(), tmp_path)
    monkeypatch.setattr(scoring._Kept, "EVERY", 8)

    def report(title, done, total):
        if done == 16:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        measure(plan, tmp_path, EMBEDDED[1:], [], report=report)
    looked_at.clear()
    measure(plan, tmp_path, EMBEDDED[1:], [])
    assert total(looked_at)["EmbeddedQuality"] == 24 - 16


@pytest.mark.parametrize("content", ["{", "[]", '{"format": "other", "metrics": {}}'])
def test_damaged_scores_are_measured_again(tmp_path, looked_at, content):
    plan = drawn(make_plan(("pear",), 1), tmp_path)
    (tmp_path / "scores.json").write_text(content, encoding="utf-8")
    measure(plan, tmp_path, EMBEDDED[1:], [])
    assert total(looked_at)["EmbeddedQuality"] == 3
    (tmp_path / "features" / "base-1-step-embedded.safetensors").write_bytes(b"damaged")
    measure(plan, tmp_path, EMBEDDED[1:], [])
    assert total(looked_at)["features"] == 4


def test_scores_of_another_version_of_the_scorer_do_not_count(tmp_path, looked_at):
    plan = drawn(make_plan(("pear",), 1), tmp_path)
    measure(plan, tmp_path, EMBEDDED[1:], [])
    kept = json.loads((tmp_path / "scores.json").read_text(encoding="utf-8"))
    kept["metrics"]["embedded_quality"]["files"] = "older"
    (tmp_path / "scores.json").write_text(json.dumps(kept), encoding="utf-8")
    looked_at.clear()
    measure(plan, tmp_path, EMBEDDED[1:], [])
    assert total(looked_at) == {"EmbeddedQuality": 3}


def test_prompt_that_is_no_label_has_no_retrieval(tmp_path):
    plan = drawn(make_plan(("a photo of a very red pear",), 1), tmp_path)
    assert measure(plan, tmp_path, EMBEDDED, []).right == {}


def test_wanted_metric_without_its_file_is_refused_with_how_it_is_had(tmp_path):
    with pytest.raises(RewardError, match=r"CLIP score lacks its files.*install\.py download reward-clip"):
        choose_metrics(["embedded_match", "clip"], True, [tmp_path])
    with pytest.raises(RewardError, match="no score 'beauty'"):
        choose_metrics(["beauty"], False, [tmp_path])


def test_metric_that_is_not_asked_for_and_lacks_its_file_is_left_out_and_said(tmp_path):
    chosen, left_out = choose_metrics([], False, [tmp_path])
    assert chosen == []
    assert any("ImageReward lacks its files" in reason and "download reward-image-reward" in reason for reason in left_out)
    assert choose_metrics([], True, []) == (list(EMBEDDED), [])
    assert choose_metrics(["embedded_quality", "embedded_quality"], False, []) == (["embedded_quality"], [])


def test_picture_that_cannot_be_read_says_what_to_do(tmp_path):
    plan = drawn(make_plan(("pear",), 1), tmp_path)
    path = tmp_path / "images" / "base-1-step" / "0001-0.png"
    path.write_bytes(b"damaged")
    with pytest.raises(EvaluationError, match="delete it, and the same command draws it"):
        measure(plan, tmp_path, EMBEDDED[1:], [])


def test_pictures_of_real_models_are_seen_by_clip_where_its_file_is_there(tmp_path, monkeypatch):
    model = Model("my sd15", "sd15", "abc", 512, tmp_path / "a.safetensors")
    assert scoring.features_for(make_plan(model=model), [tmp_path]).id == "embedded"
    file = tmp_path / "clip.safetensors"
    monkeypatch.setattr(scoring, "find_files", lambda ids, folders: ({ids[0]: file}, {}))
    asked = []
    monkeypatch.setattr(features, "load_sight", lambda *given: asked.append(given))
    seeing = scoring.features_for(make_plan(model=model), [tmp_path])
    seeing.load("cpu")
    assert asked == [("clip_l", {"reward-clip-vit-l-14": file}, "cpu")]
    assert seeing.title == "CLIP ViT-L/14"
    assert scoring.features_for(make_plan(), [tmp_path]).id == "embedded"
