"""A folder of small captioned images, and how what is encoded of it is compared."""

from pathlib import Path

import numpy as np
import torch
from hyper_sd.training.data.examples import PROMPT
from PIL import Image

SIZES = {
    "a": (128, 128),
    "b": (128, 128),
    "wide": (200, 100),
}  # the wide one's bucket at 128 with steps of 64 is square as well


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
    """Whether two entries of CONDITIONING are equal to the last bit, but for the text that this pack's own carry."""
    keys = [entry[1].keys() - {PROMPT} for entry in (one, other)]
    pooled = [entry[1]["pooled_output"] for entry in (one, other)]
    return one[0].equal(other[0]) and keys[0] == keys[1] and pooled[0].equal(pooled[1])


def cached(folders: Path) -> list[Path]:
    return sorted(path for path in (folders / "user").rglob("*") if path.is_file())
