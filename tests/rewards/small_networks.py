"""The released scorers' architectures at a small size, with random weights by the names of the released files."""

import re
from pathlib import Path

import torch
from hyper_sd.rewards.clip import Towers
from hyper_sd.rewards.image_reward import Size

TOWERS = Towers(16, (32, 2, 4), (24, 2, 3), 8, "gelu", size=32, words=50, length=12)
QUICK = Towers(16, (32, 2, 4), (24, 2, 3), 8, "quick_gelu", size=32, words=50, length=12)
SIZE = Size((64, 2, 4), 2, 32, 8)
Shapes = dict[str, tuple[int, ...]]


def drawn(shapes: Shapes, seed: int = 0) -> dict[str, torch.Tensor]:
    """Returns random tensors; the weights of norms are about 1, so that nothing fades."""
    generator = torch.Generator().manual_seed(seed)
    values = {name: 0.1 * torch.randn(shape, generator=generator) for name, shape in shapes.items()}
    norm = re.compile(r"(?:ln_\w+|norm\d?|\w*[lL]ayer_?[nN]orm\d?|pre_layrnorm)\.weight")
    return {name: value + 1 if norm.search(name) else value for name, value in values.items()}


def pictures(size: int = 32, batch: int = 2, seed: int = 1) -> torch.Tensor:
    """Returns random pictures [batch, 3, size, size] from 0 to 1."""
    return torch.rand(batch, 3, size, size, generator=torch.Generator().manual_seed(seed))


def linear(name: str, rows: int, columns: int) -> Shapes:
    """Returns the shapes of a linear layer."""
    return {f"{name}.weight": (rows, columns), f"{name}.bias": (rows,)}


def norm(name: str, width: int) -> Shapes:
    """Returns the shapes of a norm."""
    return {f"{name}.weight": (width,), f"{name}.bias": (width,)}


def open_clip_shapes(towers: Towers = TOWERS) -> Shapes:
    """Returns the shapes of OpenCLIP's CLIP, by its names."""
    (wide, seen, _), (narrow, read, _) = towers.vision, towers.text
    patches = (towers.size // towers.patch) ** 2 + 1
    shapes = {"positional_embedding": (towers.length, narrow), "text_projection": (narrow, towers.width), "logit_scale": ()}
    shapes |= {"visual.class_embedding": (wide,), "visual.positional_embedding": (patches, wide)}
    shapes |= {"visual.proj": (wide, towers.width), "visual.conv1.weight": (wide, 3, towers.patch, towers.patch)}
    shapes |= norm("visual.ln_pre", wide) | norm("visual.ln_post", wide) | norm("ln_final", narrow)
    for start, layers, width in (("visual.", seen, wide), ("", read, narrow)):
        for layer in range(layers):
            name = f"{start}transformer.resblocks.{layer}"
            shapes |= {f"{name}.attn.in_proj_weight": (3 * width, width), f"{name}.attn.in_proj_bias": (3 * width,)}
            shapes |= linear(f"{name}.attn.out_proj", width, width)
            shapes |= linear(f"{name}.mlp.c_fc", 4 * width, width) | linear(f"{name}.mlp.c_proj", width, 4 * width)
            shapes |= norm(f"{name}.ln_1", width) | norm(f"{name}.ln_2", width)
    return shapes | {"token_embedding.weight": (towers.words, narrow)}


def clip_shapes(towers: Towers) -> Shapes:
    """Returns the shapes of transformers' CLIPModel, with the counts that old files carry."""
    with torch.device("meta"):
        shapes = {name: tuple(value.shape) for name, value in towers.build().state_dict().items()}
    return shapes | {"text_model.embeddings.position_ids": (1, towers.length)}


def head_shapes(start: str = "layers") -> Shapes:
    """Returns the shapes of the head of five linear layers."""
    sizes = {0: (1024, 768), 2: (128, 1024), 4: (64, 128), 6: (16, 64), 7: (1, 16)}
    return {name: shape for place, size in sizes.items() for name, shape in linear(f"{start}.{place}", *size).items()}


def image_reward_shapes(size: Size = SIZE) -> Shapes:
    """Returns the shapes of ImageReward.pt, by its names."""
    wide, layers, _ = size.vision
    vision, text = "blip.visual_encoder", "blip.text_encoder"
    shapes = {f"{vision}.cls_token": (1, 1, wide), f"{vision}.pos_embed": (1, (size.size // size.patch) ** 2 + 1, wide)}
    shapes |= {f"{vision}.patch_embed.proj.weight": (wide, 3, size.patch, size.patch)}
    shapes |= {f"{vision}.patch_embed.proj.bias": (wide,)} | norm(f"{vision}.norm", wide)
    for layer in range(layers):
        name = f"{vision}.blocks.{layer}"
        shapes |= norm(f"{name}.norm1", wide) | norm(f"{name}.norm2", wide)
        shapes |= linear(f"{name}.attn.qkv", 3 * wide, wide) | linear(f"{name}.attn.proj", wide, wide)
        shapes |= linear(f"{name}.mlp.fc1", 4 * wide, wide) | linear(f"{name}.mlp.fc2", wide, 4 * wide)
    shapes |= {f"{text}.embeddings.position_ids": (1, 512), f"{text}.embeddings.word_embeddings.weight": (30524, 768)}
    shapes |= {f"{text}.embeddings.position_embeddings.weight": (512, 768)} | norm(f"{text}.embeddings.LayerNorm", 768)
    for layer in range(size.layers):
        name = f"{text}.encoder.layer.{layer}"
        for attention, width in (("attention", 768), ("crossattention", wide)):
            shapes |= linear(f"{name}.{attention}.self.query", 768, 768)
            shapes |= linear(f"{name}.{attention}.self.key", 768, width) | linear(f"{name}.{attention}.self.value", 768, width)
            shapes |= linear(f"{name}.{attention}.output.dense", 768, 768) | norm(f"{name}.{attention}.output.LayerNorm", 768)
        shapes |= linear(f"{name}.intermediate.dense", 3072, 768) | linear(f"{name}.output.dense", 768, 3072)
        shapes |= norm(f"{name}.output.LayerNorm", 768)
    shapes |= linear("blip.vision_proj", 256, wide) | linear("blip.text_proj", 256, 768)
    return shapes | head_shapes("mlp.layers")


def write_tokenizer(path: Path, words: int, first: str, last: str) -> Path:
    """Writes a tokenizer.json of single words "w0", "w1", ... between a first and a last token, as many as `words`."""
    from tokenizers import Tokenizer, models, pre_tokenizers, processors

    listed = [f"w{place}" for place in range(words - 2)]
    tokens = [first, last, *listed] if first == "[CLS]" else [*listed, first, last]
    vocabulary = {token: place for place, token in enumerate(tokens)}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="w0"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    marks = [(first, vocabulary[first]), (last, vocabulary[last])]
    tokenizer.post_processor = processors.TemplateProcessing(single=f"{first} $A {last}", special_tokens=marks)
    tokenizer.save(str(path))
    return path
