"""Hyper-SD Loss Plot on the real host: this pack's loss maps, the host's own, and what the node shows."""

from pathlib import Path

import numpy as np
import pytest
import torch
from hyper_sd.errors import TrainingError
from hyper_sd.evaluation.loss_chart import LEFT, RIGHT, SIZE
from PIL import Image, ImageDraw

STAGES = [{"title": "8 segments", "first_step": 0}, {"title": "4 segments", "first_step": 30}]


@pytest.fixture
def plot(pack):
    """Runs the node."""
    return pack["HyperSDLossPlot"].execute


def test_chart_is_an_image_of_the_host(host, plot):
    (image,) = plot({"loss": [1 / (step + 1) for step in range(60)], "stages": STAGES}).args
    assert (image.shape, image.dtype) == ((1, 480, 800, 3), torch.float32)
    assert (image.min() >= 0, image.max()) == (True, 1)
    assert image.std() > 0.05


def test_stages_are_drawn_with_their_titles_and_a_dashed_border(plot, monkeypatch):
    written, write = [], ImageDraw.ImageDraw.text

    def remembered(pen, at, text, *rest, **options):
        written.append(text)
        return write(pen, at, text, *rest, **options)

    monkeypatch.setattr(ImageDraw.ImageDraw, "text", remembered)
    loss_map = {"loss": [1 / (step + 1) for step in range(60)]}
    titles = {stage["title"] for stage in STAGES}
    plain = plot(loss_map).args[0][0]
    assert not titles & set(written)
    staged = plot(loss_map | {"stages": STAGES}).args[0][0]
    assert titles <= set(written)
    border = LEFT + round(30.5 / 60 * (SIZE[0] - LEFT - RIGHT))  # between the last step of the one and the first of the other
    dark = [float((image[100:400, border - 2 : border + 3].amin((1, 2)) < 0.8).float().mean()) for image in (plain, staged)]
    assert dark[0] < 0.1
    assert 0.3 < dark[1] < 0.8


def test_tensors_and_numbers_of_the_hosts_loss_map_are_drawn_alike(plot):
    losses = [0.5, 0.25, 0.125]
    tensors = {"loss": [torch.tensor(loss) for loss in losses]}
    assert plot(tensors).args[0].equal(plot({"loss": losses}).args[0])


def test_hosts_own_training_gives_a_loss_map_that_is_drawn(host, plot, unet, positive):
    loss_map = host.own_training(unet, [host.latent(seed=1), host.latent(seed=2)], [positive, positive], steps=2)["LOSS_MAP"]
    losses = [float(loss) for loss in loss_map["loss"]]
    assert len(losses) == 2
    assert plot(loss_map).args[0].equal(plot({"loss": losses}).args[0])


def test_node_shows_the_chart_itself(host, pack, plot, tmp_path, monkeypatch):
    import folder_paths

    monkeypatch.setattr(folder_paths, "temp_directory", str(tmp_path))
    assert pack["HyperSDLossPlot"].define_schema().is_output_node
    output = plot({"loss": [3.0, 2.0, 1.0]})
    (shown,) = output.ui.as_dict()["images"]
    with Image.open(Path(tmp_path, shown["filename"])) as image:
        assert np.array_equal(np.asarray(image.convert("RGB")), (output.args[0][0] * 255).round().byte().numpy())


@pytest.mark.parametrize("loss_map", [{}, {"loss": []}, {"loss": [], "stages": STAGES}])
def test_empty_loss_map_is_refused(plot, loss_map):
    with pytest.raises(TrainingError, match="holds no loss; wire it from a training node"):
        plot(loss_map)


def test_losses_that_are_all_nan_are_refused(plot):
    with pytest.raises(TrainingError, match="none of them finite"):
        plot({"loss": [float("nan")] * 3})
