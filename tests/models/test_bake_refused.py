"""What cannot be baked, in sentences that say what to do; and hundreds of damaged LoRAs: refused, or baked exactly."""

import random
from collections import namedtuple

import pytest
import torch
from hyper_sd import disk
from hyper_sd.errors import HyperSDError, UnsupportedModelError
from hyper_sd.models.bake import bake
from hyper_sd.models.new_file import BuildError
from hyper_sd.tests.models import bake_world as world
from hyper_sd.tests.models import synthetic_checkpoints
from safetensors.torch import load_file, save_file

FILES = 800
Usage = namedtuple("Usage", "total used free")


def few(family="sd15"):
    """Returns the layers that read the text, by which a family is known, a convolution and a text encoder's layer."""
    listed = world.layers(family)
    reading = [layer for layer in listed if layer.path.endswith("attn2.to_k")]
    return [*reading, next(x for x in listed if x.path == "conv_in"), next(x for x in listed if x.encoder)]


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    """A file with the layers of few() alone, by which it still is SD1.5."""
    path = tmp_path_factory.mktemp("few") / "base.safetensors"
    whole = world.tensors("sd15", torch.float32)
    save_file({layer.key: whole[layer.key] for layer in few()}, path)
    return path


@pytest.fixture
def target(tmp_path):
    return tmp_path / "out" / "new.safetensors"


@pytest.fixture
def lora(tmp_path):
    """Writes a LoRA over few(), with changes to its tensors, and returns its path."""

    def written(more=None, without=(), **options):
        held = {name: t for name, t in world.lora(few(), **options)[0].items() if not name.endswith(tuple(without))}
        save_file(held | (more or {}), tmp_path / "lora.safetensors")
        return tmp_path / "lora.safetensors"

    return written


MODULE = "lora_unet_conv_in"
KINDS = {
    "LoKr": {"lora_unet_x.lokr_w1": torch.ones(2, 2), "lora_unet_x.lokr_w2": torch.ones(2, 2)},
    "LoHa": {f"lora_unet_x.hada_w{i}_{half}": torch.ones(2, 2) for i in (1, 2) for half in "ab"},
    "DoRA": {f"{MODULE}.dora_scale": torch.ones(32, 1)},
    "OFT": {"lora_unet_x.oft_blocks": torch.ones(2, 2, 2)},
}


@pytest.mark.parametrize("kind", KINDS)
def test_other_kinds_are_refused_with_what_to_do(base, lora, target, kind):
    with pytest.raises(UnsupportedModelError, match=rf"is of the kind {kind}, and only a plain LoRA .* load it in the host"):
        bake(base, lora(KINDS[kind]), target)
    assert not target.parent.exists()


@pytest.mark.parametrize("name", ["diff", "diff_b", "w_norm", "set_weight", "reshape_weight", "lora_B.bias"])
def test_parts_that_are_no_product_are_refused(base, lora, target, name):
    with pytest.raises(UnsupportedModelError, match=rf"beside those of a plain LoRA, such as {MODULE}\.{name}"):
        bake(base, lora({f"{MODULE}.{name}": torch.ones(4)}), target)


@pytest.mark.parametrize(
    ("more", "said"),
    [
        ({f"{MODULE}.lora_mid.weight": torch.ones(2, 3, 3, 3)}, "weights that are no product"),
        ({f"{MODULE}.lora_up.weight": torch.ones(32, 2, 3, 3)}, "weights that are no product"),
        ({f"{MODULE}.lora_A.weight": torch.ones(2, 4, 3, 3)}, "a part of one layer twice"),
        ({f"unet.conv_in.lora_{half}.weight": torch.ones(2, 2) for half in "AB"}, "no alpha for 1 of"),
        ({f"{MODULE}.lora_up.weight": torch.ones(32, 2, 1, 1, dtype=torch.int8)}, "is stored as I8: take the file in fp32"),
        ({f"{MODULE}.alpha": torch.ones(2)}, "an alpha that is no number"),
        ({f"{MODULE}.alpha": torch.tensor(float("nan"))}, "not finite"),
        ({f"{MODULE}.lora_up.weight": torch.full((32, 2, 1, 1), float("inf"))}, "not finite"),
        ({"lora_te_text_model_encoder_layers_0_self_attn_q_proj.alpha": torch.ones(3)}, "an alpha that is no number"),
    ],
)  # fmt: skip
def test_damaged_loras_are_refused(base, lora, target, more, said):
    with pytest.raises(UnsupportedModelError, match=said):
        bake(base, lora(more, naming="kohya for SD1.5"), target)
    assert not target.parent.exists() or list(target.parent.iterdir()) == []


