import pytest
from hyper_sd.demo.client import refusal
from hyper_sd.demo.run import slug, step_label, write_file
from hyper_sd.demo.workflow import fill_workflow, load_workflow, node_id

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


def test_write_file_replaces_and_leaves_nothing_beside(tmp_path):
    path = tmp_path / "a.png"
    path.write_bytes(b"old")
    write_file(path, b"new")
    assert path.read_bytes() == b"new"
    assert list(tmp_path.iterdir()) == [path]


def test_refusal_names_the_node_and_the_input():
    error = {"message": "Value not in list", "details": "ckpt_name: 'x'"}
    answer = {"error": {"message": "failed"}, "node_errors": {"1": {"class_type": "CheckpointLoaderSimple", "errors": [error]}}}
    assert str(refusal(answer)) == "Node 1 (CheckpointLoaderSimple): Value not in list: ckpt_name: 'x'"
    assert str(refusal({"error": {"message": "Prompt has no outputs"}, "node_errors": {}})) == "Prompt has no outputs"
