"""The node that scores, sorts and keeps, on the pinned host with the scorers that come with the pack."""

import pytest
import torch
from hyper_sd.errors import RewardError
from hyper_sd.models.embedded import SCORERS, TOKENIZER
from hyper_sd.rewards import embedded
from hyper_sd.rewards.scorer import score_all
from hyper_sd.tests.nodes.model_world import until

pytest.importorskip("transformers", reason="ComfyUI's own requirement")
COUNT = 10  # more than are looked at together


@pytest.fixture
def node(pack):
    """The node, with no scorer held before and after."""
    held = node_module()._held
    held.clear()
    yield pack["HyperSDScore"]
    held.clear()


def node_module():
    """Returns the node's module, which imports the host."""
    import importlib

    return importlib.import_module("hyper_sd.nodes.score")


@pytest.fixture
def images():
    """Ten pictures, from noise alone to a clean square on white."""
    drawing = torch.ones(1, 128, 96, 3)
    drawing[:, 40:90, 30:70] = torch.tensor([0.9, 0.1, 0.1])
    noise = torch.rand(COUNT, 128, 96, 3, generator=torch.Generator().manual_seed(0))
    share = torch.tensor([0.3, 0.9, 0.1, 0.7, 0.5, 1.0, 0.0, 0.2, 0.8, 0.6]).view(-1, 1, 1, 1)
    return drawing * (1 - share) + noise * share


def test_pictures_are_sorted_by_the_scorers_own_scores(node, images):
    ordered, best, text, numbers = node.execute(images, "red square", "embedded_match", 3).args
    scorer = embedded.load_match(SCORERS, TOKENIZER)
    scores = score_all(scorer, images.movedim(-1, 1), ["red square"] * COUNT)
    order = scores.argsort(descending=True, stable=True)
    torch.testing.assert_close(torch.tensor(numbers), scores[order], rtol=1e-4, atol=1e-3)
    assert ordered.equal(images[order])
    assert best.equal(ordered[:3])
    lines = text.splitlines()
    assert lines[0] == f"1. picture {order[0] + 1}: {numbers[0]:.3f}"
    assert lines[3] == "not kept:"
    assert len(lines) == COUNT + 1


def test_each_picture_may_have_a_prompt_of_its_own(node, images):
    alone = [node.execute(images[i : i + 1], prompt, "embedded_match", 0).args[3][0] for i, prompt in enumerate(["cat", "dog"])]
    numbers = node.execute(images[:2], "cat\ndog", "embedded_match", 0).args[3]
    assert numbers == pytest.approx(sorted(alone, reverse=True), abs=1e-3)


def test_scorer_of_the_picture_alone_reads_no_prompt_and_all_are_kept(node, images):
    numbers = node.execute(images, "", "embedded_quality", 0).args[3]
    ordered, best, text, others = node.execute(images, "one\ntwo\nthree", "embedded_quality", 99).args
    assert others == numbers
    assert best.equal(ordered)
    assert "not kept" not in text


def test_see_through_pictures_keep_all_channels_in_the_outputs(node, images):
    clear = torch.cat([images, torch.rand(COUNT, 128, 96, 1)], -1)
    plain, seen = (node.execute(given, "cat", "embedded_match", 2).args for given in (images, clear))
    assert seen[3] == plain[3]
    assert seen[0].shape == clear.shape
    assert seen[0][..., :3].equal(plain[0])


def test_text_is_shown_on_the_node(node, images):
    output = node.execute(images, "cat", "embedded_match", 2)
    assert output.ui.as_dict()["text"] == (output.args[2],)


def test_one_scorer_is_held_and_read_once(node, images, monkeypatch):
    module, read = node_module(), []
    original = module.load
    monkeypatch.setattr(module, "load", lambda scorer_id, *rest: read.append(scorer_id) or original(scorer_id, *rest))
    for scorer_id in ("embedded_match", "embedded_match", "embedded_quality", "embedded_match"):
        node.execute(images, "cat", scorer_id, 1)
        assert [key[0] for key in module._held] == [scorer_id]
    assert read == ["embedded_match", "embedded_quality", "embedded_match"]


def test_host_has_the_scorer_among_its_models_and_may_free_it(node, images, host):
    management = host.comfy.model_management
    numbers = node.execute(images, "cat", "embedded_match", 1).args[3]
    (patcher,) = node_module()._held.values()
    assert patcher in management.loaded_models()
    management.unload_all_models()
    assert patcher not in management.loaded_models()
    assert node.execute(images, "cat", "embedded_match", 1).args[3] == numbers


def test_progress_counts_pictures_and_an_interrupt_ends_it(node, images, host):
    seen, management = [], host.comfy.model_management

    def stop(value, total):
        seen.append((value, total))
        management.interrupt_current_processing()

    host.on_progress(stop)
    try:
        with pytest.raises(management.InterruptProcessingException):
            node.execute(images, "cat", "embedded_match", 1)
    finally:
        host.on_progress(None)
        management.interrupt_current_processing(False)
    assert seen == [(8, COUNT)]


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"scorer": "beauty"}, "no score 'beauty'; choose one of clip"),
        ({"prompt": "one\ntwo"}, f"prompt has 2 lines for {COUNT} pictures"),
        ({"keep": -1}, "keep must be a whole number"),
        ({"scorer": "pick_score"}, "PickScore lacks its files: .* is not there.*Download PickScore"),
        ({"images": torch.rand(2, 7, 64, 3)}, "8 pixels or more a side, got 64x7"),
        ({"images": torch.full((1, 64, 64, 3), float("nan"))}, "values that are not numbers; draw it again"),
        ({"images": torch.rand(1, 64, 64, 1)}, "images must be a batch of pictures in red, green and blue"),
        ({"images": torch.rand(0, 64, 64, 3)}, "give at least one picture"),
    ],
)
def test_what_cannot_be_scored_is_refused_with_one_sentence(node, images, given, said):
    with pytest.raises(RewardError, match=said):
        node.execute(**{"images": images, "prompt": "cat", "scorer": "embedded_match", "keep": 4, **given})
    assert not node_module()._held


def test_graph_runs_in_the_host_and_hands_on_best_pictures_and_numbers(world):
    graph = {
        "white": {"class_type": "EmptyImage", "inputs": {"width": 64, "height": 64, "batch_size": 3, "color": 0xFFFFFF}},
        "score": {
            "class_type": "HyperSDScore",
            "inputs": {"images": ["white", 0], "prompt": "cat", "scorer": "embedded_match", "keep": 2},
        },
        "best": {"class_type": "PreviewImage", "inputs": {"images": ["score", 1]}},
        "number": {"class_type": "PreviewAny", "inputs": {"source": ["score", 3]}},
    }
    status, answer = world.ask("/prompt", {"prompt": graph})
    assert status == 200, answer
    record = until(lambda: world.ask(f"/history/{answer['prompt_id']}")[1].get(answer["prompt_id"]))
    outputs = record["outputs"]
    assert record["status"]["status_str"] == "success", record["status"]
    assert [line.partition(":")[0] for line in outputs["score"]["text"][0].splitlines()] == [
        "1. picture 1", "2. picture 2", "not kept", "3. picture 3",
    ]  # fmt: skip
    assert len(outputs["best"]["images"]) == 2
    assert len(outputs["number"]["text"]) == 3
