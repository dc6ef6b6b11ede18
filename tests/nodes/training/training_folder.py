"""A folder of small captioned images, the node on the embedded model, and a count of what it encodes: fixtures and helpers."""

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

SIZES = {
    "a": (128, 128),
    "b": (128, 128),
    "wide": (200, 100),
}  # the wide one's bucket at 128 with steps of 64 is square as well


@pytest.fixture(name="folders")
def folders_fixture(host, tmp_path, monkeypatch):
    """Input and user folders of the host that belong to the test."""
    import folder_paths

    monkeypatch.setattr(folder_paths, "input_directory", str(tmp_path / "input"))
    monkeypatch.setattr(folder_paths, "user_directory", str(tmp_path / "user"))
    (tmp_path / "input").mkdir()
    return tmp_path


@pytest.fixture(name="emoji")
def emoji_fixture(folders) -> Path:
    """A folder of three images below the host's input folder, two with the caption "blue", one with "red"."""
    folder = folders / "input" / "emoji"
    for number, name in enumerate(SIZES):
        write(folder, name, "red" if name == "b" else "blue", SIZES[name], number)
    return folder


@pytest.fixture(name="data")
def data_fixture(pack, demo):
    """Runs the node with the embedded model's CLIP and VAE; returns latents, positive, negative and summary."""

    def run(folder="", resolution=128, **options):
        given = {"clip": demo[1], "vae": demo[2], "folder": str(folder), "resolution": resolution, **options}
        return pack["HyperSDTrainingData"].execute(**given).args

    return run


@pytest.fixture(name="calls")
def calls_fixture(demo, monkeypatch):
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


def write(folder: Path, name: str, caption: str | None, size=(128, 128), seed=0) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    coarse = np.random.default_rng(seed).integers(0, 256, (4, 4, 3), dtype=np.uint8)
    Image.fromarray(coarse).resize(size).save(folder / f"{name}.png")
    if caption is not None:
        (folder / f"{name}.txt").write_text(caption, encoding="utf-8")
    return folder / f"{name}.png"


def as_image(path: Path) -> torch.Tensor:
    """Returns what the host's LoadImage gives."""
    return torch.from_numpy(np.array(Image.open(path)).astype(np.float32) / 255)[None]


def prompt(host, clip, text: str) -> list:
    return host.nodes.CLIPTextEncode().encode(clip, text)[0]


def same(one: list, other: list) -> bool:
    """Whether two entries of CONDITIONING are equal to the last bit."""
    return (
        one[0].equal(other[0]) and one[1].keys() == other[1].keys() and one[1]["pooled_output"].equal(other[1]["pooled_output"])
    )


def cached(folders: Path) -> list[Path]:
    return sorted(path for path in (folders / "user").rglob("*") if path.is_file())
