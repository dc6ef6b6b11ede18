"""`python install.py compare` and `votes`, as a person runs them: what is written, what is said, and the exit codes."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
from hyper_sd.demo import compare_options, votes_options
from hyper_sd.demo.commands import run
from hyper_sd.demo.compare import run_compare
from hyper_sd.demo.errors import DemoError
from hyper_sd.demo.votes import run_votes
from hyper_sd.errors import EvaluationError, HyperSDError
from hyper_sd.evaluation.comparison import load_key
from hyper_sd.evaluation.vote_file import save_ballot
from hyper_sd.tests.evaluation.comparisons import ballot_of, write_arms

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def parse(monkeypatch, tmp_path):
    """Reads a command line as install.py does; comparisons go into a folder of the test's own."""
    import argparse

    monkeypatch.setattr("hyper_sd.demo.compare.COMPARISONS", tmp_path / "comparisons")
    monkeypatch.setattr(votes_options, "COMPARISONS", tmp_path / "comparisons")
    parser = argparse.ArgumentParser()
    commands = parser.add_subparsers()
    compare_options.add_compare_options(commands.add_parser("compare"))
    votes_options.add_votes_options(commands.add_parser("votes"))
    return lambda *words: parser.parse_args([str(word) for word in words])


@pytest.fixture
def made(parse, tmp_path):
    """The folder of a comparison of two arms that `compare` made in its default place."""
    pytest.importorskip("matplotlib")
    assert run_compare(parse("compare", *write_arms(tmp_path, names=12))) == 0
    (folder,) = (tmp_path / "comparisons").iterdir()
    return folder


def vote(folder, name, voter, arm="hyper"):
    """Saves the votes of somebody who likes an arm better, outside the comparison's folder."""
    comparison = load_key(folder)
    ballot = ballot_of(comparison, lambda _, left, right: "left" if left.arm == arm else "right", voter)
    target = folder.parent.parent / "mail" / name
    save_ballot(ballot, target)
    return target


