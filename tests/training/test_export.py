import pytest
import torch
from diffusers import SD3Transformer2DModel, UNet2DConditionModel
from hyper_sd.errors import TrainingError
from hyper_sd.models.lora import read_lora
from hyper_sd.models.unet_names import lora_names
from hyper_sd.tests.training.fakes import SDXL, SMALL, TinyUNet
from hyper_sd.training.export import load_lora, save_lora
from hyper_sd.training.lora_layers import LoraLayers, adaptable_layers
from hyper_sd.training.lora_tensors import concatenated, kohya_name, lora_state_dict, set_from_tensors
from safetensors import safe_open
from safetensors.torch import load_file, save_file


def filled(network, rank=3, lora_alpha=None, seed=1):
    layers = LoraLayers(network, rank, lora_alpha)
    torch.manual_seed(seed)
    for parameter in layers.add("student").parameters():
        torch.nn.init.normal_(parameter, std=0.1)
    return layers


def unet():
    torch.manual_seed(0)
    return UNet2DConditionModel(**SMALL).eval().requires_grad_(False)


def answer(network):
    g = torch.Generator().manual_seed(3)
    x, context = torch.randn(2, 4, 8, 8, generator=g), torch.randn(2, 5, 6, generator=g)
    return network(x, torch.tensor([900, 20]), context, return_dict=False)[0]


def test_names_are_kohyas():
    assert kohya_name("mid_block.attentions.0.to_out.0") == "lora_unet_mid_block_attentions_0_to_out_0"


def test_file_holds_three_tensors_a_layer_and_its_rank(tmp_path):
    layers = filled(unet(), rank=3, lora_alpha=1.5)
    save_lora(tmp_path / "a.safetensors", layers, metadata={"title": "test"})
    tensors = load_file(tmp_path / "a.safetensors")
    assert len(tensors) == 3 * len(layers.layers)
    assert {t.dtype for t in tensors.values()} == {torch.float16}
    assert all(float(t) == 1.5 for k, t in tensors.items() if k.endswith(".alpha"))
    with safe_open(tmp_path / "a.safetensors", "pt") as file:
        assert file.metadata() == {
            "ss_network_module": "networks.lora", "ss_network_dim": "3", "ss_network_alpha": "1.5", "title": "test",
        }  # fmt: skip


def test_diffusers_loads_every_key_and_gives_the_same_output(tmp_path, caplog):
    pytest.importorskip("peft", reason="diffusers loads LoRA files through peft")
    network = unet()
    layers = filled(network, rank=3, lora_alpha=1.5)
    save_lora(tmp_path / "a.safetensors", layers, dtype=torch.float32)
    with layers.using("student"):
        expected = answer(network)
    from diffusers.loaders.lora_conversion_utils import _convert_non_diffusers_lora_to_diffusers

    other = unet()
    state, alphas = _convert_non_diffusers_lora_to_diffusers(load_file(tmp_path / "a.safetensors"))
    other.load_lora_adapter(state, network_alphas=alphas, prefix="unet")
    assert not [r for r in caplog.records if "unexpected" in r.message.lower() or "missing" in r.message.lower()]
    assert len([m for m in other.modules() if hasattr(m, "lora_A")]) == len(layers.layers)
    assert not torch.allclose(answer(unet()), expected, atol=1e-3)
    assert torch.allclose(answer(other), expected, atol=1e-5)


def test_transformer_file_says_that_its_scale_is_folded_in_and_diffusers_loads_it(tmp_path):
    pytest.importorskip("peft", reason="diffusers loads LoRA files through peft")
    sizes = {"attention_head_dim": 8, "num_attention_heads": 4, "caption_projection_dim": 32, "joint_attention_dim": 32}
    network = SD3Transformer2DModel(
        sample_size=8, patch_size=1, in_channels=4, out_channels=4, num_layers=2, pooled_projection_dim=16, **sizes
    )
    layers = filled(network, rank=4, lora_alpha=2.0)
    save_lora(tmp_path / "a.safetensors", layers, dtype=torch.float32, transformer=True)
    inputs = {"hidden_states": torch.randn(1, 4, 8, 8), "encoder_hidden_states": torch.randn(1, 5, 32)}
    inputs |= {"pooled_projections": torch.randn(1, 16), "timestep": torch.tensor([500])}
    with torch.no_grad():
        plain = network(**inputs).sample
        with layers.using("student"):
            expected = network(**inputs).sample
        layers.detach()
        network.load_lora_adapter(tmp_path / "a.safetensors", prefix="transformer")
        found = network(**inputs).sample
    assert not torch.allclose(plain, expected, atol=1e-2)
    torch.testing.assert_close(found, expected)
    assert read_lora(tmp_path / "a.safetensors").described_scale == 1.0


def test_own_file_is_loaded_back(tmp_path):
    network = unet()
    layers = filled(network, rank=3, lora_alpha=1.5)
    save_lora(tmp_path / "a.safetensors", layers, dtype=torch.float32)
    with layers.using("student"):
        expected = answer(network)
    layers.detach()
    wider = LoraLayers(network, 5, lora_alpha=20)
    load_lora(tmp_path / "a.safetensors", wider)
    with wider.using("student"):
        assert torch.allclose(answer(network), expected, atol=1e-5)


