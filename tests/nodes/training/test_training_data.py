"""Hyper-SD Training Data on the real host: a folder comes out as the host itself encodes it, once, whatever lies in it."""

import errno
import importlib
import json
import os

import pytest
import torch
from hyper_sd.errors import TrainingError
from hyper_sd.tests.nodes.training.training_folder import SIZES, as_image, cached, prompt, same, write


def test_latents_equal_vae_encode_of_the_same_pixels(host, data, demo, emoji):
    latents, _, _, _ = data("emoji")
    (group,) = latents
    assert group["samples"].shape == (3, 4, 16, 16)
    for number, name in enumerate("ab"):
        (expected,) = host.nodes.VAEEncode().encode(demo[2], as_image(emoji / f"{name}.png"))
        assert torch.allclose(group["samples"][number], expected["samples"][0], atol=1e-4)
    assert not torch.allclose(group["samples"][0], group["samples"][1], atol=0.1)


def test_conditioning_equals_clip_text_encode(host, data, demo, emoji):
    _, (positive,), negative, _ = data("emoji")
    assert all(
        same(entry, prompt(host, demo[1], text)[0]) for entry, text in zip(positive, ("blue", "red", "blue"), strict=True)
    )
    assert len(negative) == 1
    assert same(negative[0], prompt(host, demo[1], "")[0])


def test_caption_beyond_77_tokens_is_taken_whole(host, data, demo, emoji):
    long = "red apple, " * 60
    (emoji / "b.txt").write_text(long, encoding="utf-8")
    _, (positive,), _, _ = data("emoji")
    assert positive[1][0].shape[1] > 77
    assert same(positive[1], prompt(host, demo[1], long.strip())[0])


def test_second_run_encodes_nothing_and_gives_the_same(data, emoji, calls):
    first = data("emoji")
    assert (len(calls["vae"]), len(calls["clip"])) == (3, 3)  # blue, red and the empty prompt
    calls["vae"].clear(), calls["clip"].clear()
    second = data(emoji)  # the same folder by its whole path
    assert calls == {"vae": [], "clip": []}
    assert first[0][0]["samples"].equal(second[0][0]["samples"])
    assert all(same(one, other) for one, other in zip(first[1][0], second[1][0], strict=True))


def test_new_image_costs_itself_and_changed_caption_its_prompt(data, emoji, calls):
    data("emoji")
    calls["vae"].clear(), calls["clip"].clear()
    (emoji / "a.txt").write_text("green", encoding="utf-8")
    data("emoji")
    assert (len(calls["vae"]), len(calls["clip"])) == (0, 1)
    write(emoji, "new", "green", seed=9)
    data("emoji")
    assert (len(calls["vae"]), len(calls["clip"])) == (1, 1)


def test_other_resolution_is_encoded_anew(data, emoji, calls):
    data("emoji")
    calls["vae"].clear(), calls["clip"].clear()
    latents, _, _, summary = data("emoji", resolution=192)
    assert (len(calls["vae"]), len(calls["clip"])) == (3, 0)
    assert [group["samples"].shape for group in latents] == [(2, 4, 24, 24), (1, 4, 16, 32)]
    assert summary == "3 images in 2 sizes (2 of 192x192, 1 of 256x128)"


def test_cache_serves_the_same_weights_loaded_again_and_no_other(pack, data, demo, emoji, calls):
    data("emoji")
    calls["vae"].clear(), calls["clip"].clear()
    _, again, vae = pack["HyperSDDemoModel"].execute().args
    data("emoji", clip=again, vae=vae)
    assert calls == {"vae": [], "clip": []}
    skipping = demo[1].clone()
    skipping.clip_layer(-2)
    before = len(cached(emoji.parents[1]))
    data("emoji", clip=skipping)
    assert len(cached(emoji.parents[1])) == 2 * before


def test_weight_that_no_checkpoint_sets_counts_for_nothing(demo, data, emoji):
    encoders = importlib.import_module("hyper_sd.nodes.training.encoders")
    clip, vae = demo[1], demo[2]
    before, projection = encoders.fingerprint(clip, vae), clip.cond_stage_model.clip_l.transformer.text_projection.weight
    kept = projection.clone()
    try:
        projection.fill_(float("nan"))
        assert encoders.fingerprint(clip, vae) == before
        _, (positive,), _, _ = data("emoji")
        assert all(entry[0].isfinite().all() for entry in positive)
    finally:
        projection.copy_(kept)


