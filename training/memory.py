"""How much memory a training will take, measured on the network itself before it starts."""

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace

import torch
from torch.multiprocessing.reductions import StorageWeakRef

from ..errors import TrainingError
from .config import TrainingConfig
from .data.examples import Conditioning
from .denoiser import Denoiser
from .engine import LocalEngine
from .loop import frozen
from .lora_layers import TEACHER, LoraLayers
from .objectives.discriminator import Features, Heads
from .recompute import recomputed_blocks, recomputing

FLOAT32_BYTES, GB = 4, 1e9
PROBE = "probe"
PROBE_SIDES = ((8, 8), (8, 16), (16, 16))  # of latents: little memory beside a real size, and every UNet's divisions allow them
HEADROOM = 1.15  # for what no graph keeps: gradients on their way, a layer's own working memory, gaps between blocks


@dataclass(frozen=True)
class MemoryEstimate:
    """Bytes that a training takes besides the network's own weights.

    Args:
        adapters: student, target where there is one, and what else is a set, with gradients and the optimizer's two moments, in
            float32.
        activations: kept for the backward pass of as many examples as are computed at once.
        checkpointed: the same with gradient checkpointing, with the largest block while it is computed again.
        examples: computed at once.
        fixed, fixed_checkpointed: of the two, what does not depend on the number of examples, such as weights cast to bf16.
        heads: weights of the discriminator's heads where there are any, whose bytes are among `adapters`.
    """

    adapters: int
    activations: int
    checkpointed: int
    examples: int = 1
    fixed: int = 0
    fixed_checkpointed: int = 0
    heads: int = 0

    def needed(self, config: TrainingConfig) -> int:
        """Returns the bytes that a run of these settings takes, with some headroom."""
        at_once = -(-config.batch_size // config.accumulation)
        pair = (self.checkpointed, self.fixed_checkpointed) if config.gradient_checkpointing else (self.activations, self.fixed)
        total, fixed = pair
        return self.adapters + round(HEADROOM * (fixed + (total - fixed) * at_once / self.examples))


def estimate(
    denoiser: Denoiser,
    layers: LoraLayers | int,
    config: TrainingConfig,
    shape: Sequence[int],
    conditioning: Conditioning,
    *,
    teacher: bool = False,
) -> MemoryEstimate:
    """Measures forward passes on small latents and returns what the training of full ones takes.

    What a pass keeps is a polynomial of the latents' area: a constant, layers proportional to it, and attention that keeps
    its matrix and grows with its square. Three areas and a second example find it; small latents are measured as they are.

    Args:
        layers: those to be trained, or their rank.
        shape: of the latents, [.., channels, height, width]; only these three count.
        conditioning: tensors [batch, ...] of one example or more; the first is used.
        teacher: a set "teacher" will be there; one that is there counts by itself.
    """
    with ExitStack() as stack:
        stack.enter_context(frozen(denoiser.network))
        probe = stack.enter_context(_probing(denoiser, layers))
        heads = _head_weights(denoiser, probe, config, shape, conditioning) if config.is_adversarial else 0
        kept = _at_full_size(denoiser, probe, config, shape, conditioning)
        blocks = len(kept[0]) - 1
        recomputed = kept
        if blocks:
            stack.enter_context(recomputing(denoiser.network, probe))
            inputs = _at_full_size(denoiser, probe, config, shape, conditioning)
            largest = max(range(1, blocks + 1), key=lambda i: kept[1][i])
            recomputed = [line[:1] + block[largest : largest + 1] for line, block in zip(inputs, kept, strict=True)]
    examples = -(-config.batch_size // config.accumulation)
    (fixed, each), (fixed_checkpointed, each_checkpointed) = (
        (round(float(part[0][0])), float(part[1][0])) for part in (kept, recomputed)
    )
    adapters = _adapter_bytes(probe, config, teacher or TEACHER in probe.sets) + FLOAT32_BYTES * 4 * heads
    activations, checkpointed = fixed + each * examples, fixed_checkpointed + each_checkpointed * examples
    return MemoryEstimate(adapters, activations, checkpointed, examples, fixed, fixed_checkpointed, heads)


def fit(found: MemoryEstimate, free_bytes: float, config: TrainingConfig) -> TrainingConfig:
    """Returns the settings changed as little as lets them fit: gradient checkpointing first, then smaller parts.

    Both change what a step costs, not what it learns, and may differ between two parts of one run.

    Raises: TrainingError naming needed and free gigabytes where one example at a time still does not fit.
    """
    parts = [n for n in range(config.accumulation, config.batch_size + 1) if config.batch_size % n == 0]
    choices = [config]
    if found.checkpointed < found.activations:
        choices.append(replace(config, gradient_checkpointing=True))
    choices += [replace(choices[-1], accumulation=n) for n in parts]
    for choice in choices:
        if found.needed(choice) <= free_bytes:
            return choice
    raise TrainingError(
        f"This training needs {found.needed(choices[-1]) / GB:.2f} GB of free memory even one example at a time, "
        f"and {max(free_bytes, 0) / GB:.2f} GB are free. What helps, best first: use smaller images; lower rank (now "
        f"{config.rank}); close other programs and unload other models that hold this memory."
    )


def _adapter_bytes(layers: LoraLayers, config: TrainingConfig, teacher: bool) -> int:
    weights = layers.rank * sum(layer.weight[0].numel() + len(layer.weight) for layer in layers.layers.values())  # down and up
    backbone = config.is_adversarial and config.train_backbone
    sets = 1 + config.has_target + teacher + backbone  # one is the student
    trained = 1 + backbone
    return FLOAT32_BYTES * weights * (sets + 3 * trained)  # a gradient and two moments each


def _head_weights(
    denoiser: Denoiser, layers: LoraLayers, config: TrainingConfig, shape: Sequence[int], conditioning: Conditioning
) -> int:
    """Returns how many weights the discriminator's heads will have."""
    channels, height, width = shape[-3:]
    sides = (min(height, PROBE_SIDES[-1][0]), min(width, PROBE_SIDES[-1][1]))
    x, t, some = _inputs(denoiser, (1, channels, *sides), conditioning)
    with torch.no_grad(), LocalEngine(x.device, config.precision).autocast():
        widths = [feature.shape[1] for feature in Features(denoiser, layers)(x, t, some)]
    with torch.device("meta"):
        return sum(weight.numel() for weight in Heads(widths).parameters())


@contextmanager
def _probing(denoiser: Denoiser, layers: LoraLayers | int) -> Iterator[LoraLayers]:
    """Gives layers with an active set of their own, which nothing is left of afterwards."""
    probe = LoraLayers(denoiser.network, layers) if isinstance(layers, int) else layers
    probe.add(PROBE)
    try:
        with probe.using(PROBE):
            yield probe
    finally:
        del probe.sets[PROBE]
        if probe is not layers:
            probe.detach()


def _at_full_size(
    denoiser: Denoiser, layers: LoraLayers, config: TrainingConfig, shape: Sequence[int], conditioning: Conditioning
) -> tuple[torch.Tensor, torch.Tensor]:
    """Returns what a pass keeps as (fixed, per example), each [1 + blocks]: of the whole pass, and inside every block."""
    channels, height, width = shape[-3:]

    def kept(count: int, *sides: int) -> torch.Tensor:
        with LocalEngine(next(denoiser.network.parameters()).device, config.precision).autocast():
            return _kept_bytes(denoiser, layers, (count, channels, *sides), conditioning, config.is_adversarial)

    area, areas = height * width, torch.tensor([float(a * b) for a, b in PROBE_SIDES], dtype=torch.float64)
    if min(height, width) < min(PROBE_SIDES[0]) or area < areas[-1]:
        one = kept(1, height, width)
        each = kept(2, height, width) - one
        return one - each, each
    measured = torch.stack([kept(1, *sides) for sides in PROBE_SIDES])
    powers = torch.linalg.solve(areas[:, None] ** torch.arange(3), measured)  # [3, 1 + blocks]
    fixed = 2 * measured[0] - kept(2, *PROBE_SIDES[0])
    return fixed, (float(area) ** torch.arange(3, dtype=torch.float64)) @ powers - fixed


def _inputs(denoiser: Denoiser, shape: Sequence[int], conditioning: Conditioning) -> tuple:
    """Returns latents, timesteps and conditioning of as many examples as the shape has."""
    device = next(denoiser.network.parameters()).device
    some = {key: tensor[:1].to(device).expand(shape[0], *tensor.shape[1:]).clone() for key, tensor in conditioning.items()}
    dtype = next((t.dtype for t in some.values() if t.is_floating_point()), torch.float32)
    return torch.zeros(tuple(shape), device=device, dtype=dtype), torch.full((shape[0],), 500, device=device), some


def _kept_bytes(
    denoiser: Denoiser, layers: LoraLayers, shape: Sequence[int], conditioning: Conditioning, judged: bool
) -> torch.Tensor:
    """Runs the network forward and returns the bytes autograd keeps, float64 [1 + blocks]: all, and those new in each block.

    Args: judged: what it predicts goes through its encoder once more, as a discriminator has it.
    """
    own = {StorageWeakRef(p.untyped_storage()) for p in (*denoiser.network.parameters(), *layers.sets[PROBE].parameters())}
    seen: dict[StorageWeakRef, int] = {}  # so that a storage, freed meanwhile, is not taken for another at its address
    x, t, some = _inputs(denoiser, shape, conditioning)

    def count(tensor: torch.Tensor) -> None:  # what is kept instead of the tensor: there will be no backward pass
        storage = tensor.untyped_storage()
        reference = StorageWeakRef(storage)
        if reference not in own:
            seen[reference] = storage.nbytes()

    with _counting_blocks(denoiser, seen) as inside, torch.enable_grad():
        with torch.autograd.graph.saved_tensors_hooks(count, lambda nothing: nothing):
            prediction = denoiser.predict(x, t, some)
            blocks = len(inside)
            if judged:
                Features(denoiser, layers)(prediction, t, some)
        total = sum(seen.values())
    return torch.tensor([total, *inside[:blocks]], dtype=torch.float64)


@contextmanager
def _counting_blocks(denoiser: Denoiser, seen: dict[StorageWeakRef, int]) -> Iterator[list[int]]:
    """Gives a list of the bytes that every block added to `seen`, in the order of their calls."""
    inside, before, hooks = [], [], []
    for block in recomputed_blocks(denoiser.network):
        hooks.append(block.register_forward_pre_hook(lambda *_: before.append(sum(seen.values()))))
        hooks.append(block.register_forward_hook(lambda *_: inside.append(sum(seen.values()) - before.pop())))
    try:
        yield inside
    finally:
        for hook in hooks:
            hook.remove()
