"""Files that are no LoRA, or a damaged one: each is refused, and the error says what to do."""

import json
import pickle
import random

import pytest
import torch
from hyper_sd.errors import UnsupportedModelError
from hyper_sd.models.lora import load_lora_file, read_lora
from hyper_sd.tests.models.synthetic_loras import head, tensors, write_lora, write_tensors

PAIR = [("x.lora_down.weight", (4, 8), None), ("x.lora_up.weight", (8, 4), None)]


@pytest.fixture
def file(tmp_path):
    return tmp_path / "a.safetensors"


def test_file_that_is_no_safetensors_is_refused(file):
    file.write_text("a text that somebody renamed to .safetensors\n" * 9)
    with pytest.raises(UnsupportedModelError, match=r"no safetensors file; give a \.safetensors"):
        read_lora(file)
    file.write_bytes(pickle.dumps({"state_dict": {}}))
    with pytest.raises(UnsupportedModelError, match=r"pickled.*Give the \.safetensors version"):
        read_lora(file)
    torch.save({"x": torch.zeros(1)}, file)
    with pytest.raises(UnsupportedModelError, match="pickled"):
        read_lora(file)
    for content in (b"", b"1234567"):
        file.write_bytes(content)
        with pytest.raises(UnsupportedModelError, match="no safetensors file"):
            read_lora(file)


def test_file_that_is_not_there_or_a_folder_is_refused(file, tmp_path):
    for path, message in ((file, "cannot be read"), (tmp_path, "is not a file")):
        with pytest.raises(UnsupportedModelError, match=message):
            read_lora(path)


@pytest.mark.parametrize("left", [9, 1000, -1])
def test_truncated_file_is_refused(left, file):
    content = write_lora(file, "sd15", 1).read_bytes()
    file.write_bytes(content[:left])
    with pytest.raises(UnsupportedModelError, match="download it again"):
        read_lora(file)


def test_file_without_a_lora_is_refused(file):
    write_tensors(file, [("model.diffusion_model.out.2.weight", (4, 320, 3, 3), None)])
    with pytest.raises(UnsupportedModelError, match=r"holds no LoRA.*Give a LoRA file"):
        read_lora(file)
    write_tensors(file, [("x.alpha", (), 8.0)])
    with pytest.raises(UnsupportedModelError, match="holds no LoRA"):
        read_lora(file)
    write_tensors(file, [])
    with pytest.raises(UnsupportedModelError):
        read_lora(file)


@pytest.mark.parametrize(("down", "up"), [((0, 8), (8, 0)), ((4, 8), (8, 5)), ((4, 0), (8, 4)), ((32,), (8, 4)), ((4, 8), ())])
def test_weights_that_are_no_pair_are_refused(down, up, file):
    write_tensors(file, [("x.lora_down.weight", down, None), ("x.lora_up.weight", up, None)])
    with pytest.raises(UnsupportedModelError, match=r"no pair: x\.lora_down\.weight.*must be \[rank, in"):
        read_lora(file)


@pytest.mark.parametrize("kept", [0, 1])
def test_half_a_pair_is_refused(kept, file):
    write_tensors(file, PAIR[kept : kept + 1])
    missing = ("lora_up", "lora_down")[kept]
    with pytest.raises(UnsupportedModelError, match=f"incomplete: x .* not its {missing}"):
        read_lora(file)


def test_alpha_of_some_modules_only_is_refused(file):
    made = tensors("sd15", 1)
    write_tensors(file, [t for t in made if t[0] != "lora_unet_mid_block_resnets_0_conv1.alpha"])
    with pytest.raises(
        UnsupportedModelError, match="no alpha for 1 of 278 modules, such as lora_unet_mid_block_resnets_0_conv1"
    ):
        read_lora(file)


def test_alpha_that_is_no_number_is_refused(file):
    write_tensors(file, [*PAIR, ("x.alpha", (2,), 1.0)])
    with pytest.raises(UnsupportedModelError, match="alpha that is no number"):
        read_lora(file)


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), float("-inf")])
def test_values_that_are_not_finite_are_refused_by_name(bad, file):
    write_tensors(file, [*PAIR, ("y.lora_down.weight", (2, 3), bad), ("y.lora_up.weight", (3, 2), bad)])
    seen = []
    with pytest.raises(UnsupportedModelError, match=r"not finite in y\.lora_down\.weight"):
        load_lora_file(file, lambda done, count: seen.append((done, count)))
    assert seen == [(1, 4), (2, 4)]


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float8_e4m3fn])
def test_values_and_alpha_are_read_in_short_types(dtype, file):
    save_file = pytest.importorskip("safetensors.torch").save_file
    made = {"x.lora_down.weight": torch.ones(4, 8), "x.lora_up.weight": torch.ones(8, 4), "x.alpha": torch.tensor(8.0)}
    save_file({name: tensor.to(dtype) for name, tensor in made.items()}, file)
    assert read_lora(file).alpha == 8.0
    assert read_lora(file).dtype == str(dtype).removeprefix("torch.")
    load_lora_file(file)
    made["x.lora_up.weight"][3, 3] = torch.nan
    save_file({name: tensor.to(dtype) for name, tensor in made.items()}, file)
    with pytest.raises(UnsupportedModelError, match=r"x\.lora_up\.weight"):
        load_lora_file(file)


def test_damaged_heads_never_raise_anything_else(file):
    first, data = head([*PAIR, ("x.alpha", (), 8.0)], {"lora_adapter_metadata": '{"a": 1}'})
    choose = random.Random(0)
    refused = 0
    for _ in range(600):
        text = bytearray(first)
        for _ in range(choose.randint(1, 3)):
            text[choose.randrange(8, len(text))] = choose.choice(b'0123456789[]{}",:-ax')
        file.write_bytes(bytes(text) + bytes(data))
        try:
            read_lora(file)
        except UnsupportedModelError:
            refused += 1
    assert refused > 300


@pytest.mark.parametrize(
    "value", [None, 1, "x", [], {}, {"shape": [4, 8]}, {"shape": "48", "dtype": "F32"}, {"shape": [4.5], "dtype": "F32"}]
)
def test_entries_of_another_form_are_refused(value, file):
    entry = {**value, "data_offsets": [0, 4]} if isinstance(value, dict) else value
    text = json.dumps({"x.lora_down.weight": entry}).encode()
    file.write_bytes(len(text).to_bytes(8, "little") + text + bytes(4))
    with pytest.raises(UnsupportedModelError):
        read_lora(file)
