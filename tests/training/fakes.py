"""Small denoisers: a tiny UNet with the named parts the core looks for, and an exact one whose trajectories are known."""

import torch
from hyper_sd.samplers.schedule import NoiseSchedule
from hyper_sd.training.data.examples import LatentExamples
from hyper_sd.training.denoiser import Denoiser
from hyper_sd.training.diffusion import Diffusion
from torch import nn

WIDTH, TOKENS = 6, 3
# Settings of diffusers' UNet2DConditionModel: a small one, and the released SDXL's.
SMALL = {
    "block_out_channels": (8, 16), "layers_per_block": 1, "norm_num_groups": 4, "attention_head_dim": 2,
    "cross_attention_dim": 6,
    "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D"), "up_block_types": ("CrossAttnUpBlock2D", "UpBlock2D"),
    "sample_size": 8,
}  # fmt: skip
SDXL = {
    "block_out_channels": (320, 640, 1280),
    "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
    "up_block_types": ("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
    "transformer_layers_per_block": (1, 2, 10), "attention_head_dim": (5, 10, 20), "cross_attention_dim": 2048,
    "addition_embed_type": "text_time", "addition_time_embed_dim": 256, "projection_class_embeddings_input_dim": 2816,
    "use_linear_projection": True,
}  # fmt: skip


class ResBlock(nn.Module):
    def __init__(self, inner: int, outer: int, stride: int = 1):
        super().__init__()
        self.conv = nn.Conv2d(inner, outer, 3, stride=stride, padding=1)
        self.time = nn.Linear(4, outer)

    def forward(self, x, embedding):
        return torch.tanh(self.conv(x) + self.time(embedding)[:, :, None, None])


class TinyUNet(nn.Module):
    """Two encoder levels, a middle block and a way back up; smooth, so that finite differences are exact."""

    def __init__(self, channels: int = 2):
        super().__init__()
        self.conv_in = nn.Conv2d(channels, 4, 1)
        self.down_blocks = nn.ModuleList([ResBlock(4, 4), ResBlock(4, 8, stride=2)])
        self.mid_block = ResBlock(8, 8)
        self.up = ResBlock(12, 4)
        self.text = nn.Linear(WIDTH, 4)
        self.conv_out = nn.Conv2d(4, channels, 1)

    def forward(self, x, time, context):
        time = time.to(x)[:, None] / 1000
        embedding = torch.cat([time, (3 * time).sin(), (9 * time).cos(), (27 * time).sin()], 1)
        embedding = embedding + self.text(context).mean(1)
        high = self.down_blocks[0](self.conv_in(x), embedding)
        low = self.mid_block(self.down_blocks[1](high, embedding), embedding)
        low = nn.functional.interpolate(low, size=high.shape[-2:])
        return self.conv_out(self.up(torch.cat([high, low], 1), embedding))


class PointMass(nn.Module):
    """The exact network for a data set of one point `c`: every trajectory is known, so it is consistent by construction."""

    def __init__(self, diffusion: Diffusion, c: torch.Tensor):
        super().__init__()
        self.layer = nn.Linear(c.shape[-1], c.shape[-1], bias=False)
        nn.init.zeros_(self.layer.weight)
        self.diffusion, self.c = diffusion, c

    def forward(self, x, time, context):
        t = time.round().long() - int(self.diffusion.prediction_type == "flow")  # flow models are told 1000 sigma = t + 1
        alpha, sigma = self.diffusion.levels(t, x)
        noise = (x - alpha * self.c) / sigma
        return self.diffusion.training_target(self.c.expand_as(x), noise, t) + self.layer(x)


def call(network, x, time, conditioning):
    return network(x, time, conditioning["context"].to(x.dtype))


def schedule(kind: str) -> NoiseSchedule:
    if kind == "flow":
        return NoiseSchedule.from_sigmas([(i + 1) / 1000 for i in range(1000)])
    return NoiseSchedule.from_betas()


def make_denoiser(prediction: str = "epsilon", dtype: torch.dtype = torch.float64, channels: int = 2) -> Denoiser:
    torch.manual_seed(0)
    network = TinyUNet(channels).to(dtype)
    return Denoiser(network, Diffusion.from_schedule(schedule(prediction), prediction), call)


def make_examples(count: int = 12, dtype: torch.dtype = torch.float64, channels: int = 2, size: int = 4) -> LatentExamples:
    g = torch.Generator().manual_seed(1)
    return LatentExamples(
        torch.randn(count, channels, size, size, generator=g, dtype=dtype),
        {"context": torch.randn(count, TOKENS, WIDTH, generator=g, dtype=dtype)},
        {"context": torch.randn(1, TOKENS, WIDTH, generator=g, dtype=dtype)},
        [f"thing {number}" for number in range(count)],
    )
