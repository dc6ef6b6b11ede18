import torch
from hyper_sd.benchmarks.step_cost import megabytes
from hyper_sd.benchmarks.three_copies import ThreeCopies, lora_parameters
from hyper_sd.benchmarks.three_networks import ThreeNetworks
from hyper_sd.samplers.schedule import NoiseSchedule
from hyper_sd.training.config import Stage, TrainingConfig
from hyper_sd.training.data.examples import LatentExamples
from hyper_sd.training.denoiser import Denoiser
from hyper_sd.training.diffusion import Diffusion
from hyper_sd.training.engine import LocalEngine
from hyper_sd.training.lora_layers import LoraLayers
from hyper_sd.training.objectives.draws import draw_step
from hyper_sd.training.objectives.score_distillation import draw_score
from hyper_sd.training.run import Run

DIFFUSION = Diffusion.from_schedule(NoiseSchedule.from_betas())


def tiny_unet():
    from diffusers import UNet2DConditionModel

    torch.manual_seed(0)
    return UNet2DConditionModel(
        sample_size=8, block_out_channels=(8, 16), norm_num_groups=4, layers_per_block=1, cross_attention_dim=6,
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"), up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
        attention_head_dim=2,
    ).double()  # fmt: skip


def make_examples():
    g = torch.Generator().manual_seed(1)
    latents, context, empty = (torch.randn(*shape, generator=g).double() for shape in ((8, 4, 8, 8), (8, 3, 6), (1, 3, 6)))
    return LatentExamples(latents, {"context": context}, {"context": empty})


def start(config):
    """Returns our run on a tiny network, with adapter sets."""
    network = tiny_unet()
    denoiser, layers = Denoiser(network, DIFFUSION), LoraLayers(network, config.rank, dtype=torch.float64)
    return Run(config, denoiser, layers, make_examples(), LocalEngine(), None)


def weights(run, name):
    """Returns the weights of an adapter set in the order of the wrappers'."""
    adapters = run.layers.sets[name]
    return [part for pair in zip(adapters.down, adapters.up, strict=True) for part in pair]


def take_over(copies, run, name):
    for copied, weight in zip(copies, weights(run, name), strict=True):
        copied.data.copy_(weight.data)


def test_both_sides_of_the_comparison_train_the_same_weights():
    config = TrainingConfig(stages=(Stage(4, 10),), batch_size=4, rank=2, learning_rate=1e-3)
    theirs, run = ThreeCopies(tiny_unet(), DIFFUSION, 2, 1e-3), start(config)
    for copies in (theirs.trained, theirs.averaged):
        take_over(copies, run, "student")
    for step in range(4):
        batch = run.examples.batch(run.order.numbers(step), 0)
        loss = theirs.step(batch, draw_step(config, config.stages[0], tuple(batch.latents.shape), step).to(batch.latents))
        assert abs(run.advance()["distance"] - loss) < 1e-6
    ours = weights(run, "student")
    assert all(torch.allclose(a, b, atol=1e-8) for a, b in zip(ours, lora_parameters(theirs.student), strict=True))
    assert any(bool(part.any()) for part in ours[1::2])


def test_three_networks_train_the_same_student_and_fake_score():
    stage = Stage(1, 10, 0.0, score_weight=1.0)
    config = TrainingConfig(
        stages=(stage,), batch_size=4, rank=2, learning_rate=1e-3, fake_learning_rate=2e-3, fake_updates=1, fake_warmup=0
    )
    theirs, run = ThreeNetworks(tiny_unet(), DIFFUSION, 2, 1e-3, 2e-3), start(config)
    take_over(theirs.trained, run, "student"), take_over(theirs.scored, run, "fake")
    for step in range(2):
        batch = run.examples.batch(run.order.numbers(step), 0)
        draws = [draw_score(config, tuple(batch.latents.shape), step, update).to(batch.latents) for update in (0, 1)]
        score, fake = theirs.step(batch, *draws)
        losses = run.advance()
        assert abs(losses["score"] - score) < 1e-6
        assert abs(losses["fake"] - fake) < 1e-6
    for name, found in (("student", theirs.trained), ("fake", theirs.scored)):
        ours = weights(run, name)
        assert all(torch.allclose(a, b, atol=1e-8) for a, b in zip(ours, found, strict=True))
        assert all(bool(part.any()) for part in ours[1::2])


def test_memory_that_is_held_counts_a_shared_tensor_once():
    tensor = torch.zeros(2**18)
    assert megabytes([tensor, tensor.view(2, -1), torch.zeros(2**18), 3]) == 2.0