def test_a_layer_in_two_namings_is_refused(base, lora, target):
    for naming, said in (
        ("kohya, original names", "changes one layer twice, as lora_unet_"),
        ("PEFT", "names some layers twice"),
    ):
        with pytest.raises(UnsupportedModelError, match=said):
            bake(base, lora(world.lora(few()[:1], naming)[0]), target)


def test_a_file_of_two_adapters_is_refused(base, lora, target):
    more = {name.replace(".default.", ".second."): t for name, t in world.lora(few(), "PEFT with an adapter")[0].items()}
    with pytest.raises(UnsupportedModelError, match="by the adapters default, second"):
        bake(base, lora(more, naming="PEFT with an adapter"), target)


def test_another_family_is_refused_on_both_sides(base, target, tmp_path):
    other = world.write_lora(tmp_path / "sdxl-lora.safetensors", few("sdxl"))
    with pytest.raises(UnsupportedModelError, match=r"sdxl-lora\.safetensors is a LoRA for SDXL, the model is SD1\.5"):
        bake(base, other, target)
    flux = synthetic_checkpoints.write_checkpoint(tmp_path / "flux.safetensors", synthetic_checkpoints.flux())
    with pytest.raises(UnsupportedModelError, match=r"flux\.safetensors is FLUX.1-dev; a LoRA is baked into .* SD1\.5 or SDXL"):
        bake(flux, other, target)
    with pytest.raises(UnsupportedModelError, match=r"sdxl-lora\.safetensors is a LoRA; a LoRA is baked into"):
        bake(other, other, target)
    with pytest.raises(UnsupportedModelError, match="holds no LoRA"):
        bake(base, base, target)


def test_what_does_not_fit_is_left_out_and_said_until_it_is_the_greater_part(base, lora, target):
    stray = {f"lora_unet_up_{i}.{half}": torch.ones(2, 2) for i in range(3) for half in ("lora_down.weight", "lora_up.weight")}
    stray |= {f"lora_unet_up_{i}.alpha": torch.tensor(1.0) for i in range(3)}
    baked = bake(base, lora(stray), target)
    assert (baked.match.matched, baked.match.modules) == (len(few()), len(few()) + 3)
    assert baked.match.left_out == ["lora_unet_up_0", "lora_unet_up_1", "lora_unet_up_2"]
    misfit = world.lora(few()[-2:-1])[0]  # of conv_in
    wide = {name: torch.ones(2, 9, 3, 3) if "down" in name else t for name, t in misfit.items()}
    left_out = bake(base, lora(wide), target.with_name("b.safetensors")).match.left_out
    assert left_out == ["lora_unet_conv_in (its sizes are 32 x 81, the model's layer has 32 x 36)"]
    many = {name.replace("up_", f"down_{i}_"): t.clone() for i in range(9) for name, t in stray.items()}
    with pytest.raises(UnsupportedModelError, match=r"Most of lora\.safetensors has no place in this model: 18 of 45"):
        bake(base, lora(many), target.with_name("c.safetensors"))


def test_quantised_checkpoints_are_refused(lora, target, tmp_path):
    whole, key = world.tensors("sd15"), few()[0].key
    for more in ({key: torch.ones(32, 768, dtype=torch.int8)}, {key.replace(".weight", ".scale_weight"): torch.ones(1)}):
        save_file({layer.key: whole[layer.key] for layer in few()} | more, tmp_path / "base.safetensors")
        with pytest.raises(UnsupportedModelError, match="is quantised"):
            bake(tmp_path / "base.safetensors", lora(), target)


@pytest.mark.parametrize("strength", [float("nan"), float("inf")])
def test_a_strength_that_is_no_number_is_refused(base, lora, target, strength):
    with pytest.raises(BuildError, match=f"must be a finite number, got {strength}"):
        bake(base, lora(), target, strength=strength)


def test_a_strength_that_the_dtype_cannot_hold_is_refused_and_leaves_nothing(base, lora, target):
    with pytest.raises(BuildError, match=r"lora\.safetensors at strength 1e\+08, .* float16 does not hold; lower the"):
        bake(base, lora(), target, strength=1e8, dtype=torch.float16)
    assert list(target.parent.iterdir()) == []


def test_a_note_tells_of_a_scale_that_nobody_reads(base, lora, target, tmp_path):
    told = {"lora_adapter_metadata": '{"unet.r": 8, "unet.lora_alpha": 4}'}
    save_file(load_file(lora(alpha=None)), tmp_path / "peft.safetensors", told)
    assert "lora_alpha / r = 0.5. Hosts do not read that" in bake(base, tmp_path / "peft.safetensors", target).note


