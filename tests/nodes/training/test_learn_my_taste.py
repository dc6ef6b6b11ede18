"""Template 12 in ComfyUI's page: pairs are drawn and voted on, then group 2 learns the taste, trains on it and draws."""

import json

import numpy as np
import pytest
from hyper_sd.evaluation import collected
from hyper_sd.evaluation.comparison import load_key
from hyper_sd.tests.nodes import example_graphs as examples
from hyper_sd.tests.nodes.model_world import until
from hyper_sd.tests.nodes.server_routes import ask
from PIL import Image
from safetensors import safe_open

PATIENCE = 400  # seconds for a run that trains
NAME = "12 Learn my taste" + examples.DEMO
LEARN = ("HyperSDLearnTaste", "HyperSDTrainingData", "HyperSDTrainLora", "HyperSDSaveLora", "KSampler", "SaveImage")
# Opens the template with group 1 switched off and group 2 switched on, as its note says, and returns the API workflow.
SECOND = """async (workflow) => {
  await app.loadGraphData(workflow);
  const inside = (node, group) => node.pos[0] >= group.pos[0] && node.pos[0] < group.pos[0] + group.size[0];
  const [, first, second] = app.graph._groups;
  for (const node of app.graph._nodes) if (inside(node, first)) node.mode = 2; else if (inside(node, second)) node.mode = 0;
  return (await app.graphToPrompt()).output;
}"""


def _run(server, prompt: dict) -> dict:
    answer = ask(server, "/prompt", {"prompt": prompt})
    assert answer["node_errors"] == {}  # the host runs what is left of a graph, and says so here alone
    return until(lambda: server.get(f"/history/{answer['prompt_id']}").get(answer["prompt_id"]), PATIENCE)


def _redness(picture) -> float:
    red, green, blue = np.asarray(Image.open(picture.path).convert("RGB"), float).mean((0, 1))
    return red - (green + blue) / 2


@pytest.fixture(scope="module")
def voted(world, loaded):
    """The folder of the collection after a run of group 1 and the votes of one who takes the redder picture."""
    folder = collected.folder_of(world.base / "user" / "hyper_sd" / "comparisons", "my taste")
    prompt = loaded.evaluate(examples.OPEN, examples.read(NAME))
    assert not {node["class_type"] for node in prompt.values()} & set(LEARN)  # switched off until there are votes
    record = _run(world.server, prompt)
    assert record["status"]["status_str"] == "success", record["status"]
    comparison = load_key(folder)
    for number, pair in enumerate(comparison.pairs):
        left, right = (_redness(comparison.pictures[key]) for key in (pair.left, pair.right))
        collected.vote(folder, number, "left" if left > right else "right", 1.0)
    return folder


def test_first_run_gives_pairs_of_one_prompt_each(voted):
    comparison = load_key(voted)
    prompts = [comparison.pictures[pair.left].prompt for pair in comparison.pairs]
    assert len(set(prompts)) == 24
    assert sum(pair.first is None for pair in comparison.pairs) == 48
    assert sum(pair.first is not None for pair in comparison.pairs) in (4, 5)
    for pair in comparison.pairs:
        assert comparison.pictures[pair.left].prompt == comparison.pictures[pair.right].prompt


def test_second_run_learns_the_taste_trains_on_it_and_draws(world, page, voted):
    prompt = page.evaluate(SECOND, examples.read(NAME))
    kinds = {node["class_type"]: node["inputs"] for node in prompt.values()}
    assert set(LEARN) <= kinds.keys()
    assert "HyperSDVote" not in kinds
    assert kinds["HyperSDTrainLora"]["reward"] == "my_taste"
    kinds["HyperSDTrainLora"] |= {"steps": 2, "rank": 2, "preview_every": 100}
    kinds["HyperSDPrompts"]["prompts"] = "mango\nbird"
    record = _run(world.server, prompt)
    assert record["status"]["status_str"] == "success", json.dumps(record["status"])[:2000]
    said = " ".join(text for output in record["outputs"].values() for text in output.get("text", []))
    assert "Written:" in said
    images = [image for output in record["outputs"].values() for image in output.get("images", [])]
    assert len([image for image in images if image["type"] == "output"]) == 4  # two of each prompt
    with safe_open(world.loras / "my_taste_00001_.safetensors", framework="pt") as file:
        assert file.metadata()["hyper_sd_rewards"] == "my_taste"
