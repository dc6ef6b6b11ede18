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
from .lora_layers import TEACHER, LoraLayers
from .objectives.discriminator import Features, Heads
from .recompute import recomputed_blocks, recomputing

FLOAT32_BYTES, GB = 4, 1e9
PROBE = "probe"
PROBE_SIDES = ((8, 8), (8, 16), (16, 16))  # of latents: little memory beside a real size, and every UNet's divisions allow them
HEADROOM = 1.15  # for what no graph keeps: gradients on their way, a layer's own working memory, gaps between blocks


@dataclass(frozen=True)
class Activations:
    """Bytes that a forward pass keeps for the backward pass.

    Args:
        fixed: whatever the number of examples, such as weights cast to bf16.
        each: for every example that is computed at once.
    """

    fixed: int
    each: int

    def of(self, examples: int) -> int:
        """Returns the bytes for so many examples at once."""
        return self.fixed + self.each * examples


@dataclass(frozen=True)
class MemoryEstimate:
    """What a training keeps in memory besides the network's own weights.

    Args:
        adapters: bytes of the adapter sets and of a discriminator's heads, with the gradients and the optimizer's two moments
            of those that are trained, in float32.
        plain: what a pass keeps as it is.
        recomputed: what a pass keeps with gradient checkpointing, and the largest block while it is computed again.
        heads: weights of the discriminator's heads, 0 without a discriminator.
    """

    adapters: int
    plain: Activations
    recomputed: Activations
    heads: int = 0

    def needed(self, config: TrainingConfig) -> int:
        """Returns the bytes that a run of these settings takes, with some headroom; all passes of one loss are kept at once."""
        activations = self.recomputed if config.gradient_checkpointing else self.plain
        return self.adapters + round(HEADROOM * config.graphs * activations.of(_at_once(config)))


