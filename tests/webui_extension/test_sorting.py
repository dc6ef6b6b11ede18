"""The option "Sort by score" on the stub host, with the scorers that come with the pack."""

from types import SimpleNamespace

import pytest
from hyper_sd.models.embedded import SCORERS as FILE
from hyper_sd.rewards import embedded
from hyper_sd.rewards.ranking import noted_title, score_note
from hyper_sd.rewards.table import SCORERS
from hyper_sd.tests.webui_extension.lora_files import FOUR, place
from hyper_sd.tests.webui_extension.sorting_jobs import BEST, QUALITY, ids, job_of, panel, pixels, values
from hyper_sd.tests.webui_extension.stub_gallery import deliver
from hyper_sd.webui_extension.settings_table import SCORE_KEY, TABLE, read_settings

pytest.importorskip("transformers", reason="the hosts' own requirement")


def test_gallery_and_all_that_runs_beside_it_are_sorted_across_the_whole_job(host, pictures):
    p = job_of()
    job = deliver(host, p, pictures)
    found = job.processed
    assert ids(found.images[1:]) == ids([pictures[i] for i in BEST])
    assert found.all_seeds == [40 + i for i in BEST]
    assert found.all_subseeds == [100 + i for i in BEST]
    assert found.all_negative_prompts == [f"not {i}" for i in BEST]
    assert found.infotexts[1:] == [job.saved[i][1] for i in BEST]
    assert [f"Seed: {seed}, " in text for seed, text in zip(found.all_seeds, found.infotexts[1:], strict=True)] == [True] * 6
    assert (found.seed, found.subseed) == (43, 103)
    assert p.all_seeds == [40 + i for i in range(6)]  # the host's own lists stay
    assert p.extra_generation_params == {}  # the API's answer has it, and a function is no JSON


def test_every_saved_picture_has_its_own_score_and_nothing_else_has_one(host, pictures):
    job = deliver(host, job_of(), pictures)
    scorer = embedded.load_quality(FILE)
    texts = [text for _, text in job.saved]
    assert [text.count(SCORE_KEY) for text in texts] == [1] * 6
    assert [text.endswith(f" ({QUALITY})") for text in texts] == [True] * 6
    for picture, value in zip(pictures, values(texts), strict=True):
        assert value == pytest.approx(scorer.score(pixels(picture), [""]).item(), rel=1e-3)
    assert values(job.processed.infotexts[1:]) == sorted(values(texts), reverse=True)
    assert not [text for text in job.others if SCORE_KEY in text]
    assert not [text for text in deliver(host, job_of(script_args=[1]), pictures).others if SCORE_KEY in text]


def test_grid_is_drawn_best_first_and_only_the_jobs_own(host, pictures):
    job = deliver(host, job_of(), pictures)
    assert ids(job.grid) == ids([pictures[i] for i in BEST])
    assert job.processed.info == job.processed.infotexts[0]
    other = SimpleNamespace(imgs=list(pictures), cols=3, rows=2)
    for callback in host.callbacks["on_image_grid"]:
        callback(other)
    assert ids(other.imgs) == ids(pictures)


def test_grid_is_sorted_once_where_the_scripts_bodies_were_reloaded(host, pictures):
    (callback,) = host.callbacks["on_image_grid"]
    host.callbacks["on_image_grid"].append(callback)
    assert ids(deliver(host, job_of(), pictures).grid) == ids([pictures[i] for i in BEST])


def test_job_without_a_grid_begins_with_the_best(host, pictures):
    found = deliver(host, job_of(do_not_save_grid=True), pictures).processed
    assert ids(found.images) == ids([pictures[i] for i in BEST])
    assert found.info == found.infotexts[0]
    assert "Seed: 43, " in found.info


def test_masks_stay_behind_their_pictures(host, pictures):
    host.shared.opts.data |= {"return_mask": True, "return_mask_composite": True}
    job = deliver(host, job_of(mask_for_overlay=object()), pictures, masks=2)
    expected = [entry for i in BEST for entry in (pictures[i], *[f"mask of {id(pictures[i])}"] * 2)]
    assert [str(entry) for entry in job.processed.images[1:]] == [str(entry) for entry in expected]
    assert [str(entry) for entry in job.grid] == [str(entry) for entry in expected]
    assert values(job.processed.infotexts[1:]) == sorted(values(job.processed.infotexts[1:]), reverse=True)


def test_options_for_masks_change_nothing_where_there_is_no_mask(host, pictures):
    host.shared.opts.data |= {"return_mask": True, "return_mask_composite": True}
    assert ids(deliver(host, job_of(), pictures).processed.images[1:]) == ids([pictures[i] for i in BEST])


def test_pictures_that_another_extension_appends_stay_at_the_end(host, pictures, monkeypatch):
    script, seen = host.scripts[0], []
    original = script.postprocess

    def after_another(p, processed, *values):
        processed.images.append("hint")
        original(p, processed, *values)
        seen.extend(processed.images)

    monkeypatch.setattr(script, "postprocess", after_another, raising=False)
    deliver(host, job_of(), pictures)
    assert seen[0] == "grid"
    assert seen[-1] == "hint"
    assert ids(seen[1:-1]) == ids([pictures[i] for i in BEST])


