"""A fast sum over everything that a file of tensors holds, by which a flipped bit anywhere is noticed."""

import hashlib
from collections.abc import Mapping
from functools import cache

import torch

CHUNK = 2**17  # words of 8 bytes whose sum is one number of the digest
_GOLDEN = 0x9E3779B97F4A7C15 - 2**64  # spreads consecutive numbers over 64 bits; source: Knuth, TAOCP 3, 6.4


@cache
def _weights() -> torch.Tensor:
    """Returns an odd factor for every word of a chunk, all different, so that each bit counts and so does its place."""
    return (torch.arange(1, CHUNK + 1) * 2 * _GOLDEN) | 1


def digest_of(tensors: Mapping[str, torch.Tensor], values: str) -> str:
    """Returns the digest of tensors with their names, dtypes and shapes, and of a text.

    The bytes of a tensor are added up as whole numbers of 64 bits, each times the factor of its place, so that parts that have
    changed places are noticed as well. A cryptographic sum takes several times as long. It finds damage, and is no protection
    against someone who means to deceive.

    Args:
        tensors: by name, on the processor.
        values: the text.
    """
    total = hashlib.sha256(values.encode())
    for name in sorted(tensors):
        tensor = tensors[name]
        total.update(f"\n{name} {tensor.dtype} {list(tensor.shape)} ".encode())
        total.update(_sums(tensor))
    return total.hexdigest()


def _sums(tensor: torch.Tensor) -> bytes:
    """Returns the weighted sum of every chunk of a tensor's bytes, and the few bytes that fill no word."""
    flat = tensor.detach().contiguous().reshape(-1).view(torch.uint8)
    whole = len(flat) // 8 * 8
    words = flat[:whole].view(torch.int64)
    many = len(words) // CHUNK * CHUNK
    sums = [*words[:many].view(-1, CHUNK).mv(_weights()).tolist(), int(words[many:].dot(_weights()[: len(words) - many]))]
    return b"".join(total.to_bytes(8, "little", signed=True) for total in sums) + bytes(flat[whole:].tolist())
