"""The command line by preset and the node: the same settings on the embedded model give the same LoRA, bit for bit."""

import json

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file

pytest.importorskip("diffusers")
pytest.importorskip("accelerate")

RUN = """
[model]
embedded = true
[data]
folder = "input/emoji"
cache = "cache"
[training]
objective = {objective!r}
preset = "Small"
steps = 5
start_from = {start_from!r}
seed = 3
[output]
folder = "loras"
name = "my_style"
"""
CASES = [("style, then distil", "none"), ("TSCD distillation", "Hyper-SD unified"), ("style finetune", "none")]


@pytest.fixture
def hosts_encoders(demo, monkeypatch):
    """The host's VAE and CLIP in place of diffusers' and transformers', which round in another order: 1e-6 of a value."""
    from hyper_sd.nodes.training.encoders import STATES, encode_pixels, encode_prompt
    from hyper_sd.training.data.cache import Encoders
    from hyper_sd.training.launch.diffusers_models import DiffusersModel

    model, clip, vae = demo

    def images(pixels):
        with torch.inference_mode():
            return torch.cat([model.model.process_latent_in(encode_pixels(vae, one)) for one in pixels.split(1)])

    def prompts(texts):
        with torch.inference_mode():
            return {"context": torch.cat([encode_prompt(clip, text)[STATES] for text in texts])}

    monkeypatch.setattr(DiffusersModel, "encoders_on", lambda self, device: Encoders(images, prompts, self.fingerprint))


@pytest.mark.parametrize(("objective", "start_from"), CASES)
def test_command_line_and_node_train_the_same_lora(
    pack, demo, data, emoji, folders, hosts_encoders, monkeypatch, objective, start_from
):
    import folder_paths
    from hyper_sd.training.launch.__main__ import main

    monkeypatch.setattr(folder_paths, "output_directory", str(folders / "output"))
    latents, positive, negative, _ = data("emoji")
    settings = {"objective": objective, "preset": "Small", "steps": 5, "name": "my_style", "start_from": start_from, "seed": 3}
    inputs = {"model": demo[0], "vae": demo[2], **settings}
    node = pack["HyperSDTrainLora"].execute(
        latents=latents, positive=positive, negative=[negative], **{name: [value] for name, value in inputs.items()}
    )
    (folders / "run.toml").write_text(RUN.format(objective=objective, start_from=start_from), encoding="utf-8")
    with torch.inference_mode(False), torch.enable_grad():
        assert main([str(folders / "run.toml")]) == 0
    expected = {"my_style_00001_.safetensors": node.args[1]}
    if objective == "TSCD distillation":  # with one step after it, on this model
        expected["my_style-one-step_00001_.safetensors"] = node.args[5]
    paths = list((folders / "loras").glob("*.safetensors"))
    assert {path.name for path in paths} == expected.keys()
    for path in paths:
        lora, saved = expected[path.name], load_file(path)
        assert saved.keys() == lora.keys()
        assert [name for name, tensor in lora.items() if not torch.equal(tensor, saved[name])] == []
        assert any(bool(tensor.any()) for name, tensor in saved.items() if name.endswith("lora_up.weight"))
        _same_metadata(path, lora.metadata)


def _same_metadata(path, metadata) -> None:
    """The file says what the node's would, but for hashes of what either calls its tensors, and the time."""
    with safe_open(path, "pt") as file:
        written = file.metadata()
    own = {"hyper_sd_model_hash", "hyper_sd_data_hash", "hyper_sd_date"}
    assert {name: written.get(name) for name in metadata.keys() - own} == {k: v for k, v in metadata.items() if k not in own}
    assert own <= written.keys()
    assert json.loads(written["hyper_sd_settings"])[0]["seed"] == 3