def test_pooled_output_that_is_not_finite_is_left_out(demo, data, emoji, monkeypatch):
    original = demo[1].encode_from_tokens_scheduled

    def garbage(*arguments, **options):
        ((states, extras),) = original(*arguments, **options)
        return [[states, {**extras, "pooled_output": torch.full_like(extras["pooled_output"], float("inf"))}]]

    monkeypatch.setattr(demo[1], "encode_from_tokens_scheduled", garbage)
    _, (positive,), (negative,), _ = data("emoji")
    assert all(states.isfinite().all() and extras["pooled_output"] is None for states, extras in [*positive, negative])


def test_fingerprint_knows_patches_whether_applied_or_not(host, demo):
    encoders = importlib.import_module("hyper_sd.nodes.training.encoders")
    clip, vae = demo[1], demo[2]
    plain = encoders.fingerprint(clip, vae)
    patched = clip.clone()
    name, weight = next((n, w) for n, w in clip.cond_stage_model.state_dict().items() if w.ndim == 2)
    patched.add_patches({name: ("diff", (torch.full_like(weight, 0.1),))}, 0.5)
    waiting = encoders.fingerprint(patched, vae)
    host.comfy.model_management.load_model_gpu(patched.patcher)
    assert name in patched.patcher.backup
    applied = encoders.fingerprint(patched, vae)
    host.comfy.model_management.load_model_gpu(clip.patcher)
    assert waiting == applied != plain == encoders.fingerprint(clip, vae)


def test_clip_with_hooks_is_refused(host, data, demo, emoji):
    hooked = demo[1].clone()
    hooked.patcher.forced_hooks = host.comfy.hooks.HookGroup()
    with pytest.raises(TrainingError, match="carries hooks"):
        data("emoji", clip=hooked)


def test_faulty_files_are_named_and_the_others_used(data, emoji):
    write(emoji, "bare", None)
    (emoji / "cut.png").write_bytes((emoji / "a.png").read_bytes()[:200])
    (emoji / "note.png").write_text("not an image", encoding="utf-8")
    for name in ("cut", "note"):
        (emoji / f"{name}.txt").write_text("captioned", encoding="utf-8")
    latents, positive, _, summary = data("emoji")
    assert (len(latents[0]["samples"]), len(positive[0])) == (3, 3)
    assert summary.startswith("3 images of 128x128, 3 skipped: bare.png has no caption; ")
    assert "cut.png cannot be read" in summary
    assert "note.png is not a PNG, JPEG, WEBP, BMP, " in summary


def test_default_caption_takes_in_images_without_one(host, data, demo, emoji):
    write(emoji, "bare", None)
    _, (positive,), _, summary = data("emoji", default_caption="an emoji")
    assert summary == "4 images of 128x128. Note: bare.png has no caption of its own and takes default_caption"
    assert same(positive[2], prompt(host, demo[1], "an emoji")[0])


def test_what_is_not_read_is_told_beside_the_pictures_that_are(data, emoji):
    for name in ("a.caption", "x.heic", "y.heic", "z.npz"):
        (emoji / name).write_text("x", encoding="utf-8")
    (emoji / "b.txt").write_bytes("café".encode("cp1252"))
    _, _, _, summary = data("emoji")
    assert summary.startswith("3 images of 128x128, 2 skipped: x.heic and y.heic: each is a kind of picture that is not read")
    assert summary.partition(". Note: ")[2].split("; ") == [
        "b.txt is not UTF-8 and was read as Windows-1252",
        "save it as UTF-8 where letters are wrong",
        "a.caption is not used, its picture's caption stands elsewhere",
        "z.npz is neither a picture nor a caption, and is not read",
    ]


def test_many_skipped_files_are_counted(data, emoji):
    for number in range(8):
        write(emoji, f"n{number}", None)
    _, _, _, summary = data("emoji")
    assert "8 skipped: n0.png, n1.png, n2.png and 5 more: each has no caption; " in summary


def test_captions_of_a_metadata_table_are_read(host, data, demo, emoji):
    for path in emoji.glob("*.txt"):
        path.unlink()
    rows = [json.dumps({"file_name": f"{name}.png", "text": "table"}) for name in SIZES]
    (emoji / "metadata.jsonl").write_text("\n".join(rows), encoding="utf-8")
    _, (positive,), _, _ = data("emoji")
    assert same(positive[2], prompt(host, demo[1], "table")[0])


def test_empty_folder_says_what_training_takes(data, folders):
    (folders / "input" / "empty").mkdir()
    with pytest.raises(TrainingError, match=r"No usable image in .*empty \(there is no image\)"):
        data("empty")
    assert cached(folders) == []


def test_folder_that_is_not_there_is_refused_before_the_run(pack, data, folders):
    assert "nowhere is not a folder" in pack["HyperSDTrainingData"].validate_inputs(folder="nowhere")
    with pytest.raises(TrainingError, match="nowhere is not a folder"):
        data("nowhere")