def _at_once(config: TrainingConfig) -> int:
    return -(-config.batch_size // config.accumulation)


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
    its matrix and grows with its square. Three areas and a second example find it. Small latents are measured as they are.

    Args:
        denoiser: the network.
        layers: those to be trained, or their rank.
        config: of the run.
        shape: of the latents, [.., channels, height, width]; only these three count.
        conditioning: tensors [batch, ...] of one example or more; the first is used.
        teacher: whether a set "teacher" will be there; one that is there counts by itself.
    """
    with ExitStack() as stack:
        stack.enter_context(denoiser.frozen())
        probe = stack.enter_context(_probing(denoiser, layers))
        heads = _head_weights(denoiser, probe, config, shape, conditioning) if config.is_adversarial else 0
        fixed, each = _at_full_size(denoiser, probe, config, shape, conditioning)
        plain = recomputed = _activations(fixed[0], each[0])
        if len(fixed) > 1:
            stack.enter_context(recomputing(denoiser.network, probe))
            inputs = _at_full_size(denoiser, probe, config, shape, conditioning)
            largest = 1 + int(each[1:].argmax())
            recomputed = _activations(inputs[0][0] + fixed[largest], inputs[1][0] + each[largest])
    adapters = _adapter_bytes(probe, config, teacher or TEACHER in probe.sets) + FLOAT32_BYTES * 4 * heads
    return MemoryEstimate(adapters, plain, recomputed, heads)


def _activations(fixed: torch.Tensor, each: torch.Tensor) -> Activations:
    return Activations(round(float(fixed)), round(float(each)))


def fit(measured: MemoryEstimate, free_bytes: float, config: TrainingConfig) -> TrainingConfig:
    """Returns the settings changed as little as lets them fit: gradient checkpointing first, then smaller parts.

    Both change what a step costs, not what it learns, and may differ between two parts of one run.

    Args:
        measured: what estimate() found.
        free_bytes: that the training may take.
        config: of the run.
    Raises: TrainingError naming needed and free gigabytes where one example at a time still does not fit.
    """
    parts = [n for n in range(config.accumulation, config.batch_size + 1) if config.batch_size % n == 0]
    choices = [config]
    if measured.recomputed.of(_at_once(config)) < measured.plain.of(_at_once(config)):
        choices.append(replace(config, gradient_checkpointing=True))
    choices += [replace(choices[-1], accumulation=n) for n in parts]
    for choice in choices:
        if measured.needed(choice) <= free_bytes:
            return choice
    raise TrainingError(
        f"This training needs {measured.needed(choices[-1]) / GB:.2f} GB of free memory even one example at a time, "
        f"and {max(free_bytes, 0) / GB:.2f} GB are free. What helps, best first: use smaller images; lower rank (now "
        f"{config.rank}); close other programs and unload other models that hold this memory."
    )


def _adapter_bytes(layers: LoraLayers, config: TrainingConfig, teacher: bool) -> int:
    weights = layers.rank * sum(layer.weight[0].numel() + len(layer.weight) for layer in layers.layers.values())  # down and up
    backbone = config.is_adversarial and config.train_backbone
    sets = 1 + config.has_target + teacher + backbone + config.has_fake  # one is the student
    trained = 1 + backbone + config.has_fake
    return FLOAT32_BYTES * weights * (sets + 3 * trained)  # a gradient and two moments each


def _head_weights(
    denoiser: Denoiser, layers: LoraLayers, config: TrainingConfig, shape: Sequence[int], conditioning: Conditioning
) -> int:
    """Returns how many weights the discriminator's heads will have."""
    channels, height, width = shape[-3:]
    sides = (min(height, PROBE_SIDES[-1][0]), min(width, PROBE_SIDES[-1][1]))
    x, t, texts = _inputs(denoiser, (1, channels, *sides), conditioning)
    with torch.no_grad(), LocalEngine(x.device, config.precision).autocast(denoiser):
        widths = [feature.shape[1] for feature in Features(denoiser, layers)(x, t, texts)]
    with torch.device("meta"):
        return sum(weight.numel() for weight in Heads(widths).parameters())


@contextmanager
def _probing(denoiser: Denoiser, layers: LoraLayers | int) -> Iterator[LoraLayers]:
    """Gives layers with an active set of their own, and takes both away afterwards."""
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
    """Returns what a pass keeps as (fixed, for each example), both [1 + blocks]: the whole pass, then every block alone."""
    channels, height, width = shape[-3:]

    def measure(count: int, *sides: int) -> torch.Tensor:
        with LocalEngine(next(denoiser.network.parameters()).device, config.precision).autocast(denoiser):
            return _kept_bytes(denoiser, layers, (count, channels, *sides), conditioning, config.is_adversarial)

    area, areas = height * width, torch.tensor([float(a * b) for a, b in PROBE_SIDES], dtype=torch.float64)
    if min(height, width) < min(PROBE_SIDES[0]) or area < areas[-1]:
        one = measure(1, height, width)
        each = measure(2, height, width) - one
        return one - each, each
    measured = torch.stack([measure(1, *sides) for sides in PROBE_SIDES])
    powers = torch.linalg.solve(areas[:, None] ** torch.arange(3), measured)  # [3, 1 + blocks]
    fixed = 2 * measured[0] - measure(2, *PROBE_SIDES[0])
    return fixed, (float(area) ** torch.arange(3, dtype=torch.float64)) @ powers - fixed


def _inputs(denoiser: Denoiser, shape: Sequence[int], conditioning: Conditioning) -> tuple:
    """Returns latents, timesteps and conditioning of as many examples as the shape has."""
    device = next(denoiser.network.parameters()).device
    texts = {key: tensor[:1].to(device).expand(shape[0], *tensor.shape[1:]).clone() for key, tensor in conditioning.items()}
    dtype = next((t.dtype for t in texts.values() if t.is_floating_point()), torch.float32)
    return torch.zeros(tuple(shape), device=device, dtype=dtype), torch.full((shape[0],), 500, device=device), texts


def _kept_bytes(
    denoiser: Denoiser, layers: LoraLayers, shape: Sequence[int], conditioning: Conditioning, judged: bool
) -> torch.Tensor:
    """Runs the network forward and returns the bytes autograd keeps, float64 [1 + blocks]: all, and those new in each block.

    Args:
        judged: whether the prediction goes through the network's encoder once more, as a discriminator has it.
    """
    own = {StorageWeakRef(p.untyped_storage()) for p in (*denoiser.network.parameters(), *layers.sets[PROBE].parameters())}
    seen: dict[StorageWeakRef, int] = {}  # so that a storage, freed meanwhile, is not taken for another at its address
    x, t, texts = _inputs(denoiser, shape, conditioning)

    def count(tensor: torch.Tensor) -> None:  # what is kept instead of the tensor: there will be no backward pass
        storage = tensor.untyped_storage()
        reference = StorageWeakRef(storage)
        if reference not in own:
            seen[reference] = storage.nbytes()

    with _counting_blocks(denoiser, seen) as inside, torch.enable_grad():
        with torch.autograd.graph.saved_tensors_hooks(count, lambda nothing: nothing):
            prediction = denoiser.predict(x, t, texts)
            blocks = len(inside)
            if judged:
                Features(denoiser, layers)(prediction, t, texts)
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
