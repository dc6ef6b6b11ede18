"""`python install.py taste`, from files of votes to the score's file."""

import importlib.util
import random
from pathlib import Path

import pytest
from hyper_sd.demo import taste as command
from hyper_sd.demo.errors import DemoError
from hyper_sd.demo.taste_options import check_taste
from hyper_sd.errors import EvaluationError
from hyper_sd.evaluation.comparison import load_key, plan_comparison, save_key
from hyper_sd.evaluation.vote_file import Ballot, Vote, save_ballot
from hyper_sd.rewards.personal import FILE
from hyper_sd.rewards.table import MY_TASTE, load
from PIL import Image

ROOT = Path(__file__).resolve().parents[2]
COUNT = 30


@pytest.fixture
def parser():
    """The command line of install.py."""
    spec = importlib.util.spec_from_file_location("hyper_sd_install", ROOT / "install.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.make_parser()


@pytest.fixture
def folder(tmp_path):
    """A folder with two arms of plain colours, a key, and the votes of two people who like red."""
    draw = random.Random(0)
    for arm in ("one", "other"):
        (tmp_path / arm).mkdir()
        for name in range(COUNT):
            Image.new("RGB", (32, 32), tuple(draw.randrange(256) for _ in range(3))).save(tmp_path / arm / f"{name}.png")
    save_key(plan_comparison([tmp_path / "one", tmp_path / "other"], rng=draw), tmp_path)
    comparison, votes = load_key(tmp_path), []
    for number, pair in enumerate(comparison.pairs):
        left, right = (Image.open(comparison.pictures[key].path).getpixel((0, 0))[0] for key in (pair.left, pair.right))
        votes.append(Vote(number, "left" if left > right else "right", 1.0))
    for voter in "ab":
        save_ballot(Ballot(comparison.id, voter * 8, tuple(votes)), tmp_path / f"{voter}.json")
    return tmp_path


def test_votes_become_a_score_in_the_hosts_folder_and_a_report(parser, folder, capsys):
    host = folder / "ComfyUI"
    host.mkdir()
    files = [str(folder / "a.json"), str(folder / "b.json")]
    arguments = ["taste", *files, "--comfyui", str(host)]
    assert command.run_taste(parser.parse_args(arguments)) == 0
    target = host / "models" / "hyper_sd_rewards" / FILE
    said = capsys.readouterr().out
    assert f"Looked at {2 * COUNT} pictures." in said
    assert f"Learnt from {2 * COUNT} votes on {COUNT} pairs" in said
    assert "the same answer came in 100% of 6 cases" in said
    assert said.rstrip().endswith(f"Written: {target}")
    assert load(MY_TASTE, [target.parent]).about.votes == 2 * COUNT
    assert command.run_taste(parser.parse_args(arguments)) == 0
    assert f"(the one before is kept as {FILE}.bak)" in capsys.readouterr().out


def test_file_to_write_can_be_named_where_there_is_no_host(parser, folder, monkeypatch):
    monkeypatch.setattr(command, "model_folders", lambda kind: [])
    arguments = ["taste", str(folder / "a.json"), "--comparison", str(folder)]
    with pytest.raises(DemoError, match="--out FILE"):
        command.run_taste(parser.parse_args(arguments))
    assert command.run_taste(parser.parse_args([*arguments, "--out", str(folder / "mine.safetensors")])) == 0
    assert (folder / "mine.safetensors").is_file()


def test_votes_on_another_comparison_are_refused_and_nothing_is_written(parser, folder):
    save_key(plan_comparison([folder / "one", folder / "other"]), folder)
    out = folder / "mine.safetensors"
    with pytest.raises(EvaluationError, match="belongs to another comparison"):
        command.run_taste(parser.parse_args(["taste", str(folder / "a.json"), "--comparison", str(folder), "--out", str(out)]))
    assert not out.exists()


@pytest.mark.parametrize(("arguments", "words"), [
    ([], "required: VOTES"),
    (["a.json", "--out", "taste.pt"], "a taste is a .safetensors file, got 'taste.pt'"),
    (["a.json", "--features", "dino"], "invalid choice: 'dino'"),
])  # fmt: skip
def test_wrong_option_says_what_to_do(parser, arguments, words, capsys):
    with pytest.raises(SystemExit, match="2"):
        parser.parse_args(["taste", *arguments])
    assert words in capsys.readouterr().err


@pytest.mark.parametrize(("arguments", "words"), [
    (["gone.json"], "no file of votes at gone.json"),
    (["a.json", "--comparison", "gone"], "no comparison.json in gone"),
    (["a.json", "--comfyui", "gone"], "no folder gone"),
])  # fmt: skip
def test_what_is_not_there_is_named_before_anything_is_installed(parser, folder, arguments, words, monkeypatch):
    monkeypatch.chdir(folder)
    with pytest.raises(DemoError, match=words):
        check_taste(parser.parse_args(["taste", *arguments]))


def test_features_to_choose_from_are_those_that_there_are():
    from hyper_sd.demo.taste_options import FEATURES
    from hyper_sd.evaluation.taste import CHOICES

    assert FEATURES == CHOICES
