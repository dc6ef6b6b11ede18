from dataclasses import replace
from itertools import zip_longest

import pytest
import torch
from hyper_sd.errors import TrainingError
from hyper_sd.tests.training.fakes import TOKENS, WIDTH, make_denoiser
from hyper_sd.training.data.cache import CachedExamples, Encoders, encode, latents_path
from hyper_sd.training.data.prompts import Teacher, draw_items, read_prompts

TEACHER = Teacher("net", (32, 32), (2, 4, 4), steps=4, guidance_scale=2.0, seed=5)


def encode_texts(texts):
    g = [torch.Generator().manual_seed(len(text)) for text in texts]
    return {"context": torch.stack([torch.randn(TOKENS, WIDTH, generator=each) for each in g])}


def refuse(pixels):
    raise AssertionError("there are no images")


ENCODERS = Encoders(refuse, encode_texts, "texts")


@pytest.fixture
def items(tmp_path):
    (tmp_path / "prompts.txt").write_text("a fox\n\n  a house \nsnow\na fox\n", encoding="utf-8")
    return read_prompts(tmp_path / "prompts.txt", TEACHER, 2, [])


def fill(items, folder, batch_size=3, world=1, teacher=TEACHER):
    """Encodes and draws as `world` processes would, in turn."""
    for rank in range(world):
        list(encode(items, ENCODERS, folder, batch_size, (rank, world)))
    shares = [draw(items, folder, batch_size, (rank, world), teacher) for rank in range(world)]
    steps = [step for together in zip_longest(*shares) for step in together]
    return CachedExamples(items, folder, "texts"), steps


def draw(items, folder, batch_size=3, share=(0, 1), teacher=TEACHER):
    return draw_items(items, teacher, make_denoiser(dtype=torch.float32), "texts", folder, batch_size, share)


def latents(examples, items):
    return examples.batch(range(len(items)), 0).latents


def test_every_line_that_is_not_blank_gives_its_items(items):
    assert [item.caption for item in items] == ["a fox"] * 2 + ["a house"] * 2 + ["snow"] * 2 + ["a fox"] * 2
    assert [item.repeat for item in items] == [0, 1, 0, 1, 0, 1, 2, 3]
    assert len({item.digest for item in items}) == len(items)


@pytest.mark.parametrize(("encoding", "guessed"), [("utf-8-sig", 0), ("utf-16", 0), ("utf-16-le", 0), ("cp1252", 1)])
def test_prompts_are_read_by_their_mark_or_as_the_last_resort(tmp_path, encoding, guessed):
    mark = "\ufeff" if encoding == "utf-16-le" else ""
    (tmp_path / "prompts.txt").write_bytes(f"{mark}café\r\nnaïve".encode(encoding))
    notes = []
    assert [item.caption for item in read_prompts(tmp_path / "prompts.txt", TEACHER, 1, notes)] == ["café", "naïve"]
    assert ["Windows-1252" in note.reason for note in notes] == [True] * guessed


def test_latents_do_not_depend_on_batches_or_processes(items, tmp_path):
    whole = latents(fill(items, tmp_path / "whole", batch_size=8)[0], items)
    for batch_size, world in ((1, 1), (2, 3)):
        split = latents(fill(items, tmp_path / f"{batch_size} {world}", batch_size, world)[0], items)
        assert torch.allclose(split, whole, atol=1e-5)
    assert len({tuple(row.flatten().tolist()) for row in whole}) == len(items)


def test_examples_hold_the_prompts_encoding(items, tmp_path):
    batch = fill(items, tmp_path)[0].batch([0, 2], 0)
    assert torch.equal(batch.conditioning["context"], encode_texts(["a fox", "a house"])["context"])
    assert torch.equal(batch.unconditional["context"], encode_texts(["", ""])["context"])


def test_drawing_that_was_stopped_goes_on_and_draws_nothing_twice(items, tmp_path):
    list(encode(items, ENCODERS, tmp_path))
    drawing = draw(items, tmp_path)
    progress = [next(drawing) for _ in range(7)]  # nothing done, 4 solver steps of the first batch, 2 of the second
    drawing.close()
    assert [p.done for p in progress] == [0, 0, 1, 2, 3, 3, 4]
    assert progress[-1].eta_seconds > 0
    kept = {path: path.stat().st_mtime_ns for item in items if (path := latents_path(tmp_path, "texts", item)).exists()}
    assert len(kept) == 3
    steps = list(draw(items, tmp_path))
    assert [steps[0].done, steps[-1].done] == [3, 8]
    assert all(path.stat().st_mtime_ns == time for path, time in kept.items())
    assert len(list(draw(items, tmp_path))) == 1


def test_new_line_costs_its_own_image_only(items, tmp_path):
    fill(items, tmp_path)
    (tmp_path / "more.txt").write_text("first\na fox\na house\nsnow\na fox\n", encoding="utf-8")
    more = read_prompts(tmp_path / "more.txt", TEACHER, 2, [])
    _, steps = fill(more, tmp_path)
    assert steps[0].done == 8
    assert steps[-1].total == 10


@pytest.mark.parametrize("change", [{"steps": 5}, {"guidance_scale": 3.0}, {"seed": 6}, {"fingerprint": "other"}])
def test_other_teacher_draws_anew(items, tmp_path, change):
    others = read_prompts(tmp_path / "prompts.txt", replace(TEACHER, **change), 2, [])
    assert not {item.digest for item in items} & {item.digest for item in others}


def test_file_without_prompts_is_refused(tmp_path):
    (tmp_path / "empty.txt").write_text("\n  \n", encoding="utf-8")
    (tmp_path / "bytes.txt").write_bytes(b"\xff\xfe\xff")
    for name, said in (("empty.txt", "holds no prompt"), ("bytes.txt", "UTF-8"), ("none.txt", "cannot be read")):
        with pytest.raises(TrainingError, match=said):
            read_prompts(tmp_path / name, TEACHER, 1, [])


def test_latents_that_are_not_finite_are_refused(items, tmp_path):
    list(encode(items, ENCODERS, tmp_path))
    denoiser = make_denoiser(dtype=torch.float32)
    torch.nn.init.constant_(denoiser.network.conv_out.bias, float("nan"))
    with pytest.raises(TrainingError, match=r"'a fox'.* not finite"):
        list(draw_items(items, TEACHER, denoiser, "texts", tmp_path))


def test_drawing_before_encoding_is_refused(items, tmp_path):
    with pytest.raises(TrainingError, match="cache lacks a file"):
        list(draw(items, tmp_path))
