"""The scorers of the embedded model's small world: whether a picture shows what was asked for, and how well it is drawn.

They stand in for CLIP and for the aesthetic predictor where nothing is downloaded, and know nothing but that world.
"""

import logging
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TypeVar

import torch
import torch.nn.functional as F
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import nn

from ..errors import RewardError
from .scorer import Scorer, resized

logger = logging.getLogger("hyper_sd")
SIZE, TOKENS = 128, 77  # pixels of a picture's side, and tokens of a text
WIDTHS, WIDTH = (64, 96, 160), 128  # of the picture's levels, each half as large; of what pictures and texts become
VOCABULARY = 4096
MATCH, QUALITY, INSTANCES = "match.", "quality.", "instances."  # what the names of each one's tensors begin with
Network = TypeVar("Network", bound=nn.Module)
Tokenize = Callable[[Sequence[str]], torch.Tensor]


class Block(nn.Module):
    """A depthwise convolution and two linear layers beside the picture, as ConvNeXt's; [batch, width, h, w] -> the same."""

    def __init__(self, width: int):
        super().__init__()
        self.spread = nn.Conv2d(width, width, 5, padding=2, groups=width)
        self.norm = nn.GroupNorm(1, width)
        self.widen, self.narrow = nn.Conv2d(width, 2 * width, 1), nn.Conv2d(2 * width, width, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Returns the picture with what the block adds."""
        return x + self.narrow(F.gelu(self.widen(self.norm(self.spread(x)))))


class Trunk(nn.Module):
    """The convolutions of a scorer: [batch, 3, 128, 128] from 0 to 1 -> features of 32, 16 and 8 pixels a side.

    Args:
        widths: channels at 32, 16 and 8 pixels.
        blocks: at each of them.
    """

    def __init__(self, widths: Sequence[int] = WIDTHS, blocks: Sequence[int] = (1, 2, 2)):
        super().__init__()
        self.levels, before, size = nn.ModuleList(), 3, 4
        for width, count in zip(widths, blocks, strict=True):
            down = nn.Conv2d(before, width, size, stride=size)
            self.levels.append(nn.Sequential(down, nn.GroupNorm(1, width), *(Block(width) for _ in range(count))))
            before, size = width, 2

    def forward(self, images: torch.Tensor) -> list[torch.Tensor]:
        """Returns the features of every level, largest first."""
        x, found = (2 * images - 1).contiguous(memory_format=torch.channels_last), []
        for level in self.levels:
            x = level(x)
            found.append(x)
        return found


class Texts(nn.Module):
    """The text tower: token ids int [batch, 77], filled up with `padding` -> [batch, WIDTH].

    Args:
        layers: of the transformer.
        padding: the id that ends a text and fills it up.
    """

    def __init__(self, layers: int = 2, padding: int = VOCABULARY - 1):
        super().__init__()
        self.padding = padding
        self.words, self.places = nn.Embedding(VOCABULARY, WIDTH), nn.Parameter(0.01 * torch.randn(TOKENS, WIDTH))
        layer = nn.TransformerEncoderLayer(WIDTH, 4, 2 * WIDTH, 0.0, "gelu", batch_first=True, norm_first=True)
        self.layers, self.norm = nn.TransformerEncoder(layer, layers, enable_nested_tensor=False), nn.LayerNorm(WIDTH)

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        """Returns the mean over the tokens that are no filling; an empty text has its beginning alone."""
        filling = ids == self.padding
        filling[:, 0] = False
        states = self.norm(self.layers(self.words(ids) + self.places, src_key_padding_mask=filling))
        counts = (~filling).to(states)[:, :, None]
        return (states * counts).sum(1) / counts.sum(1)


class EmbeddedMatch(Scorer):
    """Whether a picture shows what its prompt asks for: 100 times the cosine of what two towers make of them.

    Source: the form is that of CLIP, arXiv 2103.00020.
    Args:
        tokenize: texts -> token ids int [batch, 77] of the embedded model's tokenizer, longer texts cut.
    """

    def __init__(self, tokenize: Tokenize):
        super().__init__()
        self.tokenize = tokenize
        self.trunk, self.project, self.texts = Trunk(), nn.Linear(WIDTHS[-1], WIDTH), Texts()

    def pictures(self, images: torch.Tensor) -> torch.Tensor:
        """Returns unit vectors [batch, WIDTH] of pictures [batch, 3, 128, 128]."""
        return F.normalize(self.project(self.trunk(images)[-1].mean((2, 3))), dim=1)

    def words(self, prompts: Sequence[str]) -> torch.Tensor:
        """Returns unit vectors [batch, WIDTH] of texts."""
        return F.normalize(self.texts(self.tokenize(prompts).to(self.project.weight.device)), dim=1)

    def rate(self, images: torch.Tensor, prompts: list[str]) -> torch.Tensor:
        """Returns 100 times the cosine, [batch]."""
        return 100 * (self.pictures(resized(images, SIZE)) * self.words(prompts)).sum(1)


class EmbeddedQuality(Scorer):
    """How well a picture is drawn, about 10 for a drawing: its strokes and shapes, its noise and blur, and not what it shows.

    It has learnt which of two pictures is the better one, so its differences count, not its values.
    """

    reads_prompt = False

    def __init__(self):
        super().__init__()
        self.trunk, self.judge = Trunk((48, 64, 96), (1, 1, 1)), nn.Linear(96, 1)

    def rate(self, images: torch.Tensor, prompts: list[str]) -> torch.Tensor:
        """Returns the scores, [batch]."""
        return 10 * self.judge(self.trunk(resized(images, SIZE))[-1].mean((2, 3)))[:, 0]


def load_part(network: Network, file: Path, prefix: str) -> Network:
    """Fills a network with its part of the file of scorers, and returns it in float32.

    Args:
        network: as it was when the file was written.
        file: the safetensors file, all parts in it.
        prefix: of the part: MATCH, QUALITY or INSTANCES.
    Raises: RewardError for a file that cannot be read, or belongs to another version of the pack.
    """
    try:
        tensors = {k.removeprefix(prefix): v.float() for k, v in load_file(file).items() if k.startswith(prefix)}
        network.load_state_dict(tensors)
    except (OSError, SafetensorError, RuntimeError) as error:
        reason = str(error).partition("\n")[0].rstrip(":")
        raise RewardError(f"The scorers in {file} cannot be read ({reason}); install the pack again.") from error
    return network


def load_match(file: Path, tokenizer_folder: Path) -> EmbeddedMatch:
    """Returns the frozen scorer of pictures and prompts.

    Args:
        file: of the scorers.
        tokenizer_folder: of the embedded model's tokenizer.
    Raises: RewardError as load_part().
    """
    return load_part(EmbeddedMatch(tokenizer(tokenizer_folder)), file, MATCH).freeze()


def load_quality(file: Path) -> EmbeddedQuality:
    """Returns the frozen scorer of pictures alone.

    Raises: RewardError as load_part().
    """
    return load_part(EmbeddedQuality(), file, QUALITY).freeze()


def tokenizer(folder: Path) -> Tokenize:
    """Returns the function that turns texts into token ids int [batch, 77], cut and filled up as the embedded model's are.

    Args:
        folder: of the embedded model's tokenizer.
    Raises: RewardError where transformers is not installed.
    """
    try:
        from transformers import CLIPTokenizer
    except ImportError as error:
        raise RewardError(f"Scores of prompts need transformers ({error}); install it: pip install transformers") from error

    read = CLIPTokenizer.from_pretrained(str(folder))

    told: set[str] = set()

    def tokenize(texts: Sequence[str]) -> torch.Tensor:
        settings = {"padding": "max_length", "max_length": TOKENS, "truncation": True, "return_tensors": "pt"}
        cut = next((text for text in texts if len(read(text, verbose=False).input_ids) > TOKENS), None)
        if cut is not None and not told:
            told.add(cut)
            logger.warning("A score reads the first %d tokens of a prompt; the rest of %r is not read.", TOKENS, cut[:80])
        return read(list(texts), **settings).input_ids

    return tokenize
