"""The demo model's ControlNet: the host's picture of it equals the recipe's, and what is drawn follows the outlines."""

import pytest
import torch
from hyper_sd.benchmarks.demo_controlnet import met, outlines

SAMPLES, SIZE = 6, 128


@pytest.fixture(scope="module")
def control(host, pack):
    return pack["HyperSDDemoControlNet"].execute().args[0]


def conditionings(demo, prompt):
    clip = demo[1]
    return [clip.encode_from_tokens_scheduled(clip.tokenize(text)) for text in (prompt, "")]


def test_host_predicts_what_the_recipe_trained(host, demo, control):
    train_control = pytest.importorskip("hyper_sd.demo.recipe.train_control", reason="needs diffusers")
    from comfy.utils import load_torch_file
    from hyper_sd.demo.recipe.export import load_checkpoint
    from hyper_sd.models.embedded import CONTROLNET

    saved, g = load_torch_file(str(CONTROLNET)), torch.Generator().manual_seed(1)
    with torch.inference_mode(False), torch.no_grad():
        recipe = train_control.OutlineControl(load_checkpoint(host.demo_checkpoint())[1].unet)
        assert set(recipe.trained()) == set(saved) - {"lora_controlnet"}
        for name, tensor in recipe.trained().items():
            tensor.copy_(saved[name])
        x, context = torch.randn(2, 4, 16, 16, generator=g), torch.randn(2, 77, 192, generator=g)
        t, hint = torch.tensor([999, 300]), (torch.rand(2, 3, SIZE, SIZE, generator=g) > 0.9).float()
        expected, plain = recipe(x, t, context, hint), recipe.unet(x, t, context).sample
    control.pre_run(demo[0].model, lambda percent: 0)
    added = control.control_model.float()(x=x, hint=hint, timesteps=t, context=context)
    found = demo[0].model.diffusion_model(x, t, context=context, control=added)
    control.cleanup()

    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)
    assert (expected - plain).abs().max() > 0.1


@pytest.mark.parametrize(("lora", "more"), [(True, 0.2), (False, 0.05)])
def test_what_is_drawn_follows_the_outlines(host, pack, demo, control, lora, more):
    """Seen as the share of the hint's lines that the picture's own outlines meet within a pixel.

    Without the LoRA, guidance pulls towards the drawings of the caption, and the lines are followed less.
    """
    from nodes import ControlNetApplyAdvanced

    model = pack["HyperSDLoraLoader"].execute(demo[0], 4, "unified", 0.0).args[0] if lora else demo[0]
    how = {"steps": 4, "cfg": 1.0} if lora else {"steps": 12, "cfg": 4.0}
    first = host.ksampler(demo[0], *conditionings(demo, "red heart"), steps=25, cfg=4.0, image=host.latent(size=16))
    hint = outlines(demo[2].decode(first))
    prompts, image = conditionings(demo, "strawberry"), host.latent(batch=SAMPLES, size=16)
    steered = ControlNetApplyAdvanced().apply_controlnet(*prompts, control, hint, 0.8, 0.0, 1.0)

    def drawn(positive, negative):
        return demo[2].decode(host.ksampler(model, positive, negative, image=image, **how))

    hints = hint.expand(SAMPLES, -1, -1, -1)
    assert met(drawn(*steered), hints) > met(drawn(*prompts), hints) + more


def test_nothing_of_it_stays_in_the_model(host, demo, control):
    from nodes import ControlNetApplyAdvanced

    prompts, image = conditionings(demo, "sailboat"), host.latent(size=16)
    before = host.ksampler(demo[0], *prompts, steps=2, image=image)
    hint = torch.ones(1, SIZE, SIZE, 3)
    steered = ControlNetApplyAdvanced().apply_controlnet(*prompts, control, hint, 1.0, 0.0, 1.0)
    changed = host.ksampler(demo[0], *steered, steps=2, image=image)

    assert not torch.allclose(changed, before, atol=1e-3)
    assert torch.equal(host.ksampler(demo[0], *prompts, steps=2, image=image), before)
