import torch
from hyper_sd.benchmarks import training_cost
from hyper_sd.benchmarks.three_copies import ThreeCopies, lora_parameters
from hyper_sd.samplers.schedule import NoiseSchedule
from hyper_sd.training.config import Stage, TrainingConfig
from hyper_sd.training.data.examples import LatentExamples
from hyper_sd.training.denoiser import Denoiser
from hyper_sd.training.diffusion import Diffusion
from hyper_sd.training.engine import LocalEngine
from hyper_sd.training.lora_layers import LoraLayers
from hyper_sd.training.objectives.draws import draw_step
from hyper_sd.training.run import Run


def tiny_unet():
    from diffusers import UNet2DConditionModel

    torch.manual_seed(0)
    return UNet2DConditionModel(
        sample_size=8, block_out_channels=(8, 16), norm_num_groups=4, layers_per_block=1, cross_attention_dim=6,
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"), up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
        attention_head_dim=2,
    ).double()  # fmt: skip


def test_both_sides_of_the_comparison_train_the_same_weights():
    config = TrainingConfig(stages=(Stage(4, 10),), batch_size=4, rank=2, learning_rate=1e-3)
    diffusion, network = Diffusion.from_schedule(NoiseSchedule.from_betas()), tiny_unet()
    g = torch.Generator().manual_seed(1)
    latents, context, empty = (torch.randn(*shape, generator=g).double() for shape in ((8, 4, 8, 8), (8, 3, 6), (1, 3, 6)))
    examples = LatentExamples(latents, {"context": context}, {"context": empty})
    theirs = ThreeCopies(tiny_unet(), diffusion, 2, 1e-3)
    layers = LoraLayers(network, 2, dtype=torch.float64)
    run = Run(config, Denoiser(network, diffusion), layers, examples, LocalEngine(), None)
    student = layers.sets["student"]
    ours = [part for pair in zip(student.down, student.up, strict=True) for part in pair]
    for copies in (theirs.trained, theirs.averaged):
        for copied, weight in zip(copies, ours, strict=True):
            copied.data.copy_(weight.data)
    for step in range(4):
        numbers = run.order.numbers(step)
        draws = draw_step(config, config.stages[0], (4, *latents.shape[1:]), step).to(latents)
        loss = theirs.step(examples.batch(numbers, 0), draws)
        assert abs(run.advance()["distance"] - loss) < 1e-6
    assert all(torch.allclose(a, b, atol=1e-8) for a, b in zip(ours, lora_parameters(theirs.student), strict=True))
    assert any(bool(part.any()) for part in student.up)


def test_memory_that_is_held_counts_a_shared_tensor_once():
    tensor = torch.zeros(2**18)
    assert training_cost.megabytes([tensor, tensor.view(2, -1), torch.zeros(2**18), 3]) == 2.0
