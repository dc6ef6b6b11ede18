from dataclasses import replace

import pytest
import torch
from hyper_sd.tests.training.fakes import WIDTH, make_examples
from hyper_sd.tests.training.world import ADVERSARIAL, PLAIN, World
from hyper_sd.training.data.examples import Group, GroupedExamples
from hyper_sd.training.data.texts import stacked

LENGTHS = (7, 5, 4, 3, 1, 5)


def text(tokens, dtype=torch.float64):
    return {"context": torch.randn(1, tokens, WIDTH, generator=torch.Generator().manual_seed(tokens), dtype=dtype)}


def grouped(lengths, empty=2):
    """Returns examples with captions of these lengths."""
    latents = make_examples(len(lengths)).latents
    return GroupedExamples([Group(latents, tuple(map(text, lengths)), text(empty))])


def test_text_whose_length_divides_a_longer_one_is_repeated():
    joined = stacked([{**text(n), "y": torch.full((1, 2), float(n))} for n in (6, 2, 1, 3)])
    assert joined.keys() == {"context", "y"}
    assert torch.equal(joined["context"], torch.cat([text(n)["context"].repeat(1, 6 // n, 1) for n in (6, 2, 1, 3)]))
    assert joined["y"][:, 0].tolist() == [6, 2, 1, 3]


@pytest.mark.parametrize(
    ("lengths", "counted"),
    [((3, 2), [3, 2]), ((7, 5, 4, 3), [7, 5, 4, 3]), ((1, 4, 5, 6, 7), [4, 4, 5, 6, 7]), ((2, 6, 4, 5), [4, 6, 4, 5])],
)
def test_no_text_becomes_longer_than_the_longest(lengths, counted):
    joined = stacked([text(n) for n in lengths])
    assert joined["context"].shape == (len(lengths), max(lengths), WIDTH)
    assert joined["tokens"].tolist() == counted
    for row, n, count in zip(joined["context"], lengths, counted, strict=True):
        assert torch.equal(row[:count], text(n)["context"][0].repeat(count // n, 1))
        assert not row[count:].any()


@pytest.mark.parametrize("stage", [PLAIN, ADVERSARIAL])
def test_batch_of_different_lengths_learns_what_its_rows_by_themselves_do(stage):
    w, examples = World(stage=stage, backbone=bool(stage.adversarial_weight)), grouped(LENGTHS)
    learning = [p for p in w.objective.parameters() if p.requires_grad]

    def learnt(numbers, draws):
        losses = w.objective(examples.batch(numbers, 0), draws, stage)
        return losses, torch.autograd.grad(losses["loss"], learning, allow_unused=True)

    losses, gradients = learnt(range(6), w.draws)
    alone = [learnt([n], w.draws.part(slice(n, n + 1))) for n in range(6)]
    for name, value in losses.items():
        assert value.item() == pytest.approx(sum(own[name].item() for own, _ in alone) / 6, rel=1e-10)
    for gradient, *own in zip(gradients, *(gradients for _, gradients in alone), strict=True):
        assert gradient is None or torch.allclose(gradient, sum(own) / 6, atol=1e-10)
    assert sum(gradient.count_nonzero() for gradient in gradients if gradient is not None) > 100


def test_each_length_is_one_call_of_the_network():
    w, seen = World(), []

    def counted(network, x, time, conditioning):
        seen.append(tuple(conditioning["context"].shape[:2]))
        return w.denoiser.call(network, x, time, conditioning)

    batch = grouped(LENGTHS).batch(range(6), 0)
    replace(w.denoiser, call=counted).predict(batch.latents, w.draws.t_n, batch.conditioning)
    assert sorted(seen) == [(1, 4), (1, 7), (2, 3), (2, 5)]


def test_lengths_change_neither_the_buckets_nor_the_rows_of_a_batch():
    examples = grouped(LENGTHS)
    assert examples.buckets == [[0, 1, 2, 3, 4, 5]]
    batch = examples.batch([4, 1], 0)
    assert torch.equal(batch.latents, make_examples(6).latents[[4, 1]])
    assert batch.conditioning["tokens"].tolist() == [2, 5]
    assert batch.unconditional["tokens"].tolist() == [2, 2]


def test_largest_example_has_the_longest_text_and_the_largest_latents():
    captions = (text(2), text(9)), (text(1), text(1))
    groups = [Group(torch.zeros(2, 2, side, side), texts, text(1)) for side, texts in zip((4, 8), captions, strict=True)]
    largest = GroupedExamples(groups).largest()
    assert largest.latents.shape == (1, 2, 8, 8)
    assert torch.equal(largest.conditioning["context"], text(9)["context"])
