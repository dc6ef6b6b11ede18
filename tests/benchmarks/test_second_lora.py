"""The benchmark of noticing a second LoRA, with a few files, on the real host."""

import pytest
import torch


@pytest.fixture
def loras_folder(host):
    """Puts the host's loras folder back, which the benchmark replaces."""
    import folder_paths

    before = folder_paths.folder_names_and_paths["loras"]
    yield
    folder_paths.folder_names_and_paths["loras"] = before
    folder_paths.filename_list_cache.pop("loras", None)


def test_every_file_is_looked_at_and_both_looks_are_timed(loras_folder, tmp_path, monkeypatch):
    from hyper_sd.benchmarks import second_lora
    from hyper_sd.nodes import loaded_loras

    looked = []
    original = loaded_loras._is_in
    monkeypatch.setattr(loaded_loras, "_is_in", lambda path, *more: looked.append(path.parent) or original(path, *more))
    with torch.inference_mode():
        result = second_lora.measure(tmp_path, count=3, rounds=2)
    assert looked.count(tmp_path) == 3 * 2 * 2
    assert set(result["seconds"]) == set(result["fastest_ms_per_file"]) == {"first", "later"}
    assert loaded_loras._ups.cache_info().currsize >= 3
