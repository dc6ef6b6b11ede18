"""The folders of a WebUI: the downloads tab and the command line look in the same ones."""

from types import SimpleNamespace

import pytest
from hyper_sd.demo import fetch_models
from hyper_sd.models.entry import FOLDERS
from hyper_sd.models.host_folders import HOST_FOLDERS
from hyper_sd.tests.webui_extension.stub_host import StubHost
from hyper_sd.tests.webui_extension.stub_run import load_extension

KINDS = sorted(set(FOLDERS.values()))


@pytest.fixture(params=[False, True], ids=["a1111", "forge"])
def webui(request, tmp_path):
    """A WebUI's folder, whose host runs."""
    (tmp_path / "modules").mkdir()
    if request.param:
        (tmp_path / "modules_forge").mkdir()
    host = StubHost(tmp_path / "models", forge=request.param)
    host.start()
    load_extension(host)
    yield tmp_path, host
    host.close()


@pytest.mark.parametrize("kind", KINDS)
def test_command_line_and_tab_use_the_same_folders(webui, kind):
    from hyper_sd.webui_extension.host_models import model_folders

    folder, _ = webui
    by_command = fetch_models.model_folders(kind, root=folder / "extensions" / "hyper-sd", home=folder)
    assert [path.resolve() for path in by_command] == model_folders(kind)


def test_folders_that_the_host_was_started_with_count(webui, tmp_path):
    from hyper_sd.webui_extension.host_models import model_folders

    _, host = webui
    host.shared.cmd_opts = SimpleNamespace(lora_dir=str(tmp_path / "a"), ckpt_dir=str(tmp_path / "b"))
    assert model_folders("loras") == [(tmp_path / "a").resolve()]
    own = (tmp_path / "models" / "Stable-diffusion").resolve()
    assert model_folders("checkpoints") == [own, (tmp_path / "b").resolve()]
    host.shared.cmd_opts = SimpleNamespace()  # the host's LoRA extension, whose option it is, is off
    assert model_folders("loras") == [(tmp_path / "models" / "Lora").resolve()]


@pytest.mark.parametrize("host", HOST_FOLDERS)
def test_every_host_has_a_folder_for_every_kind_and_none_takes_a_lone_unet_for_a_checkpoint(host):
    assert sorted(HOST_FOLDERS[host]) == KINDS
    firsts = [folders[0] for folders in HOST_FOLDERS[host].values()]
    assert len(set(firsts)) == len(KINDS)
