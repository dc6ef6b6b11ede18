"""One-step UNet files: told by their heads, mapped by rule, read and cast tensor by tensor."""

import json
import math

import pytest
import torch
from hyper_sd.errors import UnsupportedModelError
from hyper_sd.models.sdxl_unet import SDXL, UnetShape
from hyper_sd.models.tensor_file import TensorFile
from hyper_sd.models.unet_file import CLIP, PREFIX, VAE, inspect_unet, stream_tensors
from hyper_sd.tests.models import synthetic_checkpoints, synthetic_loras
from hyper_sd.tests.models.synthetic_unets import SMALL, diffusers_unet, unet, write
from hyper_sd.tests.models.synthetic_unets import checkpoint as full_checkpoint
from safetensors.torch import load_file, save_file
from torch.multiprocessing.reductions import StorageWeakRef

ORIGINAL_PARAMETERS = 2567463684  # of stabilityai/stable-diffusion-xl-base-1.0's UNet
RELEASED_BYTES = {"diffusers": 10.3e9, "checkpoint": 6.94e9}


def small(path, layout="diffusers", dtype=torch.float32, prefix="", extra=()):
    return write(path / "unet.safetensors", [*unet(layout, SMALL, prefix), *extra], dtype)


@pytest.mark.parametrize(
    "shape", [SDXL, SMALL, UnetShape(channels=64, multipliers=(1, 2), depths=(0, 3), context=96, vector=1600)]
)
def test_names_and_shapes_are_those_of_diffusers_own_class(shape):
    theirs = {name: tuple(tensor.shape) for name, tensor in diffusers_unet(shape).state_dict().items()}

    assert {tensor.diffusers: tensor.shape for tensor in shape.tensors()} == theirs


def test_names_are_unique_and_complete_at_the_real_size():
    tensors = list(SDXL.tensors())

    assert len(tensors) == 1680 == len({t.original for t in tensors}) == len({t.diffusers for t in tensors})
    assert sum(math.prod(tensor.shape) for tensor in tensors) == ORIGINAL_PARAMETERS


def test_both_released_forms_are_told_from_their_heads(tmp_path):
    plain = inspect_unet(write(tmp_path / "a.safetensors", unet("diffusers"), torch.float32, sparse=True))
    full = inspect_unet(write(tmp_path / "b.safetensors", full_checkpoint(), torch.float16, sparse=True))

    assert (plain.format, plain.has_clip, plain.has_vae, plain.dtype) == ("diffusers", False, False, torch.float32)
    assert (full.format, full.has_clip, full.has_vae, full.dtype) == ("original", True, True, torch.float16)
    assert plain.parameters == full.parameters == ORIGINAL_PARAMETERS
    assert (plain.size, full.size) == (4 * ORIGINAL_PARAMETERS, 2 * ORIGINAL_PARAMETERS)
    assert len(full.tensors) + len(full.others) == 2515
    for info, kind in ((plain, "diffusers"), (full, "checkpoint")):
        assert info.path.stat().st_size == pytest.approx(RELEASED_BYTES[kind], rel=5e-3)


@pytest.mark.parametrize("prefix", ["", PREFIX])
@pytest.mark.parametrize("layout", ["diffusers", "original"])
def test_every_layout_gives_the_same_keys_and_the_files_values(tmp_path, layout, prefix):
    path = small(tmp_path, layout, prefix=prefix)
    stored = load_file(path)
    names = {tensor.original: prefix + getattr(tensor, layout) for tensor in SMALL.tensors()}

    read = dict(stream_tensors(inspect_unet(path, SMALL), torch.float32))

    assert set(read) == set(names)
    assert all(torch.equal(tensor, stored[names[key]]) for key, tensor in read.items())


@pytest.mark.parametrize("stored", [torch.float32, torch.float16, torch.bfloat16, torch.float8_e4m3fn, torch.float64])
@pytest.mark.parametrize("wanted", [torch.float32, torch.float16, torch.bfloat16, torch.float8_e4m3fn])
def test_casts_are_torchs_own(tmp_path, stored, wanted):
    shape = UnetShape(channels=32, multipliers=(1,), depths=(1,), context=32, vector=32)
    path = write(tmp_path / "unet.safetensors", unet("original", shape), stored)
    theirs = load_file(path)

    read = dict(stream_tensors(inspect_unet(path, shape), wanted))

    assert all(tensor.dtype == wanted and tensor.shape == theirs[key].shape for key, tensor in read.items())
    assert all(torch.equal(read[key].float(), theirs[key].to(wanted).float()) for key in theirs)


