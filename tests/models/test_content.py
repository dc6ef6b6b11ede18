"""What a file is, told without running anything of it."""

import json

import pytest
import torch
from hyper_sd.errors import UnsupportedModelError
from hyper_sd.models.content import LARGEST_TOKENIZER, require_content
from safetensors.torch import save_file


@pytest.fixture
def files(tmp_path):
    """A whole file of every kind by its ending."""
    paths = {ending: tmp_path / f"a{ending}" for ending in (".safetensors", ".pt", ".bin", ".json")}
    weights = {"weight": torch.zeros(100)}
    save_file(weights, paths[".safetensors"])
    torch.save(weights, paths[".pt"])
    torch.save(weights, paths[".bin"], _use_new_zipfile_serialization=False)
    paths[".json"].write_text(json.dumps({"model": {"vocab": {"a": 0}}}))
    return paths


def test_whole_file_of_every_kind_is_taken(files):
    for ending, path in files.items():
        require_content(path, ending)


@pytest.mark.parametrize("ending", [".safetensors", ".pt", ".json"])
def test_truncated_file_is_refused(files, ending):
    files[ending].write_bytes(files[ending].read_bytes()[:-8])
    with pytest.raises(UnsupportedModelError, match="cut off"):
        require_content(files[ending], ending)


@pytest.mark.parametrize("ending", [".safetensors", ".pt", ".bin", ".json"])
def test_page_of_an_error_is_refused_as_any_kind(files, ending):
    files[ending].write_text("<html>not found</html>")
    with pytest.raises(UnsupportedModelError, match=r"download it again|give a"):
        require_content(files[ending], ending)


@pytest.mark.parametrize(("ending", "given"), [(".safetensors", ".pt"), (".pt", ".safetensors"), (".json", ".pt")])
def test_file_of_another_kind_is_refused(files, ending, given):
    with pytest.raises(UnsupportedModelError):
        require_content(files[given], ending)


@pytest.mark.parametrize("content", ["[]", "{}", '{"model": {}}', '{"model": {"vocab": {}}}', '{"model": {"vocab": [1]}}'])
def test_other_json_is_no_tokenizer(files, content):
    files[".json"].write_text(content)
    with pytest.raises(UnsupportedModelError, match="tokenizer"):
        require_content(files[".json"], ".json")


def test_large_json_is_not_read(files):
    with files[".json"].open("r+b") as file:
        file.truncate(LARGEST_TOKENIZER + 1)
    with pytest.raises(UnsupportedModelError, match="too large"):
        require_content(files[".json"], ".json")


def test_archive_without_a_checkpoint_is_refused(tmp_path):
    import zipfile

    path = tmp_path / "a.pt"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("readme", "nothing")
    with pytest.raises(UnsupportedModelError, match="without a checkpoint"):
        require_content(path, ".pt")
