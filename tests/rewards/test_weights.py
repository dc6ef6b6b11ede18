"""The scorers' files: what is refused, and that nothing in a file is run."""

import pickle
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from hyper_sd.errors import RewardError
from hyper_sd.models.catalog import load_catalog
from hyper_sd.rewards import clip, weights
from hyper_sd.rewards.aesthetic import CLIP, HEAD, Aesthetic, Head
from hyper_sd.rewards.clip import ClipScore
from hyper_sd.rewards.hps import HumanPreference, from_open_clip
from hyper_sd.rewards.image_reward import RELEASED, Blip, ImageReward, from_blip
from hyper_sd.rewards.pick_score import PickScore
from hyper_sd.tests.rewards.small_networks import (
    QUICK,
    TOWERS,
    clip_shapes,
    drawn,
    head_shapes,
    image_reward_shapes,
    open_clip_shapes,
)  # fmt: skip
from safetensors.torch import save_file

LOADED = {
    ClipScore: "reward-clip-vit-b-32", Aesthetic: CLIP, ImageReward: "reward-image-reward",
    PickScore: "reward-pick-score", HumanPreference: "reward-hps-v2-1",
}  # fmt: skip
each = pytest.mark.parametrize(("kind", "entry_id"), LOADED.items(), ids=[kind.__name__ for kind in LOADED])


class Intruder:
    """What a pickle may hold: it writes a file when it is read."""

    def __init__(self, path: Path):
        self.path = path

    def __reduce__(self):
        return (Path.touch, (self.path,))


@each
def test_truncated_file_is_told_with_its_remedy(small, tmp_path, kind, entry_id):
    path = tmp_path / small.paths[entry_id].name
    path.write_bytes(small.paths[entry_id].read_bytes()[:-100])
    with pytest.raises(RewardError, match=f"cannot be read.*cut off.*download {entry_id}"):
        kind.load({**small.paths, entry_id: path})


@each
def test_missing_file_is_told_with_its_remedy(small, tmp_path, kind, entry_id):
    with pytest.raises(RewardError, match=f"is not there. Download .* or run `python install.py download {entry_id}`"):
        kind.load({**small.paths, entry_id: tmp_path / small.paths[entry_id].name})


@each
def test_file_of_another_model_is_told_by_what_does_not_fit(small, tmp_path, monkeypatch, kind, entry_id):
    path = tmp_path / "other.safetensors"
    save_file(drawn(head_shapes()), path)
    monkeypatch.setattr(weights, "released_sha256", lambda _: weights.sha256_of(path))
    with pytest.raises(RewardError, match=r"file of another model \(.* is missing and \d+ more\)"):
        kind.load({**small.paths, entry_id: path})


def test_file_with_another_shape_or_one_too_many_is_told(small, tmp_path):
    path, shapes = tmp_path / "other.safetensors", clip_shapes(TOWERS)
    save_file(drawn({**shapes, "visual_projection.weight": (16, 33)}), path)
    with pytest.raises(RewardError, match=r"visual_projection.weight is \(16, 33\) and not \(16, 32\)"):
        PickScore.load({**small.paths, "reward-pick-score": path})
    save_file(drawn({**shapes, "more": (1,)}), path)
    with pytest.raises(RewardError, match="more is too much"):
        PickScore.load({**small.paths, "reward-pick-score": path})


def test_another_clip_of_the_same_width_is_refused_for_the_aesthetic_head(small, tmp_path):
    path = tmp_path / "other.safetensors"
    save_file(drawn(clip_shapes(replace(QUICK, width=768)), seed=5), path)
    with pytest.raises(RewardError, match="fits other CLIPs too, and its scores are nonsense on them") as caught:
        Aesthetic.load({**small.paths, CLIP: path})
    said = str(caught.value)
    assert "CLIP ViT-L/14" in said
    assert small.known[CLIP][:12] in said
    assert f"download {CLIP}" in said


def test_released_hash_of_the_aesthetic_clip_is_in_the_catalogue():
    assert weights.released_sha256(CLIP) == "a2bf730a0c7debf160f7a6b50b3aaf3703e7e88ac73de7a314903141db026dcb"
    assert weights.released_sha256(HEAD) is None


@pytest.mark.parametrize("entry_id", ["reward-clip-vit-b-32", "reward-image-reward", "reward-hps-v2-1"])
@pytest.mark.parametrize("is_old", [False, True])
def test_checkpoint_of_other_content_is_not_opened(small, tmp_path, entry_id, is_old):
    path, mark = tmp_path / "other.pt", tmp_path / "mark"
    torch.save({"x": Intruder(mark)}, path, _use_new_zipfile_serialization=not is_old)
    with pytest.raises(RewardError, match="opened only where its content is known"):
        weights.read_tensors(path, entry_id)
    assert not mark.exists()