def test_reading_holds_at_most_one_tensor_of_the_file(tmp_path, monkeypatch):
    info, read, alive = inspect_unet(small(tmp_path), SMALL), TensorFile.read, []

    def watched(self, start, size):
        assert all(storage.expired() for storage in alive)
        values = read(self, start, size)
        alive.append(StorageWeakRef(values.untyped_storage()))
        return values

    monkeypatch.setattr(TensorFile, "read", watched)
    for _, tensor in stream_tensors(info, torch.float16):
        assert tensor.untyped_storage().nbytes() == 2 * tensor.numel()
    assert len(alive) == len(info.tensors)


@pytest.mark.parametrize("shift", [1, 2, 3, 4, 7])
def test_tensors_at_any_byte_of_the_file_are_read(tmp_path, shift):
    path, moved = small(tmp_path), tmp_path / "moved.safetensors"
    content = path.read_bytes()
    length = int.from_bytes(content[:8], "little")
    head, rest = content[8 : 8 + length] + b" " * shift, content[8 + length :]
    moved.write_bytes(len(head).to_bytes(8, "little") + head + rest)
    stored = load_file(path)

    read = dict(stream_tensors(inspect_unet(moved, SMALL), torch.bfloat16))

    assert all(torch.equal(read[tensor.original], stored[tensor.diffusers].bfloat16()) for tensor in SMALL.tensors())


FOREIGN = {
    "an SD1.5 UNet": synthetic_checkpoints.sd15("diffusers"),
    "an SD1.5 checkpoint": synthetic_checkpoints.full(synthetic_checkpoints.sd15(), "SD1.5"),
    "an SD2.x UNet": synthetic_checkpoints.sd15(width=1024),
    "an SDXL refiner UNet": synthetic_checkpoints.refiner(),
    "an SDXL refiner checkpoint": synthetic_checkpoints.full(synthetic_checkpoints.refiner(), "SDXL"),
    "a relative of SD1.5 with another number of layers": synthetic_checkpoints.sd15()[:-1],
    "a UNet of text width 64": [("input_blocks.4.1.transformer_blocks.0.attn2.to_k.weight", (640, 64))],
    "SD3.5 Large": synthetic_checkpoints.sd3(width=2432, depth=38),
    "FLUX.1-dev": synthetic_checkpoints.flux(),
    "a ControlNet": [("controlnet_cond_embedding.conv_in.weight", (16, 3, 3, 3)), ("conv_in.weight", (320, 4, 3, 3))],
    "a FLUX model": [("double_blocks.0.img_attn.qkv.weight", (9, 3))],
    "an SD3 model": [("model.diffusion_model.joint_blocks.0.x_block.attn.qkv.weight", (9, 3))],
    "a VAE": [("decoder.conv_in.weight", (512, 4, 3, 3))],
    "a text encoder": [("text_model.encoder.layers.0.mlp.fc1.weight", (8, 8))],
    "an unknown kind of file": [("wheels.round.weight", (8, 8))],
}


@pytest.mark.parametrize("found", FOREIGN)
def test_another_kind_of_file_is_refused_and_named(tmp_path, found):
    path = synthetic_checkpoints.write_checkpoint(tmp_path / "given.safetensors", FOREIGN[found])

    with pytest.raises(UnsupportedModelError, match=f"given.safetensors is {found}.*; choose Hyper-SDXL-1step-Unet"):
        inspect_unet(path)


def test_a_lora_is_refused_with_the_way_to_use_it(tmp_path):
    path = tmp_path / "lora.safetensors"
    synthetic_loras.write_lora(path, "sdxl", rank=1)

    with pytest.raises(UnsupportedModelError, match="is a LoRA, not an SDXL UNet; add it to a model with the Hyper-SD node"):
        inspect_unet(path)


def altered(tmp_path, change, dtype=torch.float16) -> UnsupportedModelError:
    path = small(tmp_path)
    tensors = load_file(path)
    change(tensors)
    save_file(tensors, path)
    with pytest.raises(UnsupportedModelError) as caught:
        for _ in stream_tensors(inspect_unet(path, SMALL), dtype):
            pass
    return str(caught.value)


@pytest.mark.parametrize("kept", [1679, 900, 20])
def test_a_missing_tensor_is_named(tmp_path, kept):
    listed = sorted(unet("diffusers"), key=lambda tensor: "attn2.to_k" not in tensor[0])
    path = write(tmp_path / "unet.safetensors", listed[:kept], torch.float16, sparse=True)

    with pytest.raises(
        UnsupportedModelError, match=f"lacks {1680 - kept} of the 1680 tensors of an SDXL UNet, among them [a-z]+_"
    ):
        inspect_unet(path)


