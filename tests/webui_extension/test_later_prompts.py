"""A few-step LoRA that comes into a prompt after the plan: in a later batch, in the hires pass, by a wildcard."""

import pytest
from hyper_sd.tests.webui_extension.lora_files import FOUR, place
from hyper_sd.tests.webui_extension.stub_host import parse_prompt
from hyper_sd.tests.webui_extension.stub_run import Processing, process_images

SAID = (
    "Hyper-SD: {} came into the prompt after the picture was planned, by a later batch, the hires pass or a wildcard, and is "
    "sampled by that plan. Where it does not fit, make such pictures in a run of their own."
)


def make(host, **given) -> Processing:
    p = Processing(args=[True, 4], **given)
    assert process_images(host, p)
    return p


def test_another_few_step_lora_in_the_hires_prompt_is_told(host, flash):
    place(host, FOUR)
    given = {"enable_hr": True, "denoising_strength": 0.5, "n_iter": 2}
    p = make(host, prompt="cat", hr_prompt=f"cat {flash}", **given)
    assert p.activations[-1] == [("quick", 0.9)]
    assert p.comments == [SAID.format("quick.safetensors")]
    assert make(host, prompt=f"cat {flash}", hr_prompt=f"dog {flash}", **given).comments == []
    assert make(host, prompt=f"cat {flash}", hr_prompt="dog", **given).comments == []


@pytest.mark.parametrize("first", ["cat", "cat <lora:Hyper-SD15-4steps-lora:1>"])
def test_another_few_step_lora_in_a_later_batch_is_told(host, flash, monkeypatch, first):
    place(host, FOUR)
    script = host.scripts[0]
    whole = script.process_batch

    def later(p, *values, **batch):
        if batch["batch_number"] == 1:  # as the hosts parse the tags of each batch
            p.extra_network_data = parse_prompt(f"cat {flash}")[1]
        whole(p, *values, **batch)

    monkeypatch.setattr(script, "process_batch", later)
    p = make(host, prompt=first, n_iter=3)
    assert [comment for comment in p.comments if "kept" not in comment] == [SAID.format("quick.safetensors")]


def test_a_merged_checkpoint_tells_it_too_and_a_panel_that_is_off_does_not(host, flash):
    given = {"enable_hr": True, "denoising_strength": 0.5, "hr_prompt": f"cat {flash}", "prompt": "cat"}
    p = Processing(args=[True, 4, "merged"], **given)
    assert process_images(host, p)
    assert p.comments == [SAID.format("quick.safetensors")]
    p = Processing(args=[False], **given)
    assert process_images(host, p)
    assert p.comments == []
