"""Hyper-SD Training Data on the real host: IMAGE batches, latents from elsewhere, and the host's own training on them."""

import importlib

import pytest
import torch
from hyper_sd.errors import TrainingError
from hyper_sd.tests.nodes.training.training_folder import as_image, prompt, same


def test_image_batch_with_a_caption_each_equals_the_hosts_encoding(host, data, demo, emoji):
    images = torch.cat([as_image(emoji / "a.png"), as_image(emoji / "b.png")])
    (latents,), (positive,), negative, summary = data(images=images, captions="one\ntwo\n")
    (expected,) = host.nodes.VAEEncode().encode(demo[2], images)
    assert torch.allclose(latents["samples"], expected["samples"], atol=1e-4)
    assert same(positive[0], prompt(host, demo[1], "one")[0])
    assert same(positive[1], prompt(host, demo[1], "two")[0])
    assert same(negative[0], prompt(host, demo[1], "")[0])
    assert summary == "2 images of 128x128"


def test_one_line_captions_all_images(host, data, demo):
    _, (positive,), _, _ = data(images=torch.rand(3, 128, 128, 4), captions="one for all")
    assert len(positive) == 3
    assert all(same(entry, prompt(host, demo[1], "one for all")[0]) for entry in positive)


def test_images_of_another_size_are_brought_to_the_nearest(data):
    (latents,), _, _, summary = data(images=torch.rand(1, 150, 310, 3), captions="wide", resolution=192)
    assert latents["samples"].shape == (1, 4, 16, 32)
    assert summary == "1 image of 256x128"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"captions": "a\nb"}, "captions has 2 lines, images has 3"),
        ({"captions": ""}, "have no caption"),
        ({"captions": "x", "resolution": 512}, "128x128.*set resolution to 128"),
        ({"captions": "x", "images": None, "folder": "demo/style"}, "captions belong to the images input"),
        ({"captions": "x", "vae": None}, "vae must be wired in"),
        ({"captions": "x", "vae": None, "clip": None}, "clip and vae must be wired in"),
    ],
)
def test_images_that_cannot_be_used_are_refused(data, options, message):
    with pytest.raises(TrainingError, match=message):
        data(**{"images": torch.rand(3, 128, 128, 3), **options})


def test_captions_alone_are_prompts_with_empty_latents(host, data, demo):
    (latents,), (positive,), _, summary = data(captions="red apple\n\nrocket")
    assert latents["samples"].shape == (2, 4, 16, 16)
    assert not latents["samples"].any()
    assert same(positive[1], prompt(host, demo[1], "rocket")[0])
    assert summary == "2 prompts of 128x128"


def test_blank_caption_line_leaves_its_image_out(data):
    _, (positive,), _, summary = data(images=torch.rand(3, 128, 128, 3), captions="a\n\nc")
    assert len(positive) == 2
    assert summary.startswith("2 images of 128x128, 1 skipped: image 2 has no caption")
    assert data(images=torch.rand(3, 128, 128, 3), captions="a\n\nc", default_caption="b")[3] == "3 images of 128x128"


def test_nothing_given_says_what_may_be(data):
    with pytest.raises(TrainingError, match="nothing to train on; give a folder"):
        data()


def test_folder_and_images_share_the_groups_of_one_size(data, emoji):
    latents, positive, _, _ = data("emoji", images=torch.rand(1, 128, 128, 3), captions="x")
    assert [len(group["samples"]) for group in latents] == [len(group) for group in positive] == [4]


def test_latents_with_conditioning_are_a_group_of_their_own(host, data, emoji, positive):
    given = host.latent(2, seed=3)
    latents, conditioning, _, summary = data("emoji", latents=given, positive=positive)
    assert latents[1] is given
    assert conditioning[1] == positive * 2
    assert summary == "3 images of 128x128, 2 latents as given"


def test_latents_alone_need_no_encoders(host, pack, data, positive):
    from comfy_execution.graph import ExecutionBlocker

    latents, conditioning, negative, summary = data(latents=host.latent(), positive=positive, clip=None, vae=None)
    assert summary == "1 latent as given"
    assert latents[0]["samples"].equal(host.latent()["samples"])
    assert conditioning[0] is positive
    assert isinstance(negative, ExecutionBlocker)
    assert "wire clip" in negative.message


@pytest.mark.parametrize(
    ("count", "wired", "message"),
    [
        (3, {}, "positive has 2 entries for 3 latents"),
        (2, {"positive": None}, "wire both"),
        (2, {"latents": None}, "wire both"),
    ],
)
def test_counts_that_differ_are_refused(host, data, positive, count, wired, message):
    with pytest.raises(TrainingError, match=message):
        data(**{"latents": host.latent(count), "positive": positive * 2, **wired})


def test_hosts_own_training_node_takes_the_groups(host, pack, data, demo, folders, emoji):
    latents, positive, _, _ = data("emoji", resolution=192)
    (loss,) = host.own_training(demo[0], latents, positive, steps=1)["LOSS_MAP"]["loss"]
    assert torch.isfinite(torch.as_tensor(loss))


def test_hosts_own_training_node_takes_latents_passed_through(host, data, unet, positive, folders):
    from hyper_sd.nodes.lora_files import add_lora, read_file

    latents, conditioning, _, _ = data(latents=host.latent(2, seed=1), positive=positive)
    twice = latents * 2, conditioning * 2  # on a single group ComfyUI 0.3.75 stops by itself: its multi_res is not set
    lora = host.own_training(unet, *twice, steps=1)["LORA_MODEL"]
    saving = importlib.import_module("hyper_sd.training.export")
    blocks = saving.file_bytes(saving.ready_tensors(lora), saving.described(lora, "host", ""))
    path = saving.write_new(folders, "host", *blocks)
    trained = host.comfy.utils.load_torch_file(str(path), safe_load=True)
    patched, _ = host.comfy.sd.load_lora_for_models(unet, None, trained, 1.0, 0.0)
    assert len(patched.patches) == sum(name.endswith((".lora_down.weight", ".diff", ".diff_b")) for name in lora)
    info, tensors = read_file(path, unet)
    _, found = add_lora(unet, path, tensors, 1.0)
    assert (info.rank, found.matched) == (2, found.modules)
