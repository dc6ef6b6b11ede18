"""What the tests of Hyper-SD Train LoRA share: the inputs of a quick run, and how its results are compared."""

import torch

NODE = "HyperSDTrainLora"
OBJECTIVES = ["style finetune", "TSCD distillation", "style, then distil"]
QUICK = {"steps": 4, "rank": 2, "learning_rate": 1e-3, "batch_size": 2, "stages": "4-1", "preview_every": 100}


def sent(**inputs) -> dict:
    """Returns inputs as the host gives them to this node, each in a list."""
    return {name: value if name in ("latents", "positive", "negative") else [value] for name, value in inputs.items()}


def weights_of(model) -> dict[str, torch.Tensor]:
    return {name: tensor.clone() for name, tensor in model.model.state_dict().items()}


def is_as_before(model, before: dict[str, torch.Tensor]) -> bool:
    """Whether the weights are those, to the bit, and nothing is left on the network."""
    modules = list(model.model.diffusion_model.modules())
    hooks = [m for m in modules if m._forward_hooks or m._forward_pre_hooks or "forward" in vars(m)]
    now = model.model.state_dict()
    return not hooks and now.keys() == before.keys() and all(torch.equal(now[name], before[name]) for name in before)


def changes(lora: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Returns what a LoRA adds to every weight."""
    names = [name.removesuffix(".alpha") for name in lora if name.endswith(".alpha")]
    found = {}
    for name in names:
        down, up = lora[f"{name}.lora_down.weight"].float(), lora[f"{name}.lora_up.weight"].float()
        found[name] = float(lora[f"{name}.alpha"]) / len(down) * up.flatten(1) @ down.flatten(1)
    return found
