"""What is asked of a host before it starts, and the model it gets; no host is needed for these."""

import pytest
from hyper_sd.tests.webui.webui_host import flags_of, reads_yaml

CPU = ["--no-half", "--precision", "full", "--use-cpu", "all"]


@pytest.mark.parametrize(
    ("files", "flags", "yaml"),
    [
        ({"modules": ("--do-not-download-clip", "--no-download-sd-model", "--no-half")},
         ["--no-download-sd-model", "--do-not-download-clip", *CPU], True),
        ({"modules": ("--do-not-download-clip", "--no-download-sd-model"), "backend": ("--always-cpu",)},
         ["--no-download-sd-model", "--do-not-download-clip", "--always-cpu"], False),
        ({"modules": ("--no-download-sd-model",), "ldm_patched/modules": ("--always-cpu",)},
         ["--no-download-sd-model", "--always-cpu"], False),
        ({"modules": ("--use-cpu",), "backend": ("--always-cpu",)}, ["--always-cpu"], False),
        ({"modules": ("--use-cpu",), "backend": ("--cpu",)}, ["--cpu"], False),
    ],
    ids=["A1111", "Forge", "Forge-classic", "Forge neo", "Forge neo of 2026"],
)  # fmt: skip
def test_host_gets_only_the_flags_it_knows(tmp_path, files, flags, yaml):
    names = {"modules": "cmd_args.py", "backend": "args.py", "ldm_patched/modules": "args_parser.py"}
    for folder, known in files.items():
        (tmp_path / folder).mkdir(parents=True)
        lines = [f'parser.add_argument("{flag}")' for flag in known]
        (tmp_path / folder / names[folder]).write_text("\n".join(lines), encoding="utf-8")
    assert flags_of(tmp_path) == flags
    assert reads_yaml(tmp_path) is yaml


def test_tiny_text_encoder_has_states_whose_mean_is_not_zero():
    pytest.importorskip("diffusers", reason="the tests' checkpoints are made by diffusers")
    import torch
    from hyper_sd.tests.webui import tiny_checkpoint as tiny
    from transformers import CLIPTextModel

    encoder = CLIPTextModel(tiny.text_config(tiny.SMALL))
    weights = tiny.text_weights(tiny.SMALL)
    names = {f"text_model.{key.removeprefix('text_model.')}": key for key in encoder.state_dict()}
    encoder.load_state_dict({names[key]: value for key, value in weights.items()}, strict=False)
    tokens = torch.tensor([[tiny.SMALL.tokens - 2, 5, *[tiny.SMALL.tokens - 1] * 75]])
    with torch.no_grad():
        states = encoder(tokens).last_hidden_state
    assert states.mean().abs() > 0.01