def test_folder_is_found_by_a_quoted_path_and_below_the_input_folder(pack, emoji):
    for text in ("emoji", f' "{emoji}" ', str(emoji), ""):
        assert pack["HyperSDTrainingData"].validate_inputs(folder=text) is True
    assert pack["HyperSDTrainingData"].validate_inputs(folder=None) is True


def test_full_disk_leaves_nothing_half_written_and_the_run_goes_on_later(data, emoji, folders, monkeypatch, calls):
    left = iter([None, None, None, None])  # calls that succeed: three prompts and an image

    def fsync(descriptor):
        if next(left, "full") == "full":
            raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as full:
        full.setattr(os, "fsync", fsync)
        with pytest.raises(TrainingError, match="make room"):
            data("emoji")
    assert [path.suffix for path in cached(folders)] == [".safetensors"] * 4
    calls["vae"].clear(), calls["clip"].clear()
    assert data("emoji")[3] == "3 images of 128x128"
    assert (len(calls["vae"]), len(calls["clip"])) == (2, 0)


def test_interrupt_ends_between_images_and_what_was_encoded_stays(host, data, emoji, folders):
    management = host.comfy.model_management

    def stop(value, total):
        if len(cached(folders)) == 4:
            management.interrupt_current_processing()

    host.on_progress(stop)
    try:
        with pytest.raises(management.InterruptProcessingException):
            data("emoji")
    finally:
        host.on_progress(None)
        management.interrupt_current_processing(False)
    assert len(cached(folders)) in {4, 5}
    assert data("emoji")[3] == "3 images of 128x128"


def test_damaged_cache_file_is_encoded_again(data, emoji, folders, calls):
    first = data("emoji")
    cached(folders)[0].write_bytes(b"damaged")
    calls["vae"].clear(), calls["clip"].clear()
    assert data("emoji")[0][0]["samples"].equal(first[0][0]["samples"])
    assert len(calls["vae"]) + len(calls["clip"]) == 1


def test_fingerprint_changes_with_files_and_captions_only(pack, emoji):
    def state():
        return pack["HyperSDTrainingData"].fingerprint_inputs(folder="emoji", resolution=128)

    (emoji / "notes.md").write_text("mine", encoding="utf-8")
    before = state()
    (emoji / "notes.md").write_text("changed", encoding="utf-8")
    assert state() == before
    (emoji / "a.txt").write_text("another caption", encoding="utf-8")
    captioned = state()
    (emoji / "b.png").unlink()
    assert len({before, captioned, state()}) == 3
    assert pack["HyperSDTrainingData"].fingerprint_inputs(folder="") == ""


def test_link_that_leads_nowhere_is_named_and_stops_nothing(pack, data, emoji):
    try:
        (emoji / "dead.png").symlink_to(emoji / "unplugged.png")
    except OSError:
        pytest.skip("this system permits no links")
    assert pack["HyperSDTrainingData"].fingerprint_inputs(folder="emoji", resolution=128)
    *_, summary = data("emoji", default_caption="an emoji")
    assert "dead.png cannot be read" in summary


def test_resolution_zero_is_what_the_model_draws_at(host, data, demo, emoji):
    sources = importlib.import_module("hyper_sd.nodes.training.sources")
    assert data("emoji", resolution=0)[3] == "3 images of 128x128"

    def clip_of(**encoders):
        clip = demo[1].clone()
        clip.cond_stage_model = torch.nn.ModuleDict(encoders)
        return clip

    plain = torch.nn.Identity()
    assert sources.drawn_at(demo[1]) == 128
    assert sources.drawn_at(clip_of(clip_l=plain)) == 512
    assert sources.drawn_at(clip_of(clip_l=plain, clip_g=plain)) == 1024


@pytest.mark.parametrize("resolution", [1, 63])
def test_resolution_too_small_for_a_model_is_refused(data, emoji, resolution):
    with pytest.raises(TrainingError, match=f"at least 64 pixels, got {resolution}; use 0"):
        data("emoji", resolution=resolution)


def test_packs_own_folders_are_found_after_the_hosts_input(pack, folders):
    sources = importlib.import_module("hyper_sd.nodes.training.sources")
    assert pack["HyperSDTrainingData"].validate_inputs(folder="demo/model") is True
    assert sources.folder_path("demo/model") == sources.PACK / "demo" / "model"
    (folders / "input" / "demo" / "model").mkdir(parents=True)
    assert sources.folder_path("demo/model") == folders / "input" / "demo" / "model"
    assert sources.folder_path("nowhere") == folders / "input" / "nowhere"
