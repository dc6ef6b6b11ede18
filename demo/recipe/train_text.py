"""Stage 2: the text encoder alone learns which picture a caption means, before the UNet listens to it.

From the mean of its 77 outputs, two linear heads name the concept and guess its latents. Without this the UNet spends its first
thousand steps ignoring a text encoder that says nearly the same about every caption.
"""

import random
from collections.abc import Callable, Iterator
from pathlib import Path

import torch
import torch.nn.functional as F
from transformers import CLIPTokenizer

from ...disk import whole_file
from ...training.launch.embedded_model import build_text_encoder, load_config

STEPS, BATCH, LEARNING_RATE = 700, 128, 2e-3


def tokenize(tokenizer: CLIPTokenizer, texts: list[str]) -> torch.Tensor:
    """Returns token ids int [len(texts), 77], padded with the end token as the hosts do."""
    return tokenizer(texts, padding="max_length", max_length=77, truncation=True, return_tensors="pt").input_ids


def train(
    latents: torch.Tensor, caption: Callable[[int, random.Random], str], tokenizer: CLIPTokenizer, path: Path
) -> Iterator[tuple[int, float, float]]:
    """Trains to STEPS and writes the encoder's weights to `path`, and yields (step, loss, share of concepts named right).

    Args:
        latents: float [count, 4, 16, 16] with deviation 1.
        caption: draws a caption of image i.
        tokenizer: of the encoder.
        path: the file for the weights.
    """
    torch.manual_seed(2)
    rng = random.Random(2)
    text = build_text_encoder(load_config())
    width = text.config.hidden_size
    name_head, guess_head = torch.nn.Linear(width, len(latents)), torch.nn.Linear(width, latents[0].numel())
    parameters = [p for module in (text, name_head, guess_head) for p in module.parameters()]
    optimizer = torch.optim.AdamW(parameters, lr=LEARNING_RATE, betas=(0.9, 0.99), weight_decay=0.01)
    rate = torch.optim.lr_scheduler.OneCycleLR(optimizer, LEARNING_RATE, total_steps=STEPS, pct_start=0.1)
    for step in range(1, STEPS + 1):
        picks = torch.randperm(len(latents))[:BATCH]
        ids = tokenize(tokenizer, [caption(i, rng) for i in picks.tolist()])
        with torch.autocast("cpu", torch.bfloat16):
            pooled = text(ids).last_hidden_state.mean(1)
            names, guess = name_head(pooled).float(), guess_head(pooled).float()
        loss = F.cross_entropy(names, picks) + F.mse_loss(guess, latents[picks].flatten(1))
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        rate.step()
        yield step, loss.item(), (names.argmax(1) == picks).float().mean().item()
    with whole_file(path) as partial:
        torch.save(text.state_dict(), partial)
