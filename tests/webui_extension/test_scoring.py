"""The scorer behind the option "Sort by score" on the stub host: files, prompts, faults, and the card's memory."""

import random
from types import SimpleNamespace

import pytest
import torch
from hyper_sd.errors import RewardError
from hyper_sd.models.embedded import SCORERS as FILE
from hyper_sd.models.embedded import TOKENIZER
from hyper_sd.rewards import embedded
from hyper_sd.tests.webui_extension.sorting_jobs import QUALITY, ids, job_of, panel, pixels, values
from hyper_sd.tests.webui_extension.stub_gallery import deliver
from hyper_sd.webui_extension.settings_table import SCORE_KEY

pytest.importorskip("transformers", reason="the hosts' own requirement")


def test_each_picture_is_scored_by_its_own_prompt_in_plain_words(host, pictures, monkeypatch):
    from hyper_sd.webui_extension import scoring

    asked = []
    monkeypatch.setattr(scoring.Scoring, "score", lambda self, picture, prompt: asked.append(prompt) or 1.0)
    prompts = ["a (red:1.3) square <lora:style:0.7>", "[dog:cat:0.5]", "one BREAK  two", "plain", "x", "y"]
    deliver(host, job_of(prompt=prompts, args=panel("embedded_match")), pictures)
    assert asked == ["a red square", "cat", "one two", "plain", "x", "y"]


def test_match_score_reads_the_prompt(host, pictures):
    prompts = ["red square"] * 6
    job = deliver(host, job_of(prompt=prompts, args=panel("embedded_match")), pictures)
    scorer = embedded.load_match(FILE, TOKENIZER)
    assert values([job.saved[0][1]])[0] == pytest.approx(scorer.score(pixels(pictures[0]), ["red square"]).item(), rel=1e-3)


def test_missing_files_are_told_before_the_first_step_and_no_picture_is_lost(host, pictures):
    p = job_of(args=panel("pick_score"), sd_model=host.model)
    host.scripts[0].process(p, *p.args)
    (said,) = p.comments
    assert said.startswith("Hyper-SD: the pictures are not sorted. PickScore lacks its files: ")
    assert "Download PickScore 1" in said
    assert "in the tab Hyper-SD models" in said
    assert host.warnings == [said]
    p.comments.clear()
    job = deliver(host, p, pictures)
    assert ids(job.processed.images[1:]) == ids(pictures) == ids(job.grid)
    assert not [text for text in job.processed.infotexts if "Hyper-SD" in text]
    assert p.comments == [said]
    assert p.extra_generation_params == {"Hyper-SD problem": said}  # which the API's answer has


class Faulty:
    """A scorer that fails at a picture."""

    def __init__(self, error: Exception, at: int):
        self.error, self.at, self.count = error, at, 0

    def __call__(self, scorer, images, prompts):
        self.count += 1
        if self.count > self.at:
            raise self.error
        return torch.tensor([1.0])


@pytest.mark.parametrize(
    "error",
    [
        RewardError("EmbeddedQuality gave a score that is not a number ([nan])."),
        torch.cuda.OutOfMemoryError("out of memory"),
        RuntimeError("not enough memory: you tried to allocate"),
        MemoryError("no memory"),
        OSError("the disk is gone"),
    ],
)
@pytest.mark.parametrize("at", [0, 3])
def test_fault_of_the_scorer_is_told_once_and_no_picture_is_lost(host, pictures, monkeypatch, error, at):
    from hyper_sd.webui_extension import scoring

    faulty = Faulty(error, at)
    monkeypatch.setattr(scoring, "score_all", faulty)
    p = job_of()
    job = deliver(host, p, pictures)
    assert ids(job.processed.images[1:]) == ids(pictures) == ids(job.grid)
    assert faulty.count == at + 1
    (said,) = p.comments
    assert said == f"Hyper-SD: the pictures are not sorted. {QUALITY} could not score them. {error}"
    assert host.warnings == [said]
    assert [SCORE_KEY in text for _, text in job.saved] == [True] * at + [False] * (6 - at)
    assert deliver(host, job_of(args=panel("none")), pictures).processed.comments == ""


