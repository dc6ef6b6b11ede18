"""The training nodes on the real host: a folder to learn from, what is encoded of it, and runs of a few steps."""

from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from hyper_sd.tests.nodes.training import small_sd15
from hyper_sd.tests.nodes.training.lora_runs import NODE, OBJECTIVES, QUICK, sent
from hyper_sd.tests.nodes.training.training_folder import SIZES, write

OUTPUTS = "model", "lora", "loss_map", "steps", "samples", "one_step", "feedback"


@pytest.fixture
def folders(host, tmp_path, monkeypatch):
    """Input and user folders of the host that belong to the test."""
    import folder_paths

    monkeypatch.setattr(folder_paths, "input_directory", str(tmp_path / "input"))
    monkeypatch.setattr(folder_paths, "user_directory", str(tmp_path / "user"))
    (tmp_path / "input").mkdir()
    return tmp_path


@pytest.fixture
def emoji(folders) -> Path:
    """A folder of three images below the host's input folder, two with the caption "blue", one with "red"."""
    folder = folders / "input" / "emoji"
    for number, name in enumerate(SIZES):
        write(folder, name, "red" if name == "b" else "blue", SIZES[name], number)
    return folder


@pytest.fixture
def data(pack, demo):
    """Runs the node with the embedded model's CLIP and VAE; returns latents, positive, negative and summary."""

    def run(folder="", resolution=128, **options):
        given = {"clip": demo[1], "vae": demo[2], "folder": str(folder), "resolution": resolution, **options}
        return pack["HyperSDTrainingData"].execute(**given).args

    return run


@pytest.fixture
def calls(demo, monkeypatch):
    """What was encoded: the shape of each VAE call, the tokens of each CLIP call."""
    seen = {"vae": [], "clip": []}

    def counted(owner, method, name):
        original = getattr(owner, method)

        def run(argument, *rest, **named):
            seen[name].append(argument)
            return original(argument, *rest, **named)

        monkeypatch.setattr(owner, method, run)

    counted(demo[2], "encode", "vae")
    counted(demo[1], "encode_from_tokens_scheduled", "clip")
    return seen


@pytest.fixture
def unet(host, monkeypatch):
    """A still smaller SD1.5-type model, of one level."""
    one_level = {"channel_mult": [1], "num_res_blocks": [1], "transformer_depth": [1]}
    for name, value in one_level.items():
        monkeypatch.setitem(host.UNET, name, value)
    monkeypatch.setitem(host.OUTPUTS, "transformer_depth_output", [1, 1])
    return host.small_unet()


@pytest.fixture
def train(host, pack, tmp_path, monkeypatch):
    """Runs the node in an output folder of its own; train(model, folder="..", **inputs) -> its outputs by name."""
    import folder_paths
    from hyper_sd.training import preview

    monkeypatch.setattr(preview, "STEPS", (1, 2))

    def run(model, folder="a", **changes):
        monkeypatch.setattr(folder_paths, "output_directory", str(tmp_path / folder))
        captions = [entry for seed in (1, 2, 3) for entry in host.conditioning(seed)]
        given = {
            "latents": [host.latent(3, seed=1, size=8)], "positive": [captions], "negative": [host.conditioning(4)],
            "objective": OBJECTIVES[0], "preset": "Small", "name": "my_style", **QUICK, **changes,
        }  # fmt: skip
        outputs = pack[NODE].execute(model=[model], **sent(**given)).args
        return SimpleNamespace(
            **dict(zip(("model", "lora", "loss_map", "steps", "samples", "one_step", "feedback"), outputs, strict=True))
        )

    return run


@pytest.fixture(scope="session")
def sd15_checkpoint(host, tmp_path_factory):
    """A small SD1.5 checkpoint that the host's own loaders take; it holds the UNet alone."""
    with torch.inference_mode(False):
        return small_sd15.write(host, tmp_path_factory.mktemp("sd15") / "small.safetensors")


@pytest.fixture
def train_sd15(train):
    """Trains a MODEL of sd15_checkpoint for two steps through the node; train_sd15(model, folder) -> its outputs by name."""

    def run(model, folder):
        texts = {"positive": [small_sd15.conditioning(1)], "negative": [small_sd15.conditioning(2)]}
        return train(model, folder, objective="style finetune", steps=2, **texts)

    return run
