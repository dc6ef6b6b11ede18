"""A LoRA counted against a model's layers, by names and by sizes."""

import pytest
import torch
from hyper_sd.models.lora_fit import change_of, match, without
from hyper_sd.models.network_shapes import shapes_of


def named(module: str, **parts: tuple[int, ...]) -> dict[str, torch.Tensor]:
    """Returns empty tensors of shapes; a part's name has _ for the dot."""
    names = {"down": "lora_down.weight", "up": "lora_up.weight", "mid": "lora_mid.weight", "A": "lora_A.weight"}
    names |= {"B": "lora_B.weight", "a1": "a1.weight", "magnitude": "lora_magnitude_vector"}
    return {f"{module}.{names.get(part, part)}": torch.empty(shape, device="meta") for part, shape in parts.items()}


def test_match_counts_modules_and_names_what_is_dropped():
    tensors = named("x", down=(4, 8), up=(8, 4)) | named("y", A=(4, 8), B=(8, 4)) | named("x", magnitude=(8,))
    found = match(tensors, {"x": (8, 8)})
    dropped = ("y.lora_A.weight", "y.lora_B.weight", "x.lora_magnitude_vector")
    assert (found.matched, found.modules, found.dropped, found.is_whole) == (1, 2, dropped, False)
    assert str(found) == "1 of 2 modules matched; 3 tensors have no place in this model, such as y.lora_A.weight"
    whole = match(named("x", down=(4, 8), up=(8, 4)), {"x": (8, 8)})
    assert whole.is_whole
    assert str(whole) == "1 of 1 modules matched"


# Each with the weight that it fits, and whose outputs or inputs alone make it fit no longer.
KINDS = {
    "kohya": (named("x", down=(4, 32), up=(64, 4), alpha=()), (64, 32)),
    "PEFT": (named("x", A=(4, 32), B=(64, 4)), (64, 32)),
    "convolution": (named("x", down=(4, 32, 3, 3), up=(64, 4, 1, 1)), (64, 32, 3, 3)),
    "flattened convolution": (named("x", down=(4, 32 * 9), up=(64, 4)), (64, 32, 3, 3)),
    "LoCon in three parts": (named("x", down=(4, 32, 1, 1), mid=(4, 4, 3, 3), up=(64, 4, 1, 1)), (64, 32, 3, 3)),
    "LoHa": (named("x", hada_w1_a=(64, 4), hada_w1_b=(4, 32), hada_w2_a=(64, 4), hada_w2_b=(4, 32)), (64, 32)),
    "LoHa with a kernel": (named("x", hada_w1_a=(4, 64), hada_w1_b=(4, 32), hada_t1=(4, 4, 3, 3)), (64, 32, 3, 3)),
    "LoKr": (named("x", lokr_w1=(8, 4), lokr_w2=(8, 8)), (64, 32)),
    "LoKr in factors": (named("x", lokr_w1_a=(8, 2), lokr_w1_b=(2, 4), lokr_w2_a=(8, 2), lokr_w2_b=(2, 8)), (64, 32)),
    "LoKr with a kernel": (
        named("x", lokr_w1=(8, 4), lokr_w2_a=(2, 8), lokr_w2_b=(2, 8), lokr_t2=(2, 2, 3, 3)), (64, 32, 3, 3)
    ),
    "whole difference": (named("x", diff=(64, 32)), (64, 32)),
    "norm": (named("x", w_norm=(64,), b_norm=(64,)), (64,)),
}  # fmt: skip


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_is_compared_with_the_weight(kind):
    tensors, weight = KINDS[kind]
    assert match(tensors, {"x": weight}).matched == 1
    for other in ((weight[0] + 1, *weight[1:]), (*weight[:1], 33, *weight[2:])):
        found = match(tensors, {"x": other})
        assert (found.matched, list(found.misfits)) == (0, ["x"])
        assert f"the model's layer has {other[0]} x " in found.misfits["x"]


def test_outputs_and_inputs_that_have_changed_places_do_not_fit():
    found = match(named("x", down=(4, 64), up=(32, 4)), {"x": (64, 32)})
    assert found.matched == 0
    assert found.misfits == {"x": "its sizes are 32 x 64, the model's layer has 64 x 32"}
    assert str(found).endswith(
        "1 modules of other sizes are left out, such as x (its sizes are 32 x 64, the model's layer has 64 x 32)"
    )


def test_a_kind_or_a_weight_that_does_not_tell_its_size_fits():
    assert match(named("x", oft_blocks=(4, 16, 16)), {"x": (64, 32)}).matched == 1
    assert match(named("x", down=(4, 9), up=(7, 4)), {"x": None}).matched == 1
    assert change_of({"a1.weight": (4, 4)}) is None
    assert change_of({"lokr_w1": (4, 4), "lokr_w2_a": (4, 4)}) is None


def test_a_padded_weight_is_compared_by_its_padded_shape():
    control = named("img_in", down=(4, 128), up=(3072, 4)) | {"img_in.reshape_weight": torch.tensor([3072, 128])}
    assert match(control, {"img_in": (3072, 64)}).matched == 1
    for narrow in ((3072, 256), (3072, 64, 1, 1)):
        assert "it is padded to 3072 x 128" in match(control, {"img_in": narrow}).misfits["img_in"]
    control["img_in.reshape_weight"] = torch.tensor(3072)  # no shape at all
    assert "it is padded to 3072, " in match(control, {"img_in": (3072, 64)}).misfits["img_in"]


def test_what_does_not_fit_is_taken_out():
    tensors = named("x", down=(4, 8), up=(8, 4)) | named("y", down=(4, 9), up=(8, 4)) | {"other": torch.zeros(1)}
    found = match(tensors, {"x": (8, 8), "y": (8, 8)})
    assert set(without(tensors, found.misfits)) == {"x.lora_down.weight", "x.lora_up.weight", "other"}
    assert without(tensors, None) == tensors


class Packed(torch.Tensor):
    """A stand-in for ComfyUI-GGUF's tensor: bytes, with the shape that they stand for."""

    tensor_shape = torch.Size([64, 32])


def test_shapes_are_those_that_the_network_computes_with():
    layer = torch.nn.Linear(32, 64)
    assert shapes_of(torch.nn.Sequential(layer)) == {"0.weight": (64, 32), "0.bias": (64,)}
    layer.weight = torch.nn.Parameter(torch.zeros(64, 34, dtype=torch.uint8).as_subclass(Packed), requires_grad=False)
    assert shapes_of(layer)["weight"] == (64, 32)
    layer.weight = torch.nn.Parameter(torch.zeros(1024, 1, dtype=torch.uint8), requires_grad=False)
    assert shapes_of(layer)["weight"] == (64, 32)  # by the layer's own sizes
    layer.weight.quant_state = type("State", (), {"shape": torch.Size([8, 8])})()
    assert shapes_of(layer)["weight"] == (8, 8)
    convolution = torch.nn.Conv2d(4, 8, 3)
    convolution.weight = torch.nn.Parameter(torch.zeros(5, dtype=torch.uint8), requires_grad=False)
    assert shapes_of(convolution)["weight"] is None
    assert shapes_of(torch.nn.Conv2d(4, 8, 3, device="meta").to(torch.float8_e4m3fn))["weight"] == (8, 4, 3, 3)
