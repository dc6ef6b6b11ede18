import pickle
import re
import zipfile

import pytest
from hyper_sd.demo.checkpoint import read_checkpoint
from hyper_sd.errors import UnsupportedModelError
from hyper_sd.tests.models import synthetic_checkpoints as make

SD15 = make.full(make.sd15(), "SD1.5")
SDXL = make.full(make.sdxl(), "SDXL")


@pytest.mark.parametrize(("tensors", "family", "size"), [(SD15, "sd15", 512), (SDXL, "sdxl", 1024)])
def test_family_and_size_are_read_from_the_header(tmp_path, tensors, family, size):
    checkpoint = read_checkpoint(make.write_checkpoint(tmp_path / "model.safetensors", tensors))
    assert (checkpoint.family, checkpoint.size) == (family, size)


def test_missing_file_is_named(tmp_path):
    with pytest.raises(UnsupportedModelError, match=r"absent\.safetensors does not exist"):
        read_checkpoint(tmp_path / "absent.safetensors")


@pytest.mark.parametrize("suffix", [".ckpt", ".pt", ".bin", ".PTH"])
def test_pickle_suffix_is_refused_with_the_reason(tmp_path, suffix):
    path = tmp_path / f"model{suffix}"
    path.write_bytes(b"anything")
    with pytest.raises(UnsupportedModelError, match="can run code hidden in it"):
        read_checkpoint(path)


@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
def test_renamed_pickle_is_refused(tmp_path, protocol):
    path = tmp_path / "model.safetensors"
    path.write_bytes(pickle.dumps({"state_dict": {}}, protocol=protocol))
    with pytest.raises(UnsupportedModelError, match="pickled"):
        read_checkpoint(path)


def test_renamed_torch_zip_is_refused(tmp_path):
    path = tmp_path / "model.safetensors"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("archive/data.pkl", b"")
    with pytest.raises(UnsupportedModelError, match="pickled"):
        read_checkpoint(path)


def test_truncated_data_is_told_from_the_header(tmp_path, safetensors_file):
    with pytest.raises(UnsupportedModelError, match="cut off"):
        read_checkpoint(safetensors_file(tmp_path / "model.safetensors", [name for name, _ in SD15], cut=4))


@pytest.mark.parametrize("content", [b"", b"abc", bytes(8), b"\xff" * 16, (20).to_bytes(8, "little") + b'{"a": '])
def test_file_without_a_header_is_refused(tmp_path, content):
    path = tmp_path / "model.safetensors"
    path.write_bytes(content)
    with pytest.raises(UnsupportedModelError, match="safetensors"):
        read_checkpoint(path)


def test_lora_is_refused_with_what_to_give_instead(tmp_path, safetensors_file):
    with pytest.raises(UnsupportedModelError, match=r"full SD1\.5 or SDXL checkpoint"):
        read_checkpoint(safetensors_file(tmp_path / "lora.safetensors", ["lora_unet_down.lora_up.weight"]))


REFUSED = {
    "is the SDXL refiner, which is neither": make.full(make.refiner(), "SDXL"),
    "is SD2.x, which is neither": make.full(make.sd15(width=1024), "SD2.x"),
    "is a relative of SDXL with another number of layers, which is neither": make.full(make.ssd_1b(), "SDXL"),
    "is SD3, which is neither": make.full(make.sd3(), "flow"),
    "is FLUX.1-dev, which is neither": make.full(make.flux(), "flow"),
    "is a model of an unknown kind, which is neither": [(f"{make.PREFIX}wheels.0.weight", (8, 8)), *make.TEXT_ENCODERS["SDXL"]],
    "is only a UNet, without text encoders. Give a full SDXL checkpoint": [(make.PREFIX + n, s) for n, s in make.sdxl()],
    "it is a LoRA, a VAE or a bare UNet": make.sdxl("diffusers"),
}


@pytest.mark.parametrize("said", REFUSED)
def test_other_models_are_refused_by_their_names(tmp_path, said):
    path = make.write_checkpoint(tmp_path / "model.safetensors", REFUSED[said])
    with pytest.raises(UnsupportedModelError, match=re.escape(said)):
        read_checkpoint(path)
