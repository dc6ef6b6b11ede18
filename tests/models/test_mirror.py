"""Files that the catalogue has no hash of: what the hub itself vouches for, and what a person with a mirror gets."""

import json
import struct
from dataclasses import replace

import pytest
from hyper_sd.errors import ChecksumMismatch, DownloadError
from hyper_sd.models.catalog import load_catalog
from hyper_sd.models.files import UNVERIFIED, index_folders, look
from hyper_sd.models.model_check import require_model
from hyper_sd.models.progress import State
from hyper_sd.tests.models.loopback_hub import Fault
from hyper_sd.tests.models.synthetic_unets import SMALL, checkpoint, unet, write
from hyper_sd.tests.models.world import MIB, lora_bytes

SD15 = "lora_unet_down_blocks_0_attentions_0_proj_in"


@pytest.fixture
def at_hub(world, monkeypatch):
    """The world's hub is the hub itself; without this it is a mirror."""
    monkeypatch.setattr("hyper_sd.models.download.HUB", world.hub.endpoint)


@pytest.fixture
def offer(world, tmp_path, monkeypatch):
    """Has the world offer content for an entry of the catalogue, with other facts known of it."""
    monkeypatch.setattr("hyper_sd.models.model_check.SDXL", SMALL)

    def put(content: bytes, entry_id: str = "hyper-sdxl-1step-unet", **known) -> None:
        world.entry = replace(
            load_catalog().get(entry_id), **{"approximate_size": len(content), "sha256": None, "size": None, **known}
        )
        world.hub.add(world.entry.repo, world.entry.file, content)

    return put


@pytest.fixture
def small_unet(tmp_path) -> bytes:
    """A whole UNet of SDXL's kind, in small."""
    return write(tmp_path / "unet.safetensors", unet("original", SMALL)).read_bytes()


def lora_named(name: str) -> bytes:
    header = json.dumps({name: {"dtype": "U8", "shape": [8], "data_offsets": [0, 8]}}).encode()
    return struct.pack("<Q", len(header)) + header + bytes(8)


def test_small_file_in_place_of_the_unet_is_refused_before_a_byte(world, offer):
    offer(lora_bytes(50_000), approximate_size=load_catalog().get("hyper-sdxl-1step-unet").approximate_size)
    with pytest.raises(ChecksumMismatch, match="the catalogue expects about 10300000000; nothing was downloaded"):
        world.download()
    assert world.starts() == []


def test_size_far_from_the_catalogues_is_refused_although_the_hash_would_tell(world):
    world.entry = replace(world.entry, size=None, approximate_size=MIB)
    with pytest.raises(ChecksumMismatch, match="expects about"):
        world.download()
    assert world.starts() == []


def test_mirrors_file_is_taken_and_said_to_be_not_verified(world, offer, small_unet, caplog):
    offer(small_unet)
    assert world.download().read_bytes() == small_unet
    assert f"{world.entry.name} came from a mirror. {UNVERIFIED}" in caplog.text
    found = look(world.entry, index_folders([world.root]))
    assert (found.state, found.note) == (State.READY, UNVERIFIED)


def test_hub_itself_needs_no_warning(world, offer, small_unet, caplog, at_hub):
    offer(small_unet, approximate_size=0)
    assert world.download().read_bytes() == small_unet
    assert caplog.text == ""


def test_question_that_is_led_elsewhere_takes_no_token_there(world, offer, small_unet, monkeypatch):
    offer(small_unet)
    monkeypatch.setenv("HF_TOKEN", "hf_secret")
    path = f"/{world.entry.repo}/resolve/main/{world.entry.file}"
    elsewhere = f"HTTP/1.1 307 X\r\nLocation: {{cdn}}{path}\r\nConnection: close\r\n\r\n".encode()
    world.hub.faults.append(Fault(method="HEAD", raw=elsewhere))
    with pytest.raises(DownloadError):  # the other port has no file under that name
        world.download()
    assert [request.authorization for request in world.hub.requests] == ["Bearer hf_secret", None]


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("hyper-sdxl-1step-unet", "is a LoRA, not an SDXL UNet"),
        ("hyper-sdxl-1step-unet-comfyui-fp16", "is a LoRA, not an SDXL UNet"),
        ("hyper-sd15-4steps-lora", "is for SDXL, and SD1.5"),
        ("hyper-flux1-dev-8steps-lora", "is for SDXL, and FLUX"),
    ],
)
def test_other_model_of_the_right_size_is_thrown_away(world, offer, name, words, at_hub):
    offer(lora_bytes(MIB), name)
    with pytest.raises(ChecksumMismatch, match=f"is not the file that it should be, and was thrown away: .*{words}"):
        world.download()
    assert world.names == set()
    world.target.write_bytes(lora_bytes(MIB))
    assert look(world.entry, index_folders([world.root])).state is State.CORRUPT


def test_model_that_is_no_lora_is_thrown_away(world, offer, small_unet):
    offer(small_unet, "hyper-sdxl-4steps-lora")
    with pytest.raises(ChecksumMismatch, match="holds no LoRA"):
        world.download()


def test_checkpoint_is_known_by_its_header(tmp_path, monkeypatch):
    monkeypatch.setattr("hyper_sd.models.model_check.SDXL", SMALL)
    names = [(name, shape) for name, shape in checkpoint(SMALL) if name.startswith("model.")]
    path = write(tmp_path / "all.safetensors", names)
    assert require_model(path, load_catalog().get("hyper-sdxl-1step-unet-comfyui-fp16"))


def test_mirrors_file_of_which_nothing_tells_what_it_is_is_refused(world, offer):
    offer(lora_named("lora_te1_x.lora_down.weight"), "hyper-sdxl-4steps-lora", approximate_size=0)
    with pytest.raises(ChecksumMismatch, match=r"neither the sha256 nor the size .* thrown away"):
        world.download()
    assert world.names == set()


def test_scorers_file_of_which_nothing_is_known_is_refused_before_a_byte(world, offer):
    offer(lora_bytes(MIB), "reward-pick-score", approximate_size=0, file="model.safetensors", save_as=None)
    with pytest.raises(DownloadError, match="could not be told from another file; nothing was downloaded"):
        world.download()
    assert world.starts() == []


def test_same_files_of_the_hub_itself_are_taken(world, offer, at_hub):
    content = lora_named("lora_te1_x.lora_down.weight")
    offer(content, "hyper-sdxl-4steps-lora", approximate_size=0)
    assert world.download().read_bytes() == content
    offer(lora_bytes(MIB), "reward-pick-score", approximate_size=0, file="model.safetensors", save_as=None)
    assert world.download().read_bytes() == lora_bytes(MIB)
