import dataclasses
import math
from contextlib import nullcontext

import pytest
import torch
from hyper_sd.tests.training.fakes import make_denoiser, make_examples
from hyper_sd.training.config import Stage, TrainingConfig
from hyper_sd.training.data.examples import BatchOrder, LatentExamples, seeded
from hyper_sd.training.data.sealed import save_sealed
from hyper_sd.training.data.teacher_latents import draw_latents
from hyper_sd.training.data.teacher_pairs import FOLDER, ORDER_SEED, PAIR_DRAW, PAIR_SEED, TeacherPairs
from hyper_sd.training.lora_layers import TEACHER, LoraLayers
from torch import nn

CONFIG = TrainingConfig(
    stages=(Stage(1, 5, 0.0, pair_weight=1.0),), batch_size=4, pairs=10, pair_steps=5, guidance_scale=(2.0, 4.0), rank=2, seed=3
)
ALL = slice(0, 4)


def make(config=CONFIG, folder=None, teacher=False, examples=None):
    denoiser = make_denoiser(dtype=torch.float32)
    layers = LoraLayers(denoiser.network, 2)
    if teacher:
        torch.manual_seed(1)
        for parameter in layers.add(TEACHER).parameters():
            nn.init.normal_(parameter, std=0.3)
    examples = examples or make_examples(10, torch.float32)
    return TeacherPairs(config, denoiser, layers, examples, torch.device("cpu"), folder, nullcontext)


def noise(seed, chunk):
    """What a chunk starts from."""
    return torch.randn(4, 2, 4, 4, generator=seeded(seed, PAIR_SEED, chunk))


def chunk_of(step):
    turn, place = divmod(step, 3)
    return int(torch.randperm(3, generator=seeded(3, ORDER_SEED, turn))[place])


def files(folder):
    return sorted((folder / FOLDER).rglob("*.safetensors"))


@pytest.mark.parametrize("teacher", [False, True])
def test_pair_is_what_the_teacher_draws_from_its_noise(teacher):
    pairs, chunk = make(teacher=teacher), chunk_of(1)
    found = pairs.part(1, ALL)
    batch = make_examples(10, torch.float32).batch(BatchOrder([list(range(10))], 4, 3 + PAIR_SEED).numbers(chunk), 0)
    assert torch.equal(found.start, noise(3, chunk))
    assert torch.equal(found.batch.conditioning["context"], batch.conditioning["context"])
    with pairs.layers.using(TEACHER if teacher else None):
        given = found.start, batch.conditioning, batch.unconditional
        *_, (_, expected) = draw_latents(pairs.denoiser, *given, steps=5, guidance_scale=3.0)
    assert torch.allclose(found.batch.latents, expected.float())
    assert found.batch.latents.dtype == torch.float32
    assert not found.batch.latents.requires_grad


def test_every_chunk_comes_once_then_all_again_in_another_order():
    pairs = make()
    turns = [[pairs.part(3 * turn + i, ALL).start for i in range(3)] for turn in range(4)]
    orders = []
    for turn in turns:
        orders.append([next(c for c in range(3) if torch.equal(start, noise(3, c))) for start in turn])
    assert all(sorted(order) == [0, 1, 2] for order in orders)
    assert len(set(map(tuple, orders))) > 1


def test_parts_of_a_chunk_are_the_whole(tmp_path):
    whole = make(folder=tmp_path / "whole").part(2, ALL)
    parts = [make(folder=tmp_path / "parts").part(2, rows) for rows in (slice(0, 1), slice(1, 4))]
    assert torch.equal(torch.cat([part.start for part in parts]), whole.start)
    assert torch.allclose(torch.cat([part.batch.latents for part in parts]), whole.batch.latents, atol=1e-6)
    contexts = torch.cat([part.batch.conditioning["context"] for part in parts])
    assert torch.equal(contexts, whole.batch.conditioning["context"])


def test_what_the_examples_draw_anew_is_that_of_the_row():
    asked = []

    class Asked(LatentExamples):
        def batch(self, numbers, draw):
            asked.append(draw)
            return super().batch(numbers, draw)

    plain, chunk = make_examples(10, torch.float32), chunk_of(0)
    pairs = make(examples=Asked(plain.latents, plain.conditioning, plain.unconditional))
    pairs.part(0, ALL), pairs.part(0, slice(2, 4))
    assert asked == [PAIR_DRAW + 4 * chunk, PAIR_DRAW + 4 * chunk + 2]


@pytest.mark.parametrize("folder", [True, False])
def test_pairs_are_kept(tmp_path, monkeypatch, folder):
    pairs = make(folder=tmp_path if folder else None)
    first = pairs.part(0, ALL)
    monkeypatch.setattr(TeacherPairs, "_draw", lambda *_: pytest.fail("drawn twice"))
    again = (make(folder=tmp_path) if folder else pairs).part(0, ALL)
    assert torch.equal(first.batch.latents, again.batch.latents)
    assert torch.equal(first.start, again.start)


@pytest.mark.parametrize("damage", [b"", b"not a tensor", None, "one bit"])
def test_damaged_file_is_drawn_anew(tmp_path, damage, caplog):
    first = make(folder=tmp_path).part(0, ALL)
    (path,) = files(tmp_path)
    whole = path.read_bytes()
    flipped = whole[:-8] + bytes([whole[-8] ^ 1]) + whole[-7:]
    path.write_bytes({None: whole[:-8], "one bit": flipped}.get(damage, damage))
    again = make(folder=tmp_path).part(0, ALL)
    assert torch.equal(first.batch.latents, again.batch.latents)
    assert path.read_bytes() == whole
    assert caplog.text.count("are drawn anew") == 1


@pytest.mark.parametrize("values", [lambda latents: latents * math.nan, torch.Tensor.long])
def test_file_whose_values_no_teacher_draws_is_drawn_anew(tmp_path, values):
    first = make(folder=tmp_path).part(0, ALL)
    (path,) = files(tmp_path)
    save_sealed(path, {"latents": values(first.batch.latents)})
    assert torch.equal(make(folder=tmp_path).part(0, ALL).batch.latents, first.batch.latents)


@pytest.mark.parametrize(
    "change", [{"seed": 4}, {"batch_size": 8}, {"pair_steps": 10}, {"guidance_scale": (2.0, 5.0)}], ids=str
)
def test_other_settings_take_other_files(tmp_path, change):
    make(folder=tmp_path).part(0, ALL)
    kept = {path: path.read_bytes() for path in files(tmp_path)}
    make(dataclasses.replace(CONFIG, **change), tmp_path).part(0, ALL)
    assert len(files(tmp_path)) == 2
    assert all(path.read_bytes() == content for path, content in kept.items())


def test_settings_that_do_not_decide_the_pairs_take_the_same_files(tmp_path):
    make(folder=tmp_path).part(0, ALL)
    make(dataclasses.replace(CONFIG, learning_rate=1e-3, start_timestep=900, pairs=12), tmp_path).part(0, ALL)
    assert len(files(tmp_path)) == 1


def test_pairs_of_other_prompts_or_another_teacher_are_drawn_anew(tmp_path):
    first = make(folder=tmp_path).part(0, ALL)
    other = make_examples(10, torch.float32)
    other.conditioning = {"context": other.conditioning["context"] + 1}
    again = make(folder=tmp_path, examples=other).part(0, ALL)
    taught = make(folder=tmp_path, teacher=True).part(0, ALL)
    assert torch.equal(first.start, again.start)
    assert not torch.allclose(first.batch.latents, again.batch.latents)
    assert not torch.allclose(first.batch.latents, taught.batch.latents)
    assert len(files(tmp_path)) == 3
