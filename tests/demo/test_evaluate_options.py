"""What `install.py evaluate` refuses before anything is installed, started or drawn."""

import argparse

import pytest
from hyper_sd.demo.errors import DemoError
from hyper_sd.demo.evaluate_options import add_evaluate_options, check_evaluate


def parse(*words):
    parser = argparse.ArgumentParser()
    add_evaluate_options(parser)
    return parser.parse_args(list(map(str, words)))


def test_nothing_at_all_is_enough(tmp_path):
    parsed = parse("--out", tmp_path / "out")
    check_evaluate(parsed)
    assert (parsed.model, parsed.lora, parsed.seeds, parsed.through) == (None, [], 2, "comfyui")
    assert (tmp_path / "out").is_dir()


def test_demo_models_own_loras_and_files_on_top_are_taken(tmp_path):
    lora = tmp_path / "a+b.safetensors"
    lora.write_bytes(b"")
    other = tmp_path / "c.safetensors"
    other.write_bytes(b"")
    check_evaluate(parse("--lora", "unified", "--lora", lora, "--lora", f"n-step+{other}*0.5", "--out", tmp_path))


@pytest.mark.parametrize(
    ("words", "what"),
    [
        (["--lora", "none.safetensors"], r"no file none\.safetensors; give the path of a .* LoRA, or unified or n-step"),
        (["--lora", "unified+none.safetensors*0.5"], r"no file none\.safetensors"),
        (["--prompts", "none.txt"], r"--prompts none\.txt does not exist"),
        (["--scorers", "none"], "--scorers none is no folder"),
        (["--model", "none.safetensors", "--prompts", "{text}"], r"is no \.safetensors file. Give the path"),
        (["--model", "{folder}", "--prompts", "{text}"], "add --through diffusers"),
        (["--model", "{text}", "--through", "diffusers"], r"holds no model_index\.json"),
        (["--model", "{text}"], "--model needs --prompts"),
        (["--model", "{text}", "--prompts", "{text}", "--lora", "unified"], r"no file unified; .* LoRA\."),
        (["--out", "{text}/out"], "cannot be made"),
    ],
)  # fmt: skip
def test_what_cannot_work_is_refused_with_what_to_do(tmp_path, words, what):
    text = tmp_path / "prompts.txt"
    text.write_text("a red fox")
    filled = [word.format(text=text, folder=tmp_path) for word in words]
    out = [] if "--out" in words else ["--out", tmp_path / "out"]
    with pytest.raises(DemoError, match=what):
        check_evaluate(parse(*filled, *out))


@pytest.mark.parametrize(
    "words", [["--steps", "0"], ["--limit", "0"], ["--seeds", "x"], ["--cfg", "0.5"], ["--through", "magic"]]
)
def test_numbers_out_of_range_are_refused_by_the_parser(words, capsys):
    with pytest.raises(SystemExit):
        parse(*words)
    assert words[0] in capsys.readouterr().err
