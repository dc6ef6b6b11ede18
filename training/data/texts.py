"""Encoded prompts as the network takes them, also those of several lengths in one batch."""

from collections.abc import Callable, Sequence

import torch
from torch.nn.functional import pad

Conditioning = dict[str, torch.Tensor]  # what the network takes besides latents and time, every tensor [batch, ...]
TOKENS = "tokens"  # [batch]: how many tokens of each "context" count, in batches where these differ

Function = Callable[[torch.Tensor, torch.Tensor, Conditioning], list[torch.Tensor]]


def stacked(texts: Sequence[Conditioning]) -> Conditioning:
    """Returns conditionings [1, ...] as one [count, ...], as long as the longest text.

    A text whose length divides that of a longer one is repeated up to it: attention over a text that stands there twice is
    attention over the text once. Other lengths are filled up with zeros, and TOKENS says how many tokens of each text count.
    """
    lengths = [text["context"].shape[1] for text in texts]
    longest, repeated_to = max(lengths), dict[int, int]()
    for length in sorted(set(lengths), reverse=True):
        multiples = [longer for longer in repeated_to.values() if longer % length == 0]
        repeated_to[length] = min(multiples, default=length)
    tokens = [repeated_to[length] for length in lengths]
    contexts = [
        pad(text["context"].repeat(1, count // length, 1), (0, 0, 0, longest - count))
        for text, length, count in zip(texts, lengths, tokens, strict=True)
    ]
    others = {name: torch.cat([text[name] for text in texts]) for name in texts[0] if name != "context"}
    different = {} if set(tokens) == {longest} else {TOKENS: torch.tensor(tokens)}
    return {"context": torch.cat(contexts), **others, **different}


def at_own_lengths(function: Function, x: torch.Tensor, t: torch.Tensor, conditioning: Conditioning) -> list[torch.Tensor]:
    """Returns what `function` does for every row; where texts differ in length, each length is a call of its own.

    Args:
        function: (x, t, conditioning without TOKENS) -> tensors [batch, ...].
        x: [batch, ...].
        t: [batch].
        conditioning: of the prompts.
    """
    texts = {name: tensor for name, tensor in conditioning.items() if name != TOKENS}
    if TOKENS not in conditioning:
        return function(x, t, texts)
    tokens, places, parts = conditioning[TOKENS], [], []
    for count in tokens.unique().tolist():
        place = (tokens == count).nonzero().flatten()
        own = {name: tensor[place] for name, tensor in texts.items()}
        parts.append(function(x[place], t[place], own | {"context": own["context"][:, :count]}))
        places.append(place)
    order = torch.cat(places).argsort()
    return [torch.cat(tensors)[order] for tensors in zip(*parts, strict=True)]
