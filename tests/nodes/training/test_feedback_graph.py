"""Human feedback on the demo model as a graph: prompts alone go in, and two LoRAs come out of ComfyUI's own executor."""

import pytest
from hyper_sd.models.recognition import recognise
from hyper_sd.tests.nodes.model_world import until
from safetensors.torch import load_file, safe_open

TRAIN = {
    "objective": "human feedback", "preset": "Small", "steps": 2, "rank": 2, "learning_rate": 1e-3, "batch_size": 1,
    "start_from": "Hyper-SD unified", "preview_every": 100, "seed": 0, "feedback_strength": 0.8,
}  # fmt: skip


def _node(class_type: str, **inputs) -> dict:
    return {"class_type": class_type, "inputs": inputs}


def _graph(name: str, prompts: str = "red apple\nrocket", wired: bool = True, **settings) -> dict:
    vae = {"vae": ["model", 2]} if wired else {}
    return {
        "model": _node("HyperSDDemoModel"),
        "data": _node("HyperSDTrainingData", clip=["model", 1], folder="", resolution=64, default_caption="", captions=prompts),
        "train": _node(
            "HyperSDTrainLora", model=["model", 0], latents=["data", 0], positive=["data", 1], **vae, **TRAIN | settings,
            name=name,
        ),
        "both": _node("HyperSDSaveLora", lora=["train", 1], name=name),
        "alone": _node("HyperSDSaveLora", lora=["train", 6], name=f"{name}_feedback"),
        "steps": _node("PreviewAny", source=["train", 3]),
        "said": _node("PreviewAny", source=["data", 3]),
    }  # fmt: skip


def _record(world, graph: dict) -> dict:
    """Queues a graph and returns the run's record once it has ended."""
    prompt_id = world.server.queue(graph)
    return until(lambda: world.server.get(f"/history/{prompt_id}").get(prompt_id))


def _error(record: dict) -> str:
    return next(content["exception_message"] for kind, content in record["status"]["messages"] if kind == "execution_error")


@pytest.fixture(scope="module")
def made(world, demo):
    record = _record(world, _graph("liked"))
    assert record["status"]["status_str"] == "success", record["status"]
    return record["outputs"]


def test_prompts_alone_make_a_lora_and_what_was_added(world, made):
    assert made["said"] == {"text": ["2 prompts of 64x64"]}
    assert made["steps"] == {"text": ["2"]}
    both, alone = (world.loras / f"{name}_00001_.safetensors" for name in ("liked", "liked_feedback"))
    ranks = {path: max(len(t) for key, t in load_file(path).items() if "lora_down" in key) for path in (both, alone)}
    assert ranks[alone] == 2
    assert ranks[both] > 2
    found = recognise(both)
    assert (found.variant, found.steps) == ("unified", 1)
    with safe_open(alone, framework="pt") as file:
        assert file.metadata()["hyper_sd_rewards"] == "embedded_match"
        assert file.metadata()["hyper_sd_objective"] == "human feedback"


def test_feedback_without_a_vae_or_without_texts_says_what_to_wire(world, demo):
    assert "wire the vae" in _error(_record(world, _graph("blind", wired=False)))
    graph = _graph("mute")
    graph["text"] = _node("CLIPTextEncode", clip=["model", 1], text="red apple")
    graph["empty"] = _node("EmptyLatentImage", width=64, height=64, batch_size=1)
    graph["train"]["inputs"] |= {"latents": ["empty", 0], "positive": ["text", 0]}
    assert "keeps the texts" in _error(_record(world, graph))


def test_missing_files_of_a_scorer_are_named_with_where_to_get_them(world, demo):
    message = _error(_record(world, _graph("paper", reward="image_reward")))
    assert "ImageReward lacks its files" in message
    assert "tab Hyper-SD models" in message


@pytest.mark.parametrize("settings", [{"objective": "style finetune"}, {"perceptual_weight": 0.3}])
def test_prompts_alone_are_refused_by_what_learns_from_pictures(world, demo, settings):
    assert "these latents are empty" in _error(_record(world, _graph("pictures", **settings)))


def test_perceptual_term_learns_from_pictures(world, demo):
    graph = _graph("whole", perceptual_weight=0.3, steps=1)
    graph["picture"] = _node("EmptyImage", width=64, height=64, batch_size=1, color=0xFF0000)
    graph["data"]["inputs"] |= {"images": ["picture", 0], "vae": ["model", 2], "captions": "red apple"}
    record = _record(world, graph)
    assert record["status"]["status_str"] == "success", record["status"]
