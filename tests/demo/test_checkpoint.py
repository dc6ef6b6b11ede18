import pickle
import zipfile

import pytest
from hyper_sd.demo.checkpoint import read_checkpoint
from hyper_sd.demo.errors import CheckpointError

UNET = "model.diffusion_model.input_blocks.0.0.weight"
SD15 = [UNET, "cond_stage_model.transformer.text_model.embeddings.token_embedding.weight"]
SDXL = [UNET, "conditioner.embedders.0.transformer.text_model.embeddings.token_embedding.weight"]


@pytest.mark.parametrize(("keys", "family", "size"), [(SD15, "sd15", 512), (SDXL, "sdxl", 1024)])
def test_family_and_size_are_read_from_the_header(tmp_path, safetensors_file, keys, family, size):
    checkpoint = read_checkpoint(safetensors_file(tmp_path / "model.safetensors", keys))
    assert (checkpoint.family, checkpoint.size) == (family, size)


def test_missing_file_is_named(tmp_path):
    with pytest.raises(CheckpointError, match=r"absent\.safetensors does not exist"):
        read_checkpoint(tmp_path / "absent.safetensors")


@pytest.mark.parametrize("suffix", [".ckpt", ".pt", ".bin", ".PTH"])
def test_pickle_suffix_is_refused_with_the_reason(tmp_path, suffix):
    path = tmp_path / f"model{suffix}"
    path.write_bytes(b"anything")
    with pytest.raises(CheckpointError, match="can run code hidden in it"):
        read_checkpoint(path)


@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
def test_renamed_pickle_is_refused(tmp_path, protocol):
    path = tmp_path / "model.safetensors"
    path.write_bytes(pickle.dumps({"state_dict": {}}, protocol=protocol))
    with pytest.raises(CheckpointError, match="pickled"):
        read_checkpoint(path)


def test_renamed_torch_zip_is_refused(tmp_path):
    path = tmp_path / "model.safetensors"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("archive/data.pkl", b"")
    with pytest.raises(CheckpointError, match="pickled"):
        read_checkpoint(path)


def test_truncated_data_is_told_from_the_header(tmp_path, safetensors_file):
    with pytest.raises(CheckpointError, match="cut off"):
        read_checkpoint(safetensors_file(tmp_path / "model.safetensors", SD15, cut=4))


@pytest.mark.parametrize("content", [b"", b"abc", bytes(8), b"\xff" * 16, (20).to_bytes(8, "little") + b'{"a": '])
def test_file_without_a_header_is_refused(tmp_path, content):
    path = tmp_path / "model.safetensors"
    path.write_bytes(content)
    with pytest.raises(CheckpointError, match="safetensors"):
        read_checkpoint(path)


def test_lora_is_refused_with_what_to_give_instead(tmp_path, safetensors_file):
    with pytest.raises(CheckpointError, match=r"full SD1\.5 or SDXL checkpoint"):
        read_checkpoint(safetensors_file(tmp_path / "lora.safetensors", ["lora_unet_down.lora_up.weight"]))


def test_other_families_are_refused(tmp_path, safetensors_file):
    keys = ["model.diffusion_model.joint_blocks.0.weight", "text_encoders.clip_l.weight"]
    with pytest.raises(CheckpointError, match="neither"):
        read_checkpoint(safetensors_file(tmp_path / "sd3.safetensors", keys))
