import os

import pytest
from hyper_sd.demo import base_directory
from hyper_sd.demo.errors import HostError


def test_pack_is_linked_into_custom_nodes(tmp_path):
    base_directory.prepare(tmp_path)
    link = tmp_path / "custom_nodes" / "hyper-sd"
    assert link.resolve() == base_directory.ROOT
    assert (link / "__init__.py").is_file()
    assert (tmp_path / "models" / "checkpoints").is_dir()


def test_link_is_kept_when_right_and_made_anew_when_wrong(tmp_path):
    first, second = tmp_path / "first", tmp_path / "second"
    first.mkdir()
    second.mkdir()
    link = base_directory.link_pack(tmp_path, first)
    made = os.lstat(link).st_mtime_ns
    assert base_directory.link_pack(tmp_path, first) == link
    assert os.lstat(link).st_mtime_ns == made
    assert base_directory.link_pack(tmp_path, second).resolve() == second
    assert first.is_dir()


def test_dangling_link_is_made_anew(tmp_path):
    gone, root = tmp_path / "gone", tmp_path / "root"
    gone.mkdir()
    root.mkdir()
    base_directory.link_pack(tmp_path, gone)
    gone.rmdir()
    assert base_directory.link_pack(tmp_path, root).resolve() == root


def test_real_folder_in_the_links_place_is_left_alone(tmp_path):
    folder = tmp_path / "custom_nodes" / "hyper-sd"
    folder.mkdir(parents=True)
    (folder / "mine.py").write_text("", encoding="utf-8")
    with pytest.raises(HostError, match="real folder"):
        base_directory.link_pack(tmp_path)
    assert (folder / "mine.py").exists()


def test_checkpoint_is_offered_by_link_and_the_one_before_is_gone(tmp_path):
    first, second = tmp_path / "first.safetensors", tmp_path / "second.safetensors"
    first.write_bytes(b"1")
    second.write_bytes(b"2")
    base_directory.offer_checkpoint(tmp_path / "base", first)
    name, arguments = base_directory.offer_checkpoint(tmp_path / "base", second)
    folder = tmp_path / "base" / "models" / "checkpoints"
    assert (folder / name).read_bytes() == b"2"
    assert arguments == ()
    assert [path.name for path in folder.rglob("*.safetensors")] == ["second.safetensors"]
    assert first.read_bytes() == b"1"


def test_checkpoint_is_offered_by_configuration_where_no_link_is_permitted(tmp_path, monkeypatch):
    def refuse(*_):
        raise OSError("not permitted")

    monkeypatch.setattr(base_directory.os, "symlink", refuse)
    monkeypatch.setattr(base_directory.os, "link", refuse)
    checkpoint = tmp_path / "models of mine" / "a.safetensors"
    checkpoint.parent.mkdir()
    checkpoint.write_bytes(b"1")
    name, (option, config) = base_directory.offer_checkpoint(tmp_path / "base", checkpoint)
    yaml = pytest.importorskip("yaml")
    with open(config, encoding="utf-8") as file:
        (paths,) = yaml.safe_load(file).values()
    assert (name, option) == ("a.safetensors", "--extra-model-paths-config")
    assert os.path.samefile(os.path.join(paths["base_path"], paths["checkpoints"], name), checkpoint)


def test_loras_of_one_name_are_offered_under_names_of_their_own(tmp_path, monkeypatch):
    base, files = base_directory.prepare(tmp_path / "base"), []
    for folder in ("one", "two"):
        (tmp_path / folder).mkdir()
        files.append(tmp_path / folder / "a.safetensors")
        files[-1].write_text(folder)
    names = base_directory.offer_loras(base, [*files, files[0]])
    assert len(set(names.values())) == 2
    offered = base / "models" / "loras"
    assert [(offered / names[file]).read_text() for file in files] == ["one", "two"]
    for link in ("symlink", "link"):
        monkeypatch.setattr(base_directory.os, link, lambda *_: (_ for _ in ()).throw(OSError("not permitted")))
    names = base_directory.offer_loras(base, files[1:])
    assert (offered / names[files[1]]).read_text() == "two"
    assert len(list((offered / "evaluate").iterdir())) == 1
    assert files[0].read_text() == "one"
