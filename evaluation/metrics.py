"""Scores for sets of images, computed on feature vectors of whatever frozen network the caller chose."""

import torch


def kid(features: torch.Tensor, reference: torch.Tensor) -> float:
    """Returns the kernel inception distance: the unbiased squared MMD under k(a, b) = (a . b / d + 1)^3. 0 for equal sets.

    Source: Binkowski et al., "Demystifying MMD GANs", arXiv 1801.01401, section 4.
    Args:
        features: float [m, d], m at least 2.
        reference: float [n, d], n at least 2.
    Raises: ValueError for sets too small or of different width.
    """
    if min(len(features), len(reference)) < 2 or features.shape[1] != reference.shape[1]:
        raise ValueError(f"kid needs two sets of at least 2 vectors of one width, got {features.shape} and {reference.shape}.")
    x, y, kernel = features.double(), reference.double(), _kernel

    def off_diagonal_mean(k: torch.Tensor) -> torch.Tensor:
        return (k.sum() - k.trace()) / (len(k) * (len(k) - 1))

    return float(off_diagonal_mean(kernel(x, x)) + off_diagonal_mean(kernel(y, y)) - 2 * kernel(x, y).mean())


def _kernel(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    return (a @ b.T / a.shape[1] + 1) ** 3


def paired_kid(features: torch.Tensor, reference: torch.Tensor, groups: list[int]) -> float:
    """Returns the KID of two sets that are not independent: the same prompts, and the same noise, in the same order.

    Two pictures of one prompt are alike in both sets. kid() would count that between the sets and not within them, and come out
    far too low; so here no two pictures of one prompt are held against each other. 0 for equal sets.

    Source: Gretton et al., "A kernel two-sample test", JMLR 2012, lemma 6, its second estimate, with kid()'s kernel.
    Args:
        features: float [m, d].
        reference: float [m, d].
        groups: what both vectors of a row belong to, such as the number of its prompt.
    Raises: ValueError for sets of different sizes, or fewer than two groups.
    """
    if features.shape != reference.shape or len(features) != len(groups) or len(set(groups)) < 2:
        shapes = f"{tuple(features.shape)}, {tuple(reference.shape)} and {len(set(groups))} groups of {len(groups)}"
        raise ValueError(f"paired_kid needs two sets of one size, and 2 groups or more, got {shapes}.")
    x, y, own = features.double(), reference.double(), torch.tensor(groups, device=features.device)
    between = _kernel(x, y)
    apart = _kernel(x, x) + _kernel(y, y) - between - between.T
    return float(apart[own[:, None] != own].mean())


def retrieval_accuracy(
    features: torch.Tensor, reference: torch.Tensor, targets: list[int], classes: list[int], k: int = 1
) -> float:
    """Returns the share of vectors that have a reference of their own class among their k nearest by cosine.

    Args:
        features: float [m, d].
        reference: float [n, d].
        targets: the class of each vector.
        classes: the class of each reference.
        k: neighbours that are looked at.
    """
    similar = torch.nn.functional.normalize(features, dim=1) @ torch.nn.functional.normalize(reference, dim=1).T
    nearest = torch.tensor(classes, device=similar.device)[similar.topk(k, dim=1).indices]
    own = torch.tensor(targets, device=similar.device)[:, None]
    return float((nearest == own).any(1).double().mean())


def diversity(features: torch.Tensor, groups: list[int]) -> float:
    """Returns how far apart pictures of one prompt are: the mean Euclidean distance over all pairs of vectors of one group.

    Every group counts alike, and one of a single vector does not count. 0 is one picture whatever the seed.

    Args:
        features: float [m, d].
        groups: what each vector belongs to, such as the number of its prompt.
    Raises: ValueError where lengths differ, or no group has two vectors.
    """
    if len(features) != len(groups):
        raise ValueError(f"diversity needs a group for each vector, got {len(features)} vectors and {len(groups)} groups.")
    members: dict[int, list[int]] = {}
    for number, group in enumerate(groups):
        members.setdefault(group, []).append(number)
    distances = [torch.pdist(features[numbers].double()).mean() for numbers in members.values() if len(numbers) > 1]
    if not distances:
        raise ValueError("diversity needs a group of 2 vectors or more; draw each prompt with 2 seeds or more.")
    return float(torch.stack(distances).mean())


def fine_energy(images: torch.Tensor) -> float:
    """Returns the mean energy per value of what varies faster than a quarter of a cycle per pixel: detail, and left-over noise.

    Args:
        images: float [n, channels, height, width].
    """
    height, width = images.shape[-2:]
    along = (torch.fft.fftfreq(size, device=images.device) for size in (height, width))
    fast = sum(f.square().view(shape) for f, shape in zip(along, ((-1, 1), (1, -1)), strict=True)) > 0.25**2
    energy = torch.fft.fft2(images, norm="ortho").abs().square()
    return float(energy[..., fast].sum(-1).mean() / (height * width))
