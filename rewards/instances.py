"""What things are in a picture and where, found for every cell of a grid in SOLO's manner; as a loss, the perceptual term.

Source: Wang et al., "SOLO: Segmenting Objects by Locations", arXiv 1912.04488; as feedback for a generator: UniFL,
arXiv 2404.05595, algorithm 1.
"""

from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from safetensors import SafetensorError, safe_open
from torch import nn

from .embedded import INSTANCES, SIZE, Trunk, load_part
from .scorer import resized

GRID, MASK = 8, 32  # cells of a side, and pixels of a mask's side
CENTRE = 0.2  # share of a thing's width and height around its middle whose cells answer for it; SOLO's epsilon
FOCAL_ALPHA, FOCAL_GAMMA = 0.25, 2.0  # source: Lin et al., arXiv 1708.02002
DICE_WEIGHT = 3.0  # SOLO's lambda
LAST = "kind.2.weight"  # of the layer that has an output for each kind
CERTAIN, SAME = 0.3, 0.5  # the least probability of a thing that is found; the overlap from which two are one


@dataclass(frozen=True)
class Instances:
    """The things in one picture.

    Args:
        masks: where each is, float [things, height, width] from 0 to 1, of any size, over the whole picture.
        categories: the number of the kind of each, int [things].
    """

    masks: torch.Tensor
    categories: torch.Tensor


@dataclass(frozen=True)
class Targets:
    """What a network should say of a batch.

    Args:
        kinds: 1 where a cell answers for a thing of a kind, else 0, float [batch, kinds, GRID, GRID].
        cells: the cells that answer, (picture, row, column), int [count, 3].
        masks: of the thing that each of these answers for, float [count, MASK, MASK].
    """

    kinds: torch.Tensor
    cells: torch.Tensor
    masks: torch.Tensor