def test_file_without_alpha_has_scale_one(tmp_path):
    network = unet()
    layers = filled(network, rank=3)
    state = {k: v for k, v in lora_state_dict(layers, "student", torch.float32).items() if not k.endswith("alpha")}
    save_file(state, tmp_path / "a.safetensors")
    other = LoraLayers(network, 3)
    load_lora(tmp_path / "a.safetensors", other)
    with layers.using("student"):
        expected = answer(network)
    with other.using("student"):
        assert torch.allclose(answer(network), expected, atol=1e-6)


def test_modules_are_renamed_for_networks_in_another_layout(tmp_path):
    layers = filled(TinyUNet())
    names = lora_state_dict(layers, "student", rename=lambda module: f"other.{module}")
    assert all(name.startswith("lora_unet_other_") for name in names)


def test_sdxl_is_named_as_all_hosts_read_it():
    lora_conversion_utils = pytest.importorskip("diffusers.loaders.lora_conversion_utils")
    with torch.device("meta"):
        network = UNet2DConditionModel(**SDXL)
    layers = adaptable_layers(network)
    rename = lora_names(network)
    files = []
    for names in (rename, str):
        keys = [kohya_name(names(module)) for module in layers]
        state = {f"{key}.{part}": torch.zeros(1, 1) for key in keys for part in ("lora_down.weight", "lora_up.weight", "alpha")}
        state = lora_conversion_utils._maybe_map_sgm_blocks_to_diffusers(state, network.config)
        files.append(set(lora_conversion_utils._convert_non_diffusers_lora_to_diffusers(state)[0]))
    assert files[0] == files[1]
    assert len(files[0]) == 2 * 788
    assert rename("up_blocks.0.upsamplers.0.conv") == "output_blocks.2.2.conv"
    assert rename("down_blocks.1.resnets.0.time_emb_proj") == "input_blocks.4.0.emb_layers.1"
    assert rename("mid_block.attentions.0.transformer_blocks.3.attn1.to_q") == "middle_block.1.transformer_blocks.3.attn1.to_q"


def test_unfit_files_are_refused(tmp_path):
    path = tmp_path / "a.safetensors"
    save_lora(path, filled(TinyUNet(), rank=4))
    with pytest.raises(TrainingError, match="does not fit this model"):
        load_lora(path, LoraLayers(unet(), 8))
    with pytest.raises(TrainingError, match="rank 4 or more"):
        load_lora(path, LoraLayers(TinyUNet(), 2))
    path.write_bytes(b"x")
    with pytest.raises(TrainingError, match="cannot be read"):
        load_lora(path, LoraLayers(TinyUNet(), 4))
    with pytest.raises(TrainingError, match="could not be written"):
        save_lora(path / "below.safetensors", filled(TinyUNet()))


def without(tensors, part):
    """The LoRA without the modules whose name holds `part`."""
    return {key: tensor for key, tensor in tensors.items() if part not in key}


def test_lora_in_memory_equals_its_file(tmp_path):
    network = unet()
    layers = filled(network, rank=3, lora_alpha=1.5)
    save_lora(tmp_path / "a.safetensors", layers, dtype=torch.float32)
    tensors = lora_state_dict(layers, "student", torch.float32)
    read = LoraLayers(network, 5, lora_alpha=20)
    load_lora(tmp_path / "a.safetensors", read)
    made = set_from_tensors(tensors, read, "teacher")
    assert made is read.sets["teacher"]
    assert all(torch.equal(v, made.state_dict()[k]) for k, v in read.sets["student"].state_dict().items())
    assert all(up.abs().sum() > 0 for up in made.up)


def test_modules_that_a_partial_lora_lacks_change_nothing():
    network = unet()
    layers = filled(network, rank=3)
    tensors = without(lora_state_dict(layers, "student", torch.float32), "up_blocks")
    with torch.no_grad():
        for module, up in zip(layers.layers, layers.sets["student"].up, strict=True):
            if "up_blocks" in module:
                up.zero_()
    other = LoraLayers(network, 4)
    with pytest.raises(TrainingError, match=r"my style does not fit this model: \d+ of \d+ tensors differ.*up_blocks"):
        set_from_tensors(tensors, other, source="my style")
    assert other.sets == {}
    set_from_tensors(tensors, other, partial=True)
    with layers.using("student"):
        expected = answer(network)
    with other.using("student"):
        assert torch.allclose(answer(network), expected, atol=1e-6)
    assert all(down.abs().sum() > 0 for down in other.sets["student"].down)