def test_interrupted_job_sorts_what_there_is(host, pictures):
    found = deliver(host, job_of(), pictures, stop_after=2).processed
    assert ids(found.images[1:]) == ids([pictures[i] for i in (3, 1, 0, 2)])
    assert found.all_seeds == [43, 41, 40, 42, 44, 45]
    assert found.all_prompts == ["cat"] * 6


@pytest.mark.parametrize("stop_after", [0, 1])
def test_job_of_none_or_one_picture_is_no_trouble(host, pictures, stop_after):
    job = deliver(host, job_of(batch_size=1, n_iter=2), pictures, stop_after=stop_after)
    assert ids(job.processed.images) == ids(pictures[:stop_after])
    assert not job.processed.comments
    assert [SCORE_KEY in text for text in job.processed.infotexts] == [True] * stop_after


def test_without_the_option_nothing_is_touched_or_read(host, pictures, monkeypatch):
    from hyper_sd.webui_extension import scoring

    monkeypatch.setattr(scoring, "load", lambda *given: pytest.fail("a scorer was read"))
    p = job_of(args=panel("none"))
    job = deliver(host, p, pictures)
    assert ids(job.processed.images[1:]) == ids(pictures) == ids(job.grid)
    assert job.processed.all_seeds is p.all_seeds
    assert p.extra_generation_params == {}


def test_panel_that_is_on_sorts_too(host, pictures):
    place(host, FOUR)
    job = deliver(host, job_of(args=panel(enabled=True)), pictures)
    assert ids(job.processed.images[1:]) == ids([pictures[i] for i in BEST])
    assert all("Hyper-SD LoRA" in text for text in job.processed.infotexts)


def test_the_api_may_name_the_scorer_or_its_title(host, pictures):
    for name in ("embedded_quality", QUALITY):
        job = deliver(host, job_of(args=[{"sort_by": name}, *panel("none")[1:]]), pictures)
        assert ids(job.processed.images[1:]) == ids([pictures[i] for i in BEST])
    p = job_of(args=[{"sort_by": "beauty"}, *panel("none")[1:]])
    deliver(host, p, pictures)
    assert "Sort by score: got 'beauty', allowed is none (None), clip (CLIP score)" in p.comments[0]


def test_script_that_lays_out_pictures_has_them_scored_in_its_order(host, pictures):
    p = job_of(script_args=[3, False])
    job = deliver(host, p, pictures)
    assert ids(job.processed.images[1:]) == ids(pictures) == ids(job.grid)
    assert all(SCORE_KEY in text for text in job.processed.infotexts[1:])
    assert p.comments == [
        "Hyper-SD: the pictures are scored, but stay in the order of the script that is chosen, which lays them out itself."
    ]


def test_list_that_another_extension_has_changed_is_left_as_it_is(host, pictures, monkeypatch):
    script, seen = host.scripts[0], []
    original = script.postprocess

    def after_another(p, processed, *values):
        del processed.images[-1]
        original(p, processed, *values)
        seen.append(processed)

    monkeypatch.setattr(script, "postprocess", after_another, raising=False)
    p = job_of()
    deliver(host, p, pictures)
    assert ids(seen[0].images[1:]) == ids(pictures[:5])
    assert "the pictures are not sorted: not every picture has a score" in seen[0].comments
    assert "not every picture" in p.extra_generation_params["Hyper-SD problem"]


@pytest.mark.parametrize("scorer_id", SCORERS)
def test_infotext_brings_the_option_back_and_any_other_leaves_it(scorer_id):
    spec = next(spec for spec in TABLE if spec.name == "sort_by")
    note = score_note(27.3141, SCORERS[scorer_id].title)
    assert note == f"27.31 ({SCORERS[scorer_id].title})"
    pasted = spec.pasted({SCORE_KEY: note})
    assert pasted in spec.choices  # what the page's list shows
    assert spec.read(pasted) == scorer_id
    for other in ({}, {SCORE_KEY: "27.31"}, {SCORE_KEY: "27.31 (a score of tomorrow)"}, {"Hyper-SD variant": "auto"}):
        assert spec.pasted(other) is None


def test_notes_are_read_back():
    assert score_note(-1.23456, "ImageReward") == "-1.235 (ImageReward)"
    assert score_note(0.28312, "HPS v2.1") == "0.2831 (HPS v2.1)"
    assert [noted_title(text) for text in ("1 (a (b))", " 1 (a) ", "", "(a)", "x y (a)")] == ["a (b)", "a", None, None, None]


def test_page_shows_a_lists_default_by_its_label(host):
    shown = {spec.name: control for spec, control in zip(TABLE, host.scripts[0].controls, strict=True) if spec.choices}
    assert {name: control.value for name, control in shown.items()} == {
        "variant": "auto",
        "sort_by": "None",
        "method": "by the file",
    }
    assert all(control.value in control.choices for control in shown.values())


def test_option_comes_after_the_older_ones_of_a_plain_list_and_is_off():
    assert [spec.name for spec in TABLE[-2:]] == ["sort_by", "method"]
    assert read_settings([True, 4], {}).sort_by == "none"
    assert not TABLE[-2].axis
