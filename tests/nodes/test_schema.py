"""A value that is on no list: the host lets it through when a program sends the workflow, the node says what is allowed."""

import pytest
from hyper_sd.errors import HyperSDError


@pytest.mark.parametrize(
    ("node", "name", "values"),
    [
        ("HyperSDDemoModel", "hyper_sd_lora", {}),
        ("HyperSDLoraLoader", "variant", {"steps": 4, "strength": 0.0}),
        ("HyperSDScheduler", "end", {"steps": 4, "num_segments": 1, "denoise": 1.0}),
        ("HyperSDOneStepLoader", "dtype", {"file": "checkpoints/any.safetensors"}),
    ],
)
def test_value_on_no_list_is_refused_with_the_list(pack, unet, node, name, values):
    (combo,) = (given for given in pack[node].define_schema().inputs if given.id == name)
    model = {"model": unet} if any(given.id == "model" for given in pack[node].define_schema().inputs) else {}
    with pytest.raises(HyperSDError, match=f"{name} must be one of .*'{combo.options[0]}'.*got 'nonsense'"):
        pack[node].execute(**model, **values, **{name: "nonsense"})


def test_unknown_lora_of_the_demo_model_is_refused_with_the_list(pack, unet):
    with pytest.raises(HyperSDError, match=r"the demo model's LoRA must be one of 'unified, 1 to 8 steps'.*got 'nonsense'"):
        pack["HyperSDLoraLoader"].execute(unet, 4, "auto", 0.0, "demo model: nonsense")


def test_training_shows_a_few_settings_and_the_rest_is_advanced(pack):
    settings = [given for given in pack["HyperSDTrainLora"].define_schema().inputs if "default" in given.as_dict()]
    shown = [given.id for given in settings if not given.as_dict().get("advanced")]
    assert shown == ["objective", "preset", "steps", "rank", "name", "start_from", "seed"]
    assert len(settings) == 22
