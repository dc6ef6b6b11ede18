"""Hyper-SD Train LoRA that starts from a LoRA: exactly that one, or its sum with a style."""

import pytest
import torch
from hyper_sd.errors import UnsupportedModelError
from hyper_sd.tests.nodes.training.lora_runs import OBJECTIVES, changes


def test_lora_to_start_from_that_is_not_there_is_named_with_its_button(train, unet):
    with pytest.raises(UnsupportedModelError, match="Hyper-SD models and press its button"):
        train(unet, start_from="Hyper-SD unified")


@pytest.fixture
def start(unet, tmp_path, monkeypatch):
    """(name, tensors) of a LoRA for the small model in the host's folder."""
    import folder_paths
    from hyper_sd.tests.nodes.lora_world import small_lora, write

    tensors = small_lora(unet)
    kind = folder_paths.folder_names_and_paths["loras"][1]
    monkeypatch.setitem(folder_paths.folder_names_and_paths, "loras", ([str(tmp_path)], kind))
    folder_paths.filename_list_cache.pop("loras", None)
    yield write(tmp_path / "start.safetensors", tensors), tensors
    folder_paths.filename_list_cache.pop("loras", None)


@pytest.mark.parametrize(("objective", "rank"), [(OBJECTIVES[0], 4), (OBJECTIVES[1], 4), (OBJECTIVES[2], 6)])
def test_training_starts_from_the_lora_that_is_chosen(train, unet, start, objective, rank):
    name, tensors = start
    made = train(unet, objective=objective, start_from=name, rank=4, learning_rate=1e-12)  # so slow that nothing is learnt
    expected, found = changes(tensors), changes(made.lora)
    assert made.lora.metadata["hyper_sd_rank"] == str(rank)
    assert made.lora.metadata["hyper_sd_start_from"] == name
    for module, change in found.items():
        wanted = expected.get(module, torch.zeros_like(change))
        torch.testing.assert_close(change, wanted, rtol=2e-3, atol=1e-3)  # a file in float16


@pytest.mark.parametrize(("metadata", "stages"), [({"num_segments": "1"}, "1"), (None, "4-2-1")])
def test_a_lora_that_is_distilled_by_its_metadata_is_trained_on_one_segment(train, unet, start, tmp_path, metadata, stages):
    from safetensors.torch import save_file

    save_file(start[1], tmp_path / start[0], metadata)
    made = train(unet, objective=OBJECTIVES[1], start_from=start[0], rank=4, stages="auto")
    assert made.lora.metadata["hyper_sd_stages"] == stages
