"""The instances' loss against SOLO's terms written out anew, and what the embedded model's network finds."""

import pytest
import torch
from hyper_sd.models.embedded import SCORERS
from hyper_sd.rewards.instances import GRID, MASK, InstanceNet, Instances, Targets, load_instances, solo_loss, targets

KINDS = 32


def disc(x: float, y: float, radius: float, size: int = 128) -> torch.Tensor:
    """Returns a mask [size, size] of a disc; all in shares of the side."""
    place = (torch.arange(size) + 0.5) / size
    return ((place[None] - x) ** 2 + (place[:, None] - y) ** 2 < radius**2).float()


def test_cells_in_the_middle_answer_for_a_thing():
    found = targets([Instances(disc(0.3, 0.7, 0.2)[None], torch.tensor([5]))], KINDS)
    assert found.kinds[0, 5].sum() == found.kinds.sum() == len(found.cells)
    assert [0, int(0.7 * GRID), int(0.3 * GRID)] in found.cells.tolist()
    assert all(abs((row + 0.5) / GRID - 0.7) < 0.2 and abs((column + 0.5) / GRID - 0.3) < 0.2 for _, row, column in found.cells)
    assert found.masks.shape[1:] == (MASK, MASK)
    assert float(found.masks[0].mean()) == pytest.approx(torch.pi * 0.2**2, rel=0.02)


def test_smaller_thing_has_the_cell_that_two_want():
    large, small = disc(0.5, 0.5, 0.4), disc(0.5, 0.5, 0.1)
    found = targets([Instances(torch.stack([small, large]), torch.tensor([1, 2]))], KINDS)
    assert found.kinds[0, 1, GRID // 2, GRID // 2] == 1
    assert found.kinds[0, 2, GRID // 2, GRID // 2] == 0


def test_nothing_in_a_picture_is_nothing_to_find():
    found = targets([Instances(torch.zeros(1, 64, 64), torch.tensor([1]))], KINDS)
    assert found.kinds.sum() == 0
    assert found.masks.shape == (0, MASK, MASK)
    assert solo_loss(torch.full((1, KINDS, GRID, GRID), -9.0), torch.zeros(1, GRID * GRID, MASK, MASK), found) < 1e-3


def test_loss_equals_solos_terms_written_out_anew():
    generator = torch.Generator().manual_seed(0)
    kinds = torch.randn(2, KINDS, GRID, GRID, generator=generator, dtype=torch.float64)
    masks = torch.randn(2, GRID * GRID, MASK, MASK, generator=generator, dtype=torch.float64)
    labels = [
        Instances(torch.stack([disc(0.2, 0.2, 0.15), disc(0.7, 0.6, 0.2)]), torch.tensor([3, 9])),
        Instances(disc(0.5, 0.4, 0.3)[None], torch.tensor([0])),
    ]
    wanted = targets(labels, KINDS)
    wanted = Targets(wanted.kinds.double(), wanted.cells, wanted.masks.double())
    focal = 0.0
    for truth, logit in zip(wanted.kinds.flatten().tolist(), kinds.flatten().tolist(), strict=True):
        p = 1 / (1 + torch.e**-logit)
        right, balance = (p, 0.25) if truth else (1 - p, 0.75)
        focal -= balance * (1 - right) ** 2 * float(torch.tensor(right).log())
    dice = 0.0
    for (picture, row, column), q in zip(wanted.cells.tolist(), wanted.masks, strict=True):
        p = 1 / (1 + torch.exp(-masks[picture, row * GRID + column]))
        dice += 1 - 2 * float((p * q).sum()) / (float((p**2).sum()) + float((q**2).sum()))
    count = len(wanted.cells)
    assert count >= 3
    assert float(solo_loss(kinds, masks, wanted)) == pytest.approx(focal / count + 3 * dice / count, rel=1e-5)


def test_gradient_reaches_the_picture_and_no_weight():
    network = InstanceNet(KINDS).freeze()
    images = torch.rand(1, 3, 128, 128, generator=torch.Generator().manual_seed(0)).requires_grad_()
    network.loss(images, [Instances(disc(0.5, 0.5, 0.3)[None], torch.tensor([2]))]).backward()
    assert images.grad.abs().sum() > 0
    assert all(weight.grad is None for weight in network.parameters())


def test_embedded_network_sees_one_disc_where_it_is():
    network, there = load_instances(SCORERS), disc(0.5, 0.5, 0.35)
    page = torch.stack([1 - 0.1 * there, 1 - 0.9 * there, 1 - 0.9 * there])[None]
    (found,) = network.labels(page)
    assert len(found.masks) >= 1
    best = torch.nn.functional.interpolate(found.masks[:1, None], (128, 128), mode="bilinear")[0, 0] > 0.5
    assert float((best & (there > 0)).sum()) / float((best | (there > 0)).sum()) > 0.8
