"""Mask R-CNN as labels and as a loss, on torchvision's own network with random weights.

Where torchvision's compiled operators do not belong to the torch that runs this, the one that is needed is written out here.
"""

from types import SimpleNamespace

import pytest
import torch
from hyper_sd.errors import RewardError
from hyper_sd.rewards.instances import Instances
from hyper_sd.rewards.mask_rcnn import URL, MaskRCNN, _target, require_torchvision

pytest.importorskip("torchvision.models.detection", exc_type=ImportError)


def _greedy(boxes, scores, threshold):
    """Returns which boxes stay when each takes away the less certain ones that overlap it."""
    from torchvision.ops import boxes as of_boxes

    overlaps, left, kept = of_boxes.box_iou(boxes, boxes), scores.argsort(descending=True), []
    while len(left):
        kept.append(int(left[0]))
        left = left[1:][overlaps[left[0], left[1:]] <= threshold]
    return torch.tensor(kept, dtype=torch.long)


@pytest.fixture
def operators(monkeypatch):
    """torchvision with the operator that finds the best boxes, its own or the one above."""
    try:
        require_torchvision()
    except RewardError:
        monkeypatch.setattr("torchvision.ops.boxes.nms", _greedy)


@pytest.fixture
def network():
    """The released architecture with random weights, that looks at few proposals."""
    from torchvision.models.detection import maskrcnn_resnet50_fpn_v2

    torch.manual_seed(0)
    few = {"rpn_post_nms_top_n_train": 24, "rpn_post_nms_top_n_test": 24, "rpn_pre_nms_top_n_train": 60}
    few |= {"rpn_pre_nms_top_n_test": 60, "box_batch_size_per_image": 16, "box_detections_per_img": 5}
    return maskrcnn_resnet50_fpn_v2(weights=None, weights_backbone=None, min_size=64, max_size=96, **few)


@pytest.fixture
def seer(operators, network):
    """The network behind its interface."""
    return MaskRCNN(network)


@pytest.fixture
def labels():
    """A thing in the first picture, two in the second of half its size."""
    first, second = torch.zeros(1, 64, 64), torch.zeros(2, 32, 32)
    first[0, 10:40, 20:50] = 1
    second[0, 2:20, 2:20] = second[1, 16:30, 10:30] = 1
    return [Instances(first, torch.tensor([3])), Instances(second, torch.tensor([1, 18]))]


def test_loss_has_a_gradient_to_the_pictures_and_to_no_weight(seer, labels):
    images = torch.rand(2, 3, 64, 64).requires_grad_()
    loss = seer.loss(images, labels)
    loss.backward()
    assert loss.shape == ()
    assert images.grad.isfinite().all()
    assert (images.grad.flatten(1).norm(dim=1) > 0).all()
    assert all(weight.grad is None for weight in seer.parameters())


def test_loss_is_the_sum_of_torchvisions_own(seer, labels):
    images = torch.rand(2, 3, 64, 64)
    given = seer.loss(images, labels)
    network = seer.network
    for part in (network, network.rpn, network.roi_heads):
        part.training = True
    torch.manual_seed(0)
    losses = network(list(images), [_target(label, (64, 64), images.device) for label in labels])
    assert losses.keys() == {"loss_classifier", "loss_box_reg", "loss_mask", "loss_objectness", "loss_rpn_box_reg"}
    torch.testing.assert_close(given, sum(losses.values()))


def test_loss_is_the_same_every_time_and_draws_nothing_from_others(seer, labels):
    images = torch.rand(2, 3, 64, 64)
    torch.manual_seed(5)
    before = torch.get_rng_state()
    first, second = seer.loss(images, labels), seer.loss(images, labels)
    assert torch.equal(first, second)
    assert torch.equal(torch.get_rng_state(), before)
    assert not any(module.training for module in seer.network.modules())


