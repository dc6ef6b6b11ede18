"""What things of daily life are in a photo and where: torchvision's Mask R-CNN v2, as labels and as a loss for a generator."""

from collections.abc import Sequence
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import nn

from ..errors import RewardError
from .instances import Instances
from .weights import read_checkpoint, require_fit

FILE = "maskrcnn_resnet50_fpn_v2_coco-73cbd019.pth"
URL = f"https://download.pytorch.org/models/{FILE}"
SHA256 = "73cbd0190fcbe3ba339921fbce2c3a0b6bb9126c9a133c85e43a2a8e060a109e"
TITLE, HOW = "torchvision's Mask R-CNN v2", f"Download {URL} (186 MB, BSD-3-Clause) and give its path."
CERTAIN = 0.5  # the least probability of a thing that is found, and of a pixel that belongs to it


class MaskRCNN(nn.Module):
    """A frozen Mask R-CNN: labels of pictures, and how far other pictures are from labels.

    Source: He et al., arXiv 1703.06870; the weights of torchvision, mask AP 41.8 on COCO. Hyper-SD's paper uses SOLO.
    Args:
        network: torchvision's maskrcnn_resnet50_fpn_v2, or one like it.
    """

    def __init__(self, network: nn.Module):
        super().__init__()
        self.network = network.eval().requires_grad_(False)

    @classmethod
    def load(cls, path: Path, device: torch.device | str = "cpu", size: int = 800) -> "MaskRCNN":
        """Returns the frozen network of the released file.

        Args:
            path: of the file.
            device: that does the work.
            size: pixels to which the shorter side of a picture is brought; smaller ones take less memory.
        Raises: RewardError for another torchvision than torch's own, and for a file that is missing or not the released one.
        """
        require_torchvision()
        from torchvision.models.detection import maskrcnn_resnet50_fpn_v2

        tensors = read_checkpoint(Path(path), SHA256, TITLE, HOW)
        network = maskrcnn_resnet50_fpn_v2(weights=None, weights_backbone=None, min_size=size)
        require_fit(network, tensors, path, HOW)
        network.load_state_dict(tensors)
        return cls(network).to(device)

    def train(self, mode: bool = True) -> "MaskRCNN":
        """Returns the network as it is: it never learns, and its norms keep the statistics of COCO."""
        return self

    @torch.no_grad()
    def labels(self, images: torch.Tensor) -> list[Instances]:
        """Returns what is seen in pictures [batch, 3, height, width] from 0 to 1."""
        return [_things(found) for found in self.network(list(images.float()))]

    def loss(self, images: torch.Tensor, labels: Sequence[Instances]) -> torch.Tensor:
        """Returns how far what is seen in pictures is from labels, a scalar, differentiable to the pictures.

        It is the sum of Mask R-CNN's own losses of kinds, boxes, masks and proposals. Which proposals count is drawn at random
        there; it is drawn alike every time, and the random numbers of everything else stay as they are.

        Args:
            images: [batch, 3, height, width] from 0 to 1.
            labels: of each picture, with masks of any size.
        """
        targets = [_target(label, images.shape[2:], images.device) for label in labels]
        deciding = (self.network, self.network.rpn, self.network.roi_heads)  # what gives losses where it is told to train
        try:
            for part in deciding:
                part.training = True
            with torch.random.fork_rng([images.device] if images.is_cuda else []):
                torch.manual_seed(0)
                losses = self.network(list(images.float()), targets)
        finally:
            for part in deciding:
                part.training = False
        return sum(losses.values())


def _things(found: dict[str, torch.Tensor]) -> Instances:
    certain = found["scores"] >= CERTAIN
    return Instances((found["masks"][certain, 0] >= CERTAIN).float(), found["labels"][certain])


def _target(label: Instances, shape: Sequence[int], device: torch.device) -> dict[str, torch.Tensor]:
    """Returns a label as torchvision wants it: boxes of what each mask covers, kinds, and masks of the picture's size."""
    masks = label.masks.to(device).float()
    if masks.shape[1:] != tuple(shape) and len(masks):
        masks = F.interpolate(masks[:, None], tuple(shape), mode="bilinear", antialias=True)[:, 0]
    masks = masks >= CERTAIN
    covers = masks.flatten(1).any(1)
    masks, categories = masks[covers], label.categories.to(device)[covers]
    spans = [(*_span(mask.any(0)), *_span(mask.any(1))) for mask in masks]
    corners = [(left, top, right, bottom) for left, right, top, bottom in spans]
    boxes = torch.tensor(corners, dtype=torch.float32, device=device).view(-1, 4)
    return {"boxes": boxes, "labels": categories.long(), "masks": masks.view(-1, *shape).to(torch.uint8)}


def _span(filled: torch.Tensor) -> tuple[int, int]:
    """Returns where the filled places of a row begin and end."""
    places = filled.nonzero()
    return int(places[0]), int(places[-1]) + 1


def require_torchvision() -> None:
    """Looks whether torchvision is there and belongs to this torch.

    Raises: RewardError saying what to install.
    """
    try:
        from torchvision.ops import boxes

        boxes.nms(torch.zeros(1, 4), torch.zeros(1), 0.5)
    except (ImportError, OSError, RuntimeError, AttributeError) as error:
        raise RewardError(
            f"Mask R-CNN needs the torchvision that belongs to torch {torch.__version__}, which is not here "
            f"({str(error).splitlines()[0][:120]}). Install it from where that torch came from: pip install -U torchvision."
        ) from error
