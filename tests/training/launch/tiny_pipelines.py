"""Diffusers pipelines of a few thousand random weights, saved as a user's folder would be, and run files that train them."""

from hyper_sd.tests.conftest import ROOT
from hyper_sd.tests.training.data.pictures import picture, write

PROMPTS = ["a red fox", "a blue house", "two cats", "snow", "a red fox"]
TRAINING = """
batch_size = 4
rank = 2
learning_rate = 1e-3
warmup_steps = 2
solver_steps = 10
guidance_scale = [2, 4]
checkpoint_every = 2
"""
ADVERSARIAL = "stages = [{num_segments = 8, steps = 2}, {num_segments = 2, steps = 4, adversarial_weight = 0.1}]\n"
PLAIN = "stages = [{num_segments = 4, steps = 2}, {num_segments = 1, steps = 1}]\n"


def _text(width=16, projection=False):
    from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection

    config = CLIPTextConfig(
        vocab_size=4096, hidden_size=width, intermediate_size=16, num_hidden_layers=2, num_attention_heads=2,
        projection_dim=width, bos_token_id=4094, eos_token_id=4095, pad_token_id=4095,
    )  # fmt: skip
    return (CLIPTextModelWithProjection if projection else CLIPTextModel)(config).eval()


def _vae(**options):
    from diffusers import AutoencoderKL

    return AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * 4, up_block_types=("UpDecoderBlock2D",) * 4,
        block_out_channels=(4, 4, 4, 4), norm_num_groups=2, layers_per_block=1, **options,
    )  # fmt: skip


def _unet(context, **options):
    from diffusers import UNet2DConditionModel

    return UNet2DConditionModel(
        sample_size=8, block_out_channels=(8, 16), norm_num_groups=4, layers_per_block=1, cross_attention_dim=context,
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"), up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
        attention_head_dim=2, **options,
    )  # fmt: skip


def _tokenizer():
    from transformers import CLIPTokenizer

    return CLIPTokenizer.from_pretrained(str(ROOT / "demo" / "model" / "tokenizer"))


def _scheduler(**options):
    from diffusers import DDIMScheduler

    return DDIMScheduler(
        beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear", clip_sample=False, steps_offset=1, **options
    )  # fmt: skip


def make_pipeline(kind, **scheduler):
    """An untrained pipeline of "sd15", "sdxl" or "sd3"."""
    import diffusers
    import torch

    torch.manual_seed(0)
    if kind == "sd15":
        return diffusers.StableDiffusionPipeline(
            _vae(), _text(), _tokenizer(), _unet(16), _scheduler(**scheduler), None, None, requires_safety_checker=False
        )
    if kind == "sdxl":
        size = {"addition_embed_type": "text_time", "addition_time_embed_dim": 4, "projection_class_embeddings_input_dim": 40}
        return diffusers.StableDiffusionXLPipeline(
            _vae(), _text(), _text(projection=True), _tokenizer(), _tokenizer(), _unet(32, **size), _scheduler(**scheduler),
            add_watermarker=False,
        )  # fmt: skip
    transformer = diffusers.SD3Transformer2DModel(
        sample_size=8, patch_size=2, in_channels=4, out_channels=4, num_layers=2, attention_head_dim=8, num_attention_heads=2,
        joint_attention_dim=32, caption_projection_dim=16, pooled_projection_dim=32, pos_embed_max_size=8,
    )  # fmt: skip
    return diffusers.StableDiffusion3Pipeline(
        transformer, diffusers.FlowMatchEulerDiscreteScheduler(shift=3.0, **scheduler), _vae(shift_factor=0.06),
        _text(projection=True), _tokenizer(), _text(projection=True), _tokenizer(), None, None,
    )  # fmt: skip


def save_pipeline(folder, kind="sd15", **scheduler):
    make_pipeline(kind, **scheduler).save_pretrained(folder)
    return folder


def write_images(folder, count=6):
    colours = [(255, 40 * i, 10) for i in range(count)]
    for number, colour in enumerate(colours):
        write(folder, f"{number}.png", picture((80, 72), colour))
        write(folder, f"{number}.txt", PROMPTS[number % len(PROMPTS)])
    return folder


def write_run(path, model, data, stages=ADVERSARIAL, training="", name="tiny", out="out"):
    """Writes a run file; data is the line that names the data."""
    text = f"[model]\nfolder = '{model}'\n[data]\n{data}\nresolution = 64\nteacher_steps = 5\n"
    text += f"[training]\n{stages}{TRAINING}{training}\n[output]\nfolder = '{out}'\nname = '{name}'\n"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8")
    return path


def student(checkpoint):
    """The student's weights in a checkpoint, as one vector per tensor."""
    from safetensors.torch import load_file

    return {k: v for k, v in load_file(checkpoint).items() if k.startswith("student/")}


def write_preset_run(path, model="embedded = true", out="loras", **settings):
    """Writes a run file by preset beside a folder of two images; `model` is the line that names the model."""
    if not (path.parent / "images").exists():
        write_images(path.parent / "images", 2)
    values = {"preset": "Small", "steps": 6, "rank": 2, "batch_size": 2, "adversarial": "off", "one_step": "off", **settings}
    lines = [f"{name} = {str(value).lower() if isinstance(value, bool) else repr(value)}" for name, value in values.items()]
    text = f"[model]\n{model}\n[data]\nfolder = 'images'\nresolution = 64\n[output]\nfolder = '{out}'\nname = 'my_style'\n"
    path.write_text("\n".join([text, "[training]", *lines]), encoding="utf-8")
    return path