class InstanceNet(nn.Module):
    """Finds things in pictures of the embedded model's world.

    Args:
        kinds: of things.
    """

    def __init__(self, kinds: int):
        super().__init__()
        width = 64
        self.trunk = Trunk((48, 64, 96), (1, 1, 1))
        self.lateral = nn.ModuleList(nn.Conv2d(channels, width, 1) for channels in (48, 64, 96))
        self.kind = nn.Sequential(nn.Conv2d(width + 2, width, 3, padding=1), nn.GELU(), nn.Conv2d(width, kinds, 3, padding=1))
        self.mask = nn.Sequential(
            nn.Conv2d(width + 2, width, 3, padding=1), nn.GELU(), nn.Conv2d(width, width, 3, padding=1), nn.GELU(),
            nn.Conv2d(width, GRID * GRID, 1),
        )  # fmt: skip

    def freeze(self) -> "InstanceNet":
        """Returns the network in eval mode, with no weight that learns; gradients reach the pictures all the same."""
        return self.eval().requires_grad_(False)

    def forward(self, images: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Returns logits of the kinds [batch, kinds, GRID, GRID] and of the masks [batch, GRID * GRID, MASK, MASK].

        Args:
            images: [batch, 3, height, width] from 0 to 1; the middle square is looked at.
        """
        large, middle, small = (layer(x) for layer, x in zip(self.lateral, self.trunk(resized(images, SIZE)), strict=True))
        middle = middle + F.interpolate(small, scale_factor=2, mode="bilinear")
        large = large + F.interpolate(middle, scale_factor=2, mode="bilinear")
        kinds = self.kind(_with_places(F.adaptive_avg_pool2d(middle, GRID) + small))
        return kinds, self.mask(_with_places(large))

    def loss(self, images: torch.Tensor, labels: Sequence[Instances]) -> torch.Tensor:
        """Returns how far what is seen in pictures is from what should be there, a scalar, differentiable to the pictures.

        loss = focal(kinds) + 3 Dice(masks), as SOLO's.

        Args:
            images: [batch, 3, height, width] from 0 to 1.
            labels: of each picture.
        """
        kinds, masks = self(images)
        wanted = targets(labels, kinds.shape[1])
        return solo_loss(kinds, masks, Targets(*(part.to(images.device) for part in vars(wanted).values())))

    @torch.no_grad()
    def labels(self, images: torch.Tensor) -> list[Instances]:
        """Returns the things that are seen in pictures [batch, 3, height, width] from 0 to 1, most certain first."""
        kinds, masks = self(images)
        return [_found(kind.sigmoid(), mask.sigmoid()) for kind, mask in zip(kinds, masks, strict=True)]


def load_instances(file: Path) -> InstanceNet:
    """Returns the frozen network of the embedded model's world.

    Args:
        file: of the scorers.
    Raises: RewardError as load_part().
    """
    kinds = 1  # where the file cannot be read, load_part() says why
    with suppress(OSError, SafetensorError), safe_open(file, "pt") as opened:
        kinds = opened.get_slice(f"{INSTANCES}{LAST}").get_shape()[0]
    return load_part(InstanceNet(kinds), file, INSTANCES).freeze()


def _with_places(x: torch.Tensor) -> torch.Tensor:
    """Returns features [batch, c, h, w] with the column and the row of each, from -1 to 1, as two further channels."""
    height, width = x.shape[2:]
    rows, columns = torch.linspace(-1, 1, height).to(x), torch.linspace(-1, 1, width).to(x)
    places = torch.stack([columns.expand(height, width), rows[:, None].expand(height, width)])
    return torch.cat([x, places.expand(len(x), 2, height, width)], 1)


def middle_square(masks: torch.Tensor) -> torch.Tensor:
    """Returns the middle squares of masks [things, height, width] as float [things, MASK, MASK]."""
    height, width = masks.shape[1:]
    side = min(height, width)
    top, left = (height - side) // 2, (width - side) // 2
    square = masks[:, top : top + side, left : left + side].float()
    return F.interpolate(square[:, None], (MASK, MASK), mode="bilinear", antialias=True)[:, 0].clamp(0, 1)


def targets(labels: Sequence[Instances], kinds: int) -> Targets:
    """Returns which cells answer for what: those around the middle of a thing's mass, a fifth of its size wide.

    Where two things want one cell, the smaller one has it. A thing of which the middle square shows nothing counts for nothing.

    Args:
        labels: of each picture.
        kinds: how many kinds there are.
    """
    wanted, owners = torch.zeros(len(labels), kinds, GRID, GRID), {}
    for picture, label in enumerate(labels):
        masks = middle_square(label.masks.cpu())
        for thing in masks.sum((1, 2)).argsort(descending=True).tolist():
            for row, column in _cells(masks[thing]):
                wanted[picture, :, row, column] = 0
                wanted[picture, int(label.categories[thing]), row, column] = 1
                owners[picture, row, column] = masks[thing]
    cells = torch.tensor(list(owners), dtype=torch.long).view(-1, 3)
    return Targets(wanted, cells, torch.stack(list(owners.values())) if owners else torch.zeros(0, MASK, MASK))


def _cells(mask: torch.Tensor) -> list[tuple[int, int]]:
    """Returns the (row, column) of the cells that answer for a mask [MASK, MASK]."""
    inside = mask > 0.5
    if not bool(inside.any()):
        return []
    spans = []
    for axis in (1, 0):
        share = mask.sum(axis) / mask.sum()
        middle = float((share * (torch.arange(MASK) + 0.5)).sum()) / MASK
        filled = inside.any(axis).nonzero()
        half = CENTRE / 2 * float(filled[-1] - filled[0] + 1) / MASK
        low, here, high = (min(int(max(place, 0) * GRID), GRID - 1) for place in (middle - half, middle, middle + half))
        spans.append(range(max(low, here - 1), min(high, here + 1) + 1))
    return [(row, column) for row in spans[0] for column in spans[1]]


def solo_loss(kinds: torch.Tensor, masks: torch.Tensor, wanted: Targets) -> torch.Tensor:
    """Returns focal(kinds) / cells that answer + 3 mean Dice(masks of these cells), a scalar.

    Args:
        kinds: logits [batch, kinds, GRID, GRID].
        masks: logits [batch, GRID * GRID, MASK, MASK].
        wanted: what they should be.
    """
    count = max(len(wanted.cells), 1)
    crossed = F.binary_cross_entropy_with_logits(kinds, wanted.kinds, reduction="none")
    right = torch.where(wanted.kinds > 0, kinds.sigmoid(), 1 - kinds.sigmoid())
    balance = torch.where(wanted.kinds > 0, FOCAL_ALPHA, 1 - FOCAL_ALPHA)
    focal = (balance * (1 - right) ** FOCAL_GAMMA * crossed).sum() / count
    picture, row, column = wanted.cells.unbind(1)
    seen, there = masks[picture, row * GRID + column].sigmoid(), wanted.masks
    overlap = 2 * (seen * there).sum((1, 2)) / (seen.square().sum((1, 2)) + there.square().sum((1, 2))).clamp(min=1e-6)
    return focal + DICE_WEIGHT * (1 - overlap).sum() / count


def _found(kinds: torch.Tensor, masks: torch.Tensor) -> Instances:
    """Returns the things of one picture, of several that overlap the most certain one."""
    best, category = kinds.flatten(1).max(0)
    order = [cell for cell in best.argsort(descending=True).tolist() if best[cell] > CERTAIN]
    kept: list[int] = []
    for cell in order:
        own = masks[cell] > 0.5
        others = [masks[other] > 0.5 for other in kept]
        if bool(own.any()) and all(float((own & o).sum()) <= SAME * float((own | o).sum()) for o in others):
            kept.append(cell)
    return Instances(masks[kept], category[kept])