@pytest.mark.parametrize("is_old", [False, True])
def test_code_in_a_checkpoint_is_not_run_even_where_its_hash_is_known(tmp_path, monkeypatch, is_old):
    path, mark = tmp_path / "other.pt", tmp_path / "mark"
    torch.save({"x": Intruder(mark)}, path, _use_new_zipfile_serialization=not is_old)
    monkeypatch.setattr(weights, "released_sha256", lambda _: weights.sha256_of(path))
    with pytest.raises(RewardError, match="cannot be read"):
        weights.read_tensors(path, "reward-image-reward")
    assert not mark.exists()


def test_old_checkpoint_is_read_like_a_new_one(tmp_path, monkeypatch):
    path = tmp_path / "old.bin"
    torch.save({"weight": torch.arange(3.0), "step": 7}, path, _use_new_zipfile_serialization=False)
    monkeypatch.setattr(weights, "released_sha256", lambda _: weights.sha256_of(path))
    tensors = weights.read_tensors(path, "reward-clip-vit-b-32")
    assert tensors["weight"].tolist() == [0, 1, 2]
    assert tensors.keys() == {"weight"}


def test_checkpoint_that_holds_no_names_is_refused(tmp_path, monkeypatch):
    path = tmp_path / "list.pt"
    torch.save([torch.zeros(3)], path)
    monkeypatch.setattr(weights, "released_sha256", lambda _: weights.sha256_of(path))
    with pytest.raises(RewardError, match="holds no tensors by name"):
        weights.read_tensors(path, "reward-image-reward")


def test_plain_pickle_is_no_checkpoint(tmp_path):
    path, mark = tmp_path / "plain.pt", tmp_path / "mark"
    path.write_bytes(pickle.dumps(Intruder(mark)))
    with pytest.raises(RewardError, match="no checkpoint of torch"):
        weights.read_tensors(path, "reward-image-reward")
    assert not mark.exists()


def test_network_is_whole_and_in_float32_whatever_the_file_has(tmp_path):
    path = tmp_path / "half.safetensors"
    save_file({name: value.half() for name, value in drawn(clip_shapes(TOWERS)).items()}, path)
    network = weights.filled(TOWERS.build, weights.read_tensors(path, "reward-pick-score"), path, "reward-pick-score")
    held = [*network.named_parameters(), *network.named_buffers()]
    assert not [name for name, value in held if value.is_meta]
    assert {value.dtype for _, value in network.named_parameters()} == {torch.float32}
    assert network.vision_model.embeddings.position_ids.tolist() == [list(range(17))]


def test_names_of_open_clip_become_those_of_transformers():
    with torch.device("meta"):
        wanted = {name for name, _ in TOWERS.build().named_parameters()}
    tensors = drawn(open_clip_shapes()) | {"attn_mask": torch.zeros(12, 12)}
    found = from_open_clip(tensors)
    assert found.keys() == wanted
    fused = tensors["transformer.resblocks.1.attn.in_proj_weight"]
    parts = [found[f"text_model.encoder.layers.1.self_attn.{part}_proj.weight"] for part in "qkv"]
    assert torch.equal(torch.cat(parts), fused)
    assert torch.equal(found["visual_projection.weight"], tensors["visual.proj"].T)
    assert from_open_clip({"odd": fused, "visual.transformer.resblocks.0.odd": fused}).keys() == {
        "odd", "vision_model.encoder.layers.0..odd",
    }  # fmt: skip


def test_what_image_reward_never_reads_is_left_out():
    found = from_blip(drawn(image_reward_shapes()))
    assert not [name for name in found if name.startswith(("blip.", "mlp."))]


def test_missing_package_is_told(monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "transformers", None)
    with pytest.raises(RewardError, match="pip install transformers"):
        clip.VIT_B_32.build()


def _bytes(network) -> int:
    return sum(value.numel() * 4 for value in network.state_dict().values())


@pytest.mark.parametrize(
    ("entry_id", "build", "share"),
    [
        ("reward-clip-vit-b-32", clip.VIT_B_32.build, 1),
        ("reward-clip-vit-l-14", clip.VIT_L_14.build, 1),
        ("reward-aesthetic-v2", Head, 1),
        ("reward-image-reward", lambda: Blip(RELEASED), 1),
        ("reward-pick-score", clip.VIT_H_14.build, 1),
        ("reward-hps-v2-1", clip.VIT_H_14.build, 0.5),  # in half precision
    ],
)
def test_network_of_the_released_size_has_the_bytes_of_the_released_file(entry_id, build, share):
    with torch.device("meta"):
        network = build()
    entry = load_catalog().get(entry_id)
    exact = 5e-4 if entry.size else 4e-3
    assert share * _bytes(network) == pytest.approx(entry.approximate_size, rel=exact)