def test_an_inpainting_unet_is_told_by_its_shape(tmp_path):
    text = altered(tmp_path, lambda t: t.update({"conv_in.weight": torch.zeros(32, 9, 3, 3)}))
    assert "conv_in.weight is [32, 9, 3, 3], in an SDXL UNet [32, 4, 3, 3]" in text


def test_scales_of_a_quantised_unet_are_refused(tmp_path):
    text = altered(tmp_path, lambda t: t.update({"mid_block.resnets.0.conv1.scale_weight": torch.ones(1)}))
    assert "has 1 tensors that an SDXL UNet has not" in text
    assert "quantised" in text


def test_integers_in_place_of_weights_are_refused(tmp_path):
    text = altered(tmp_path, lambda t: t.update({"conv_in.bias": torch.zeros(32, dtype=torch.int8)}))
    assert "stores conv_in.bias as I8; a UNet in fp32, fp16, bf16 or fp8 is needed" in text


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_a_value_that_is_not_finite_is_refused_and_its_tensor_named(tmp_path, value, dtype):
    def spoil(tensors):
        tensors.update({name: tensor.to(dtype) for name, tensor in tensors.items()})
        tensors["mid_block.resnets.1.conv2.weight"].view(-1)[-1] = value

    assert "not finite in middle_block.2.out_layers.3.weight" in altered(tmp_path, spoil)


def test_a_value_too_large_for_the_dtype_is_refused_with_another(tmp_path):
    def spoil(tensors):
        tensors["conv_in.bias"][3] = -1e6

    assert "a value of 1e+06 in input_blocks.0.0.bias, more than float16 holds; choose fp32 or bf16" in altered(tmp_path, spoil)


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf, 500.0, -500.0])
def test_what_fp8_cannot_hold_is_refused(tmp_path, value):
    def spoil(tensors):
        tensors["conv_in.bias"][3] = value

    assert "in input_blocks.0.0.bias" in altered(tmp_path, spoil, torch.float8_e4m3fn)


def test_sums_too_large_for_the_dtype_are_not_values_too_large(tmp_path):
    path = small(tmp_path)
    tensors = load_file(path) | {"conv_in.bias": torch.full((32,), 60000.0)}
    save_file(tensors, tmp_path / "large.safetensors")

    read = dict(stream_tensors(inspect_unet(tmp_path / "large.safetensors", SMALL), torch.float16))

    assert (read["input_blocks.0.0.bias"] == 60000).all()


@pytest.mark.parametrize(
    "content", [b"", b"hello, this is a text file\n" * 50, b"\x80\x02}q\x00.", b"PK\x03\x04" + bytes(200), bytes(64)]
)
def test_a_file_of_another_kind_is_refused(tmp_path, content):
    path = tmp_path / "unet.safetensors"
    path.write_bytes(content)

    with pytest.raises(UnsupportedModelError, match=r"unet\.safetensors"):
        inspect_unet(path, SMALL)


@pytest.mark.parametrize("share", [0.1, 0.5, 0.999])
def test_a_truncated_file_is_refused(tmp_path, share):
    path = small(tmp_path)
    whole = path.read_bytes()
    path.write_bytes(whole[: int(len(whole) * share)])

    with pytest.raises(UnsupportedModelError, match="download it again"):
        inspect_unet(path, SMALL)


def test_a_file_cut_off_while_it_is_read_is_an_error_not_a_crash(tmp_path):
    path = small(tmp_path)
    stream = stream_tensors(inspect_unet(path, SMALL), torch.float16)
    next(stream)
    with path.open("r+b") as file:
        file.truncate(path.stat().st_size // 2)

    with pytest.raises(UnsupportedModelError, match="changed while it was read"):
        list(stream)


def test_a_head_that_lies_about_lengths_is_refused(tmp_path):
    path = small(tmp_path)
    content = path.read_bytes()
    length = int.from_bytes(content[:8], "little")
    header = json.loads(content[8 : 8 + length])
    header["conv_in.weight"]["data_offsets"][0] += 4
    text = json.dumps(header).encode().ljust(length)
    path.write_bytes(len(text).to_bytes(8, "little") + text + content[8 + length :])

    with pytest.raises(
        UnsupportedModelError, match=r"the data of 'conv_in\.weight' are not as long as its shape and dtype say"
    ):
        inspect_unet(path, SMALL)


def test_averaged_weights_of_a_checkpoint_are_left_alone(tmp_path):
    extra = [("model_ema.decay", (1,)), (f"{CLIP}0.transformer.text_model.x", (2,)), (f"{VAE}quant_conv.bias", (8,))]
    info = inspect_unet(small(tmp_path, "original", prefix=PREFIX, extra=extra), SMALL)

    assert info.has_clip
    assert info.has_vae
    assert set(info.others) == {name for name, _ in extra[1:]}