def test_compare_writes_a_page_to_send_and_a_key_to_keep(parse, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr("hyper_sd.demo.commands.is_complete", lambda *_: True)
    monkeypatch.setattr("hyper_sd.demo.commands.inside", lambda *_: True)
    assert run("compare", [], parse("compare", *write_arms(tmp_path, names=12))) == 0
    (made,) = (tmp_path / "comparisons").iterdir()
    assert sorted(path.name for path in made.iterdir()) == ["comparison.json", "send"]
    assert [path.name for path in (made / "send").iterdir()] == ["compare.html"]
    said = capsys.readouterr().out
    assert "13 pairs of base, hyper; 1 repeat an earlier one" in said
    assert "Keep it to yourself" in said
    assert str(made / "send" / "compare.html") in said


def test_compare_says_what_is_left_out_and_that_sizes_differ(parse, tmp_path, capsys):
    base, hyper = write_arms(tmp_path, names=8)
    (sheets,) = write_arms(tmp_path, ["sheets"], names=9, size=32)
    (base / "drawing-000.png").rename(base / "alone.png")
    for folder in (hyper, sheets):
        (folder / "drawing-000.png").unlink()
    out = tmp_path / "out"
    assert run_compare(parse("compare", base, hyper, sheets, "--limit", 9, "--beside", "--out", out)) == 0
    said = capsys.readouterr().out
    assert "no other folder has a picture of that name: alone, drawing-008" in said
    assert "base 16, hyper 16, sheets 32 pixels" in said
    assert f"send the whole folder {out / 'send'}" in said
    assert len([pair for pair in load_key(out).pairs if pair.first is None]) == 9


def test_second_comparison_never_takes_the_place_of_the_first(parse, made):
    parsed = parse("compare", "a", "b", "--out", made)
    with pytest.raises(DemoError, match="has a comparison already"):
        run("compare", [], parsed)


def test_folders_are_looked_at_before_anything_is_installed(parse, tmp_path, monkeypatch):
    monkeypatch.setattr("hyper_sd.demo.commands.install", lambda *_: pytest.fail("installed"))
    with pytest.raises(EvaluationError, match="no folder"):
        run("compare", [], parse("compare", tmp_path / "a", tmp_path / "b"))
    with pytest.raises(HyperSDError, match="no file of votes at"):
        run("votes", [], parse("votes", tmp_path / "votes.json"))


def test_votes_of_several_people_are_counted_and_drawn(parse, made, monkeypatch, capsys):
    files = [vote(made, f"votes-{n}.json", f"{n:016x}") for n in range(3)]
    capsys.readouterr()
    monkeypatch.setattr("hyper_sd.demo.commands.is_complete", lambda *_: True)
    monkeypatch.setattr("hyper_sd.demo.commands.inside", lambda *_: True)
    assert run("votes", [], parse("votes", *files)) == 0
    said = capsys.readouterr().out
    assert "3 people, 36 answers." in said
    assert '- "hyper" is liked better than "base": 100 % of 36 answers' in said
    assert json.loads((made / "result.json").read_text(encoding="utf-8"))["voters"] == 3
    assert (made / "result.png").read_bytes().startswith(b"\x89PNG")


def test_refused_file_is_named_and_the_others_still_count(parse, made, tmp_path, capsys):
    good, bad = vote(made, "good.json", "a" * 16), vote(made, "bad.json", "b" * 16)
    content = json.loads(bad.read_text(encoding="utf-8"))
    content["votes"][0][1] = "tie"
    bad.write_text(json.dumps(content), encoding="utf-8")
    assert run_votes(parse("votes", good, bad, "--out", tmp_path / "results")) == 1
    told = capsys.readouterr()
    assert f"Refused: {bad} was changed or damaged" in told.err
    assert "1 of 2 files were refused and not counted" in told.err
    assert "1 person, 12 answers." in told.out
    assert sorted(path.name for path in (tmp_path / "results").iterdir()) == ["result.json", "result.png"]
    with pytest.raises(EvaluationError, match="No file of votes could be read"):
        run_votes(parse("votes", bad, "--comparison", made))


def test_three_arms_of_which_one_has_no_answer_have_no_strengths(parse, tmp_path, capsys):
    assert run_compare(parse("compare", *write_arms(tmp_path, ["a", "b", "c"], names=4), "--out", tmp_path / "out")) == 0
    comparison = load_key(tmp_path / "out")
    ballot = ballot_of(comparison, lambda _, left, right: "skip" if "c" in {left.arm, right.arm} else "left")
    save_ballot(ballot, tmp_path / "out" / "votes.json")
    assert run_votes(parse("votes", tmp_path / "out" / "votes.json")) == 0
    told = capsys.readouterr().out
    assert '"a"' in told
    assert "there are no strengths" in told


def test_folder_and_pattern_of_votes_are_read_and_a_person_counts_once(parse, made, capsys):
    first = vote(made, "one.json", "a" * 16)
    vote(made, "one again.json", "a" * 16)
    vote(made, "two.json", "b" * 16)
    assert run_votes(parse("votes", first.parent)) == 0
    assert "2 people, 24 answers." in capsys.readouterr().out
    assert run_votes(parse("votes", first.parent / "one*.json")) == 0
    told = capsys.readouterr().out
    assert "saved several times" in told
    assert "1 person, 12 answers." in told


def test_comparison_of_the_votes_is_found_beside_them_or_asked_for(parse, made, tmp_path, capsys):
    file = vote(made, "one.json", "a" * 16)
    other = tmp_path / "elsewhere"
    made.rename(other)
    with pytest.raises(DemoError, match="--comparison FOLDER"):
        run_votes(parse("votes", file))
    assert run_votes(parse("votes", file, "--comparison", other)) == 0
    assert run_votes(parse("votes", file.rename(other / "one.json"))) == 0


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["compare"], "following arguments are required: FOLDER"),
        (["compare", "a", "b", "--limit", "none"], "limit must be a whole number from 1 on, got 'none'; leave it out"),
        (["compare", "a", "b", "--longest", "3"], "longest must be a whole number from 16 on"),
        (["compare", "a", "b", "--inside", "--beside"], "not allowed with argument"),
        (["votes"], "following arguments are required: FILE"),
    ],
)
def test_wrong_option_gives_one_line_and_exit_code_2(arguments, words):
    command = [sys.executable, str(ROOT / "install.py"), *arguments]
    result = subprocess.run(command, capture_output=True, text=True, encoding="utf-8", timeout=60, check=False)
    assert result.returncode == 2
    assert words in result.stderr
    assert len(result.stderr.strip().splitlines()) == 1


def test_comparison_that_failed_leaves_no_key_that_bars_the_next_try(parse, tmp_path):
    folders, out = write_arms(tmp_path, names=3), tmp_path / "out"
    damaged = sorted(folders[0].iterdir())[0]
    whole = damaged.read_bytes()
    damaged.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(EvaluationError, match="cannot be read"):
        run_compare(parse("compare", *folders, "--out", out))
    damaged.write_bytes(whole)
    again = parse("compare", *folders, "--out", out)
    compare_options.check_compare(again)
    assert run_compare(again) == 0


def test_name_of_a_folder_that_is_too_long_is_refused_with_a_sentence(parse, tmp_path):
    parsed = parse("compare", *write_arms(tmp_path, names=3), "--out", tmp_path / ("y" * 300))
    compare_options.check_compare(parsed)
    with pytest.raises(EvaluationError, match="key was not written"):
        run_compare(parsed)