def test_norms_keep_their_statistics_whatever_is_asked(seer, labels):
    held = {name: value.clone() for name, value in seer.network.named_buffers()}
    seer.train().loss(torch.rand(2, 3, 64, 64), labels)
    assert all(torch.equal(value, held[name]) for name, value in seer.network.named_buffers())


def test_picture_without_things_has_a_loss_too(seer):
    nothing = Instances(torch.zeros(0, 64, 64), torch.zeros(0, dtype=torch.long))
    covered = Instances(torch.zeros(1, 64, 64), torch.tensor([2]))
    assert seer.loss(torch.rand(2, 3, 64, 64), [nothing, covered]).isfinite()


def test_label_becomes_a_box_a_kind_and_a_mask(labels):
    target = _target(labels[1], (64, 64), torch.device("cpu"))
    assert target["boxes"].tolist() == [[4, 4, 40, 40], [20, 32, 60, 60]]
    assert target["labels"].tolist() == [1, 18]
    assert target["masks"].shape == (2, 64, 64)


def test_things_are_seen_in_the_pictures_size(seer, monkeypatch):
    masks = torch.rand(3, 1, 20, 30)
    found = {"scores": torch.tensor([0.9, 0.6, 0.4]), "labels": torch.tensor([1, 7, 2]), "masks": masks}
    monkeypatch.setattr(seer.network, "forward", lambda images: [found])
    (things,) = seer.labels(torch.rand(1, 3, 20, 30))
    assert things.categories.tolist() == [1, 7]
    assert torch.equal(things.masks, (masks[:2, 0] >= 0.5).float())


def test_untrained_network_answers_for_pictures_of_any_size(seer):
    (things,) = seer.labels(torch.rand(1, 3, 40, 90))
    assert things.masks.shape[1:] == (40, 90)


def test_operators_of_another_torch_are_told(monkeypatch):
    def missing(*_):
        raise RuntimeError("Couldn't load custom C++ ops.\nmore")

    monkeypatch.setattr("torchvision.ops.boxes.nms", missing)
    with pytest.raises(RewardError, match=f"belongs to torch {torch.__version__.split('+')[0]}.*custom C.. ops.*pip install"):
        MaskRCNN.load("none.pth")


def test_file_that_is_missing_or_another_is_told(operators, network, tmp_path, monkeypatch):
    with pytest.raises(RewardError, match=f"is not there. Download {URL}"):
        MaskRCNN.load(tmp_path / "none.pth")
    torch.save(network.state_dict(), tmp_path / "other.pth")
    with pytest.raises(RewardError, match="is not torchvision's Mask R-CNN v2"):
        MaskRCNN.load(tmp_path / "other.pth")
    from hyper_sd.rewards import mask_rcnn, weights

    monkeypatch.setattr(mask_rcnn, "SHA256", weights.sha256_of(tmp_path / "other.pth"))
    loaded = MaskRCNN.load(tmp_path / "other.pth", size=64).network.state_dict()
    assert all(torch.equal(value, loaded[name]) for name, value in network.state_dict().items())
    torch.save({"weight": torch.zeros(1)}, tmp_path / "small.pth")
    monkeypatch.setattr(mask_rcnn, "SHA256", weights.sha256_of(tmp_path / "small.pth"))
    with pytest.raises(RewardError, match="file of another model"):
        MaskRCNN.load(tmp_path / "small.pth")


def test_released_network_has_the_number_of_weights_that_torchvision_states():
    from torchvision.models.detection import MaskRCNN_ResNet50_FPN_V2_Weights, maskrcnn_resnet50_fpn_v2

    stated = SimpleNamespace(**MaskRCNN_ResNet50_FPN_V2_Weights.COCO_V1.meta)
    with torch.device("meta"):
        network = maskrcnn_resnet50_fpn_v2(weights=None, weights_backbone=None)
    assert sum(weight.numel() for weight in network.parameters()) == stated.num_params
    assert MaskRCNN_ResNet50_FPN_V2_Weights.COCO_V1.url == URL
