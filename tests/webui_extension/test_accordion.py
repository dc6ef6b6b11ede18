"""The panel on the stub host: what is seen at once, the line that says what will be used, and its download."""

from types import SimpleNamespace

import pytest
from hyper_sd.models.catalog import load_catalog
from hyper_sd.models.progress import Progress, Row, State
from hyper_sd.tests.models import synthetic_checkpoints
from hyper_sd.tests.webui_extension.lora_files import FOUR, place
from hyper_sd.webui_extension.settings_table import TABLE

CHECKPOINTS = {
    "sd15": synthetic_checkpoints.full(synthetic_checkpoints.sd15(), "SD1.5"),
    "sd2": synthetic_checkpoints.full(synthetic_checkpoints.sd15(width=1024), "SD2.x"),
    "sdxl": synthetic_checkpoints.full(synthetic_checkpoints.sdxl(), "SDXL"),
    "refiner": synthetic_checkpoints.full(synthetic_checkpoints.refiner(), "refiner"),
    "sd3": synthetic_checkpoints.full(synthetic_checkpoints.sd3(), "flow"),
    "flux": synthetic_checkpoints.flux(),
}


def test_the_panel_shows_three_controls_and_folds_the_rest_below_more(host):
    controls = host.scripts[0].controls
    assert [control.label for control in controls] == [spec.label for spec in TABLE]
    assert [control.label for control in controls if "More" not in control.inside] == ["Enable", "Hyper-SD steps", "Variant"]
    assert all("Hyper-SD" in control.inside for control in controls)


def test_the_page_says_what_will_be_used_and_what_is_missing(host):
    from hyper_sd.webui_extension import accordion

    text, button = accordion.look(False, 4)
    assert "Switch on" in text
    assert button == {"visible": False}
    text, button = accordion.look(True, 4)
    assert f"**{FOUR}.safetensors is missing** (269 MB)." == text
    assert button == {"visible": True}
    place(host, FOUR)
    text, button = accordion.look(True, 4)
    assert text.startswith(f"{FOUR}.safetensors, strength 1, 4 steps, Hyper-SD TCD")
    assert button == {"visible": False}
    assert "0 to 1" in accordion.look(True, 4, "auto", 0, 0, True, False, 9)[0]


@pytest.mark.parametrize(
    ("tensors", "said"),
    [
        (CHECKPOINTS["sdxl"], "Hyper-SDXL-4steps-lora.safetensors is missing"),
        (CHECKPOINTS["sd15"], f"{FOUR}.safetensors is missing"),
        (CHECKPOINTS["sd3"], "Hyper-SD3-4steps-CFG-lora.safetensors is missing"),
        (CHECKPOINTS["flux"], "Hyper-FLUX.1-dev-8steps-lora.safetensors is missing"),
        (CHECKPOINTS["refiner"], "no Hyper-SD LoRA for the SDXL refiner, only for SD1.5, SDXL, SD3, FLUX.1-dev"),
        (CHECKPOINTS["sd2"], "no Hyper-SD LoRA for SD2.x"),
        (
            [("wheels.round.weight", (8, 8))],
            "has to be loaded first: make an image. (Its head does not say which model it is.)",
        ),
        (None, "has to be loaded first"),
    ],
)
def test_the_page_knows_a_chosen_checkpoint_before_it_is_loaded(host, tensors, said):
    from hyper_sd.webui_extension import accordion

    path = host.root / "chosen.safetensors"
    synthetic_checkpoints.write_checkpoint(path, tensors) if tensors else path.write_bytes(b"PK\x03\x04 a pickle")
    host._modules["modules.sd_models"].model_data.sd_model = object()  # Forge has a stand-in until the first image
    host.chosen = SimpleNamespace(filename=str(path))
    assert said in accordion.look(True, 4)[0]


def test_the_download_button_fetches_the_file_and_shows_the_plan(host, monkeypatch):
    from hyper_sd.webui_extension import accordion, host_models

    entry = load_catalog().get("hyper-sd15-4steps-lora")

    def rows(entry_id):
        yield Row(entry, Progress(State.DOWNLOADING, 1, 9))
        place(host, FOUR)
        yield Row(entry, Progress(State.READY, 9, 9))

    monkeypatch.setattr(host_models.DOWNLOADS, "start", lambda entry_id: None)
    monkeypatch.setattr(host_models.DOWNLOADS, "follow", rows)
    texts = [text for text, _ in accordion.fetch(True, 4)]
    assert "downloading, 1 B of 9 B" in texts[0]
    assert texts[-1].startswith(f"{FOUR}.safetensors, strength 1")
