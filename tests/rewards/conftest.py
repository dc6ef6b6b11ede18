"""What the tests of the scorers share: small networks by the names of the released files, in a folder of their own."""

import hashlib
from types import SimpleNamespace

import pytest
import torch
from hyper_sd.tests.rewards.small_networks import (
    QUICK,
    SIZE,
    TOWERS,
    clip_shapes,
    drawn,
    head_shapes,
    image_reward_shapes,
    open_clip_shapes,
    write_tokenizer,
)  # fmt: skip
from safetensors.torch import save_file

HELD = "reward-clip-vit-b-32 reward-clip-vit-l-14 reward-aesthetic-v2 reward-image-reward reward-pick-score reward-hps-v2-1"


@pytest.fixture(scope="session")
def small_files(tmp_path_factory):
    """A file for every id of a scorer, small and random."""
    folder = tmp_path_factory.mktemp("rewards")
    paths = {entry_id: folder / f"{entry_id}.safetensors" for entry_id in HELD.split()}
    for entry_id in ("reward-clip-vit-b-32", "reward-image-reward", "reward-hps-v2-1"):
        paths[entry_id] = paths[entry_id].with_suffix(".pt")
    torch.save(drawn(clip_shapes(QUICK)), paths["reward-clip-vit-b-32"])
    wide = drawn(clip_shapes(_wide()))
    save_file(wide, paths["reward-clip-vit-l-14"])
    save_file(drawn(head_shapes()), paths["reward-aesthetic-v2"])
    torch.save(drawn(image_reward_shapes()), paths["reward-image-reward"])
    save_file(drawn(clip_shapes(TOWERS)), paths["reward-pick-score"])
    torch.save({"epoch": 1, "state_dict": drawn(open_clip_shapes())}, paths["reward-hps-v2-1"])
    paths["reward-clip-tokenizer"] = write_tokenizer(folder / "clip.json", 50, "<start>", "<end>")
    paths["reward-bert-tokenizer"] = write_tokenizer(folder / "bert.json", 30522, "[CLS]", "[SEP]")
    return paths


def _wide():
    from dataclasses import replace

    return replace(QUICK, width=768)


@pytest.fixture
def small(small_files, monkeypatch):
    """The scorers' classes at the small size, to whom the small files are the released ones."""
    from hyper_sd.rewards import aesthetic, clip, hps, image_reward, pick_score, weights

    known = {entry_id: hashlib.sha256(path.read_bytes()).hexdigest() for entry_id, path in small_files.items()}
    monkeypatch.setattr(weights, "released_sha256", known.get)
    monkeypatch.setattr(clip.ClipScore, "towers", QUICK)
    monkeypatch.setattr(pick_score.PickScore, "towers", TOWERS)
    monkeypatch.setattr(hps.HumanPreference, "towers", TOWERS)
    monkeypatch.setattr(aesthetic, "VIT_L_14", _wide())
    monkeypatch.setattr(image_reward, "RELEASED", SIZE)
    classes = (clip.ClipScore, aesthetic.Aesthetic, image_reward.ImageReward, pick_score.PickScore, hps.HumanPreference)
    named = {kind.__name__: (lambda kind=kind: kind.load(small_files)) for kind in classes}
    return SimpleNamespace(paths=small_files, known=known, **named)