def test_full_disk_and_taken_names_are_seen_before_a_byte_is_read(base, lora, target, monkeypatch):
    path = lora()
    target.parent.mkdir()
    target.write_bytes(b"mine")
    with pytest.raises(BuildError, match="choose another name"):
        bake(base, path, target)
    assert target.read_bytes() == b"mine"
    monkeypatch.setattr(disk.shutil, "disk_usage", lambda path: Usage(10**9, 10**9, 1000))
    with pytest.raises(BuildError, match="too full: 1 kB are free"):
        bake(base, path, target.with_name("b.safetensors"))
    assert [path.name for path in target.parent.iterdir()] == [target.name]


ODD_SHAPES = (
    (),
    (0,),
    (1,),
    (2,),
    (2, 2),
    (768, 2),
    (2, 768),
    (32, 2),
    (2, 4, 3, 3),
    (32, 2, 3, 3),
    (2, 2, 3, 3),
    (2, 1, 1, 1, 1),
)
ODD_DTYPES = (torch.float16, torch.bfloat16, torch.float64, torch.int8, torch.int64, torch.bool, torch.float8_e4m3fn)
ODD_VALUES = (float("nan"), float("inf"), -1.0, 0.0, 1e-30, 1e38, 3.0)
MORE = (
    "alpha",
    "dora_scale",
    "diff",
    "lora_mid.weight",
    "lora_A.weight",
    "lora_up.default.weight",
    "lora_B.bias",
    "lokr_w1",
    "x",
)


def _damaged(rng, held):
    """Changes one to three of a LoRA's tensors in place."""
    for _ in range(rng.choice((1, 1, 2, 3))):
        name = rng.choice(sorted(held))
        module, kind = name.rsplit(".lora_")[0].removesuffix(".alpha"), rng.randrange(7)
        if kind == 0:
            held[name] = torch.full(rng.choice(ODD_SHAPES), 0.5)
        elif kind == 1:
            held[name] = held[name].to(rng.choice(ODD_DTYPES))
        elif kind == 2 and len(held) > 3:
            del held[name]
        elif kind == 3:
            held[f"{module}.{rng.choice(MORE)}"] = torch.full(rng.choice(ODD_SHAPES), 0.5)
        elif kind == 4:
            held[name] = torch.full_like(held[name].float(), rng.choice(ODD_VALUES))
        elif kind == 5:
            other = rng.choice((f"{module}_x", "lora_unet_conv_out", f"lora_te2_{module}", "unet.conv_in"))
            held[name.replace(module, other)] = held.pop(name)
        else:
            held[f"{module}.alpha"] = torch.tensor(rng.choice(ODD_VALUES))


def _expected(before, held, names):
    """Returns what the checkpoint has to be after a bake at 1 that left nothing out."""
    after = {key: tensor.double() for key, tensor in before.items()}
    for module, key in names.items():
        if f"{module}.lora_down.weight" in held:
            down, up = (held[f"{module}.lora_{half}.weight"].double() for half in ("down", "up"))
            if f"{module}.lora_mid.weight" in held:
                mid = held[f"{module}.lora_mid.weight"].double()
                down = torch.einsum("abhw,bi->aihw", mid, down.flatten(1))
            alpha = held.get(f"{module}.alpha")
            scale = 1.0 if alpha is None else float(alpha) / held[f"{module}.lora_down.weight"].shape[0]
            after[key] += scale * (up.flatten(1) @ down.flatten(1)).reshape(after[key].shape)
    return after


def test_damaged_loras_are_refused_or_baked_exactly(base, tmp_path, reliability):
    rng, before = random.Random(22), load_file(base)
    listed = [*few()[:2], *few()[-2:]]
    whole = world.lora(listed, "kohya for SD1.5")[0]
    names = dict(zip(dict.fromkeys(name.split(".")[0] for name in whole), (layer.key for layer in listed), strict=True))
    counts = {"refused": 0, "right": 0, "wrong": 0}
    for number in range(FILES):
        held = {name: tensor.clone() for name, tensor in whole.items()}
        _damaged(rng, held)
        save_file(held, tmp_path / "lora.safetensors")
        target = tmp_path / f"{number}.safetensors"
        try:
            match = bake(base, tmp_path / "lora.safetensors", target).match
        except HyperSDError:
            counts["wrong" if list(tmp_path.glob(f"{number}.*")) else "refused"] += 1
            continue
        left_out = {name.split(" ")[0] for name in match.left_out}
        wanted = _expected(before, held, {module: key for module, key in names.items() if module not in left_out})
        got = load_file(target)
        errors = {key: float((got[key].double() - wanted[key]).abs().max() / wanted[key].abs().max()) for key in before}
        counts["right" if max(errors.values()) < 1e-5 else "wrong"] += 1
        target.unlink()
    reliability("damaged LoRAs that were to be baked", tried=FILES, **counts)
