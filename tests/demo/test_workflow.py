import pytest
from hyper_sd.demo.client import refusal
from hyper_sd.demo.run import plan_drawings, slug, step_label
from hyper_sd.demo.workflow import NO_LORA, UNIFIED_LORA, fill_workflow, literal, load_workflow, node_id, with_loras

SETTINGS = {"prompt": "p", "negative": "n", "steps": 8, "seed": 7, "cfg": 2.5, "eta": 0.6, "size": 512}


def inputs(workflow, class_type):
    return [node["inputs"] for node in workflow.values() if node["class_type"] == class_type]


def test_every_setting_reaches_its_node_and_the_shipped_workflow_stays():
    shipped = load_workflow()
    filled = fill_workflow(shipped, checkpoint=None, **SETTINGS)
    assert shipped == load_workflow()
    sampling = inputs(filled, "SamplerCustom")[0]
    assert (sampling["noise_seed"], sampling["cfg"]) == (7, 2.5)
    assert filled[sampling["positive"][0]]["inputs"]["text"] == "p"
    assert filled[sampling["negative"][0]]["inputs"]["text"] == "n"
    assert inputs(filled, "HyperSDScheduler")[0]["steps"] == 8
    assert inputs(filled, "HyperSDSampler")[0]["eta"] == 0.6
    assert inputs(filled, "EmptyLatentImage")[0] == {"width": 512, "height": 512, "batch_size": 1}
    assert filled[node_id(filled, "Model")]["class_type"] == "HyperSDDemoModel"


def test_checkpoint_takes_the_demo_models_place():
    filled = fill_workflow(load_workflow(), checkpoint="a.safetensors", **SETTINGS)
    assert inputs(filled, "CheckpointLoaderSimple") == [{"ckpt_name": "a.safetensors"}]
    assert not inputs(filled, "HyperSDDemoModel")


def test_lora_reaches_the_demo_model_and_not_a_checkpoint():
    filled = fill_workflow(load_workflow(), checkpoint=None, lora=UNIFIED_LORA, **SETTINGS)
    assert inputs(filled, "HyperSDDemoModel") == [{"hyper_sd_lora": UNIFIED_LORA}]
    assert inputs(load_workflow(), "HyperSDDemoModel") == [{"hyper_sd_lora": NO_LORA}]
    filled = fill_workflow(load_workflow(), checkpoint="a.safetensors", lora=UNIFIED_LORA, **SETTINGS)
    assert inputs(filled, "CheckpointLoaderSimple") == [{"ckpt_name": "a.safetensors"}]


def test_demo_draws_the_base_then_the_lora_at_few_steps_only():
    rows = plan_drawings((25, 1, 4), 4.0, with_lora=True)
    assert [(d.label, d.lora, d.cfg, d.steps) for d in rows] == [
        ("base, 1 step", NO_LORA, 4.0, 1), ("base, 4 steps", NO_LORA, 4.0, 4), ("base, 25 steps", NO_LORA, 4.0, 25),
        ("Hyper-SD, 1 step", "one step", 1.0, 1), ("Hyper-SD, 4 steps", UNIFIED_LORA, 1.0, 4),
    ]  # fmt: skip
    assert [d.start_timestep for d in rows] == [999, 999, 999, 800, 999]
    assert len({d.file_part for d in rows}) == len(rows)


def test_start_timestep_reaches_the_scheduler():
    assert inputs(load_workflow(), "HyperSDScheduler")[0]["start_timestep"] == 999
    filled = fill_workflow(load_workflow(), checkpoint=None, lora="one step", start_timestep=800, **SETTINGS)
    assert inputs(filled, "HyperSDScheduler")[0]["start_timestep"] == 800


def test_checkpoint_has_one_row():
    assert [(d.label, d.cfg) for d in plan_drawings((4, 1), 7.0, with_lora=False)] == [("1 step", 7.0), ("4 steps", 7.0)]


def test_every_link_of_the_workflow_leads_to_a_node():
    workflow = load_workflow()
    links = [value for node in workflow.values() for value in node["inputs"].values() if isinstance(value, list)]
    assert len(links) == 12
    assert {source for source, _ in links} <= workflow.keys()


@pytest.mark.parametrize(
    ("prompt", "name"), [("Red  Apple!", "red-apple"), ("../../etc", "etc"), ("🍎", "image"), ("x" * 99, "x" * 40)]
)
def test_slug_is_safe_as_a_file_name(prompt, name):
    assert slug(prompt) == name


def test_step_label_counts():
    assert [step_label(1), step_label(25)] == ["1 step", "25 steps"]


def test_refusal_names_the_node_and_the_input():
    error = {"message": "Value not in list", "details": "ckpt_name: 'x'"}
    answer = {"error": {"message": "failed"}, "node_errors": {"1": {"class_type": "CheckpointLoaderSimple", "errors": [error]}}}
    assert str(refusal(answer)) == "Node 1 (CheckpointLoaderSimple): Value not in list: ckpt_name: 'x'"
    assert str(refusal({"error": {"message": "Prompt has no outputs"}, "node_errors": {}})) == "Prompt has no outputs"


def test_loras_stand_between_the_model_and_all_that_use_it():
    filled = fill_workflow(load_workflow(), checkpoint=None, num_segments=4, **SETTINGS)
    assert with_loras(filled, []) == filled
    two = with_loras(filled, [("a.safetensors", 0.75), ("b.safetensors", 0.5)])
    first, second = inputs(two, "LoraLoaderModelOnly")
    model = node_id(two, "Model")
    assert first == {"model": [model, 0], "lora_name": "a.safetensors", "strength_model": 0.75}
    assert (second["model"], second["lora_name"], second["strength_model"]) == (["lora0", 0], "b.safetensors", 0.5)
    users = [
        node["inputs"]["model"]
        for node in two.values()
        if "model" in node["inputs"] and node["class_type"] != "LoraLoaderModelOnly"
    ]
    assert users == [["lora1", 0]] * 2
    assert [node["inputs"]["num_segments"] for node in two.values() if "num_segments" in node["inputs"]] == [4, 4]


def test_brackets_of_a_prompt_are_no_weights():
    assert literal("wolf (animal)") == "wolf \\(animal\\)"
    assert literal("a red fox, 8:30") == "a red fox, 8:30"