def test_score_that_is_no_number_is_a_fault(host, pictures, monkeypatch):
    from hyper_sd.rewards.embedded import EmbeddedQuality

    monkeypatch.setattr(EmbeddedQuality, "rate", lambda self, images, prompts: images.new_full([len(images)], float("nan")))
    p = job_of()
    assert ids(deliver(host, p, pictures).processed.images[1:]) == ids(pictures)
    assert "gave a score that is not a number" in p.comments[0]


def test_scorer_is_read_once_a_job_and_forgotten_after_it(host, pictures, monkeypatch):
    from hyper_sd.webui_extension import scoring, sorting

    read, emptied, original = [], [], scoring.load
    monkeypatch.setattr(host._modules["modules.devices"], "torch_gc", lambda: emptied.append(True))
    monkeypatch.setattr(scoring, "load", lambda *given: read.append(given[0]) or original(*given))
    p = job_of()
    for _ in range(2):
        deliver(host, p, pictures)
        assert getattr(p, sorting.SORTING) is None
        assert not sorting._OPEN
    assert read == ["embedded_quality"] * 2
    assert len(emptied) == 2


def test_reading_a_scorer_draws_no_random_numbers(host, pictures):
    before, others = torch.get_rng_state(), random.getstate()
    deliver(host, job_of(args=panel("embedded_match")), pictures)
    assert torch.equal(torch.get_rng_state(), before)
    assert random.getstate() == others


class Card:
    """A scorer that remembers where it has been moved, and whose card may be too small."""

    notice = ""

    def __init__(self, scorer, room: int = 10**12):
        self.scorer, self.room, self.places, self.place = scorer, room, [], "cpu"

    def parameters(self):
        size = SimpleNamespace(type=self.place)
        return [SimpleNamespace(device=size, numel=lambda: 1000, element_size=lambda: 4)]

    def buffers(self):
        return []

    def to(self, place):
        self.place = torch.device(place).type
        self.places.append(self.place)
        if self.place == "cuda" and self.room < 4000:
            raise torch.cuda.OutOfMemoryError("out of memory")


@pytest.fixture
def with_card(host, monkeypatch):
    """Returns a function that gives the host a card, and the scorer on it."""
    from hyper_sd.webui_extension import scoring

    def make(**given):
        card = Card(None, **given)
        monkeypatch.setattr(host._modules["modules.devices"], "device", torch.device("cuda"))
        monkeypatch.setattr(scoring, "load", lambda *given: card)
        monkeypatch.setattr(scoring, "score_all", lambda scorer, images, prompts: -images.std().view(1))
        return card

    return make


def test_scorer_is_on_the_card_while_a_batch_is_looked_at(host, pictures, with_card, monkeypatch):
    asked, card = [], with_card()
    management = SimpleNamespace(free_memory=lambda size, device: asked.append((size, device.type)))
    monkeypatch.setitem(__import__("sys").modules, "backend.memory_management", management)  # Forge's
    deliver(host, job_of(), pictures)
    assert card.places == ["cuda", "cpu"] * 3
    assert asked == [(4000 + 2**29, "cuda")] * 3


def test_card_that_is_too_small_leaves_the_scoring_to_the_processor(host, pictures, with_card):
    card, p = with_card(room=0), job_of()
    job = deliver(host, p, pictures)
    assert card.places == ["cuda", "cpu"]
    (said,) = p.comments
    assert said.startswith(f"Hyper-SD: the card has too little memory for {QUALITY}, so the processor scores the pictures")
    assert host.warnings == [said]
    assert ids(job.processed.images[1:]) != ids(pictures)
    assert values(job.processed.infotexts[1:]) == sorted(values(job.processed.infotexts[1:]), reverse=True)


def test_page_says_what_a_chosen_scorer_lacks(host):
    from hyper_sd.webui_extension import accordion

    assert "lacks its files" not in accordion.look(*panel())[0]
    text, button = accordion.look(*panel("HPS v2.1"))
    assert text.startswith(accordion.HINT)
    assert "**HPS v2.1 lacks its files: " in text
    assert button == {"visible": False}