@pytest.mark.parametrize("partial", [False, True])
def test_tensors_that_are_not_the_networks_are_refused_and_add_no_set(partial):
    own = lora_state_dict(filled(TinyUNet(), rank=2), "student")
    layers = LoraLayers(TinyUNet(), 2)
    key = "lora_unet_mid_block_conv"
    foreign = {**own, "lora_te_text_model.lora_down.weight": torch.zeros(2, 3)}
    half = {name: tensor for name, tensor in own.items() if name != f"{key}.lora_up.weight"}
    for tensors in (foreign, half, {}, {f"{key}.alpha": own[f"{key}.alpha"]}):
        with pytest.raises(TrainingError, match=r"the LoRA does not fit this model: \d+ of \d+ tensors"):
            set_from_tensors(tensors, layers, partial=partial)
    with pytest.raises(TrainingError, match="for example lora_te_text_model"):
        set_from_tensors(foreign, layers, partial=partial)
    narrow = {**own, f"{key}.lora_up.weight": own[f"{key}.lora_up.weight"][:-1]}
    with pytest.raises(TrainingError, match=f"has {key} with rank 2"):
        set_from_tensors(narrow, layers, partial=partial)
    assert layers.sets == {}


def change(tensors, key):
    """The matrix that a module of a LoRA adds, from its three tensors."""
    down, up = (tensors[f"{key}.lora_{part}.weight"] for part in ("down", "up"))
    scale = float(tensors[f"{key}.alpha"]) / len(down)
    return scale * up.flatten(1) @ down.flatten(1)


def test_concatenated_loras_are_their_exact_sum():
    torch.manual_seed(0)
    network = TinyUNet().double()
    one, two = filled(network, rank=3, lora_alpha=1.5), filled(network, rank=5, lora_alpha=20, seed=2)
    first, second = (lora_state_dict(layers, "student", torch.float64) for layers in (one, two))
    first, second = without(first, "lora_unet_text"), without(second, "mid_block")
    total = concatenated(first, second)
    keys = {key.partition(".")[0] for key in {**first, **second}}
    assert {key.partition(".")[0] for key in total} == keys
    for key in keys:
        expected = sum(change(part, key) for part in (first, second) if f"{key}.alpha" in part)
        torch.testing.assert_close(change(total, key), expected, rtol=1e-14, atol=1e-15)
        assert len(total[f"{key}.lora_down.weight"]) == float(total[f"{key}.alpha"]) == 8
    both = LoraLayers(network, 8, dtype=torch.float64)
    set_from_tensors(total, both)
    g = torch.Generator().manual_seed(1)
    x, context = (torch.randn(*shape, generator=g, dtype=torch.float64) for shape in ((2, 2, 8, 8), (2, 3, 6)))
    layer = network.down_blocks[1].conv
    inputs = torch.randn(1, 4, 8, 8, generator=g, dtype=torch.float64)
    plain = layer(inputs)
    parts = []
    for layers in (one, two):
        with layers.using("student"):
            parts.append(layer(inputs) - plain)
    with both.using("student"):
        torch.testing.assert_close(layer(inputs), plain + parts[0] + parts[1], rtol=1e-6, atol=1e-8)  # the sets are float32
        assert network(x, torch.tensor([3, 999]), context).isfinite().all()


def test_concatenated_keeps_scale_one_where_alpha_is_left_out_and_the_wider_dtype():
    a = {"m.lora_down.weight": torch.ones(1, 2, dtype=torch.float16), "m.lora_up.weight": torch.ones(3, 1, dtype=torch.float16)}
    b = {name: 2 * tensor.float() for name, tensor in a.items()}
    total = concatenated(a, b)
    assert total["m.lora_down.weight"].dtype == torch.float32
    assert change(total, "m").unique().tolist() == [5.0]
    assert concatenated(a, {})["m.lora_down.weight"].tolist() == [[1.0, 1.0]]


def test_concatenated_refuses_what_is_no_pair_of_plain_loras():
    a = {"m.lora_down.weight": torch.ones(1, 2), "m.lora_up.weight": torch.ones(3, 1)}
    with pytest.raises(TrainingError, match=r"differ in m: \(1, 2\) to \(3, 1\) and \(1, 4\) to \(3, 1\); choose two"):
        concatenated(a, {**a, "m.lora_down.weight": torch.ones(1, 4)})
    with pytest.raises(TrainingError, match=r"m.dora_scale is no part of a plain LoRA"):
        concatenated(a, {**a, "m.dora_scale": torch.ones(3)})
    with pytest.raises(TrainingError, match=r"only lora_down.weight of m"):
        concatenated(a, {"m.lora_down.weight": torch.ones(1, 2)})


def flat(tensors):
    """The LoRA as ComfyUI's own training node writes it: kernels flattened, `up` a matrix."""
    return {key: tensor.flatten(1) if tensor.ndim > 1 else tensor for key, tensor in tensors.items()}


def test_kernels_that_lie_flat_are_taken():
    tensors = lora_state_dict(filled(TinyUNet(), rank=2), "student", torch.float32)
    assert tensors["lora_unet_mid_block_conv.lora_down.weight"].ndim == 4
    layers = LoraLayers(TinyUNet(), 3)
    made, from_flat = (set_from_tensors(t, layers, name) for t, name in ((tensors, "one"), (flat(tensors), "two")))
    assert all(torch.equal(v, from_flat.state_dict()[k]) for k, v in made.state_dict().items())
    for pair in ((tensors, flat(tensors)), (flat(tensors), tensors)):
        total = concatenated(*pair)
        assert all(torch.equal(v, total[k]) for k, v in concatenated(tensors, tensors).items())
