"""Which model is loaded, where its file does not tell: a pickled checkpoint, or one that a quantiser has packed."""

from types import SimpleNamespace

import pytest
from hyper_sd.tests.models import synthetic_checkpoints as make

NETWORKS = {
    "SD1.5": (make.sd15(), "sd15"),
    "SDXL": (make.sdxl(), "sdxl"),
    "the SDXL refiner": (make.refiner(), None),
    "a relative of SDXL with another number of layers": (make.ssd_1b(), None),
    "SD3.5 Large": (make.sd3(width=2432, depth=38), None),
    "FLUX.1-dev": (make.flux(), "flux"),
    "Chroma": ([*make.flux(), ("distilled_guidance_layer.in_proj.weight", (5120, 64))], None),
    "FLUX.2": ([*make.flux(8, 48), ("double_stream_modulation_img.lin.weight", (6144, 6144))], None),
    "HunyuanVideo": ([*make.flux(20, 40, entry="img_in.proj"), ("txt_in.individual_token_refiner.x.weight", (3072, 8))], None),
}


@pytest.fixture
def pickled(host):
    """A loaded model whose file holds no names and sizes."""
    path = host.root / "model.ckpt"
    path.write_bytes(b"PK\x03\x04 a pickle")
    return SimpleNamespace(sd_checkpoint_info=SimpleNamespace(filename=str(path)), is_sdxl=True)


@pytest.mark.parametrize("wrapped", [False, True], ids=["A1111", "the Forge family"])
@pytest.mark.parametrize("name", NETWORKS)
def test_the_loaded_network_tells_which_model_it_is(pickled, name, wrapped):
    from hyper_sd.webui_extension.chosen_model import Model

    tensors, family = NETWORKS[name]
    model = SimpleNamespace(diffusion_model=make.loaded(tensors))
    if wrapped:
        pickled.forge_objects = SimpleNamespace(unet=SimpleNamespace(model=model))
    else:
        pickled.model = model
    found = Model.of(pickled)
    assert (found.family, found.name) == (family, name)


def test_the_hosts_mark_counts_where_the_network_does_not_tell(pickled):
    from hyper_sd.webui_extension.chosen_model import Model

    assert Model.of(pickled).family == "sdxl"
    pickled.is_ssd = True
    assert Model.of(pickled).family is None
