"""How much memory a training will take, measured on the network itself before it starts."""

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from functools import cache, partial

import torch

from ..errors import TrainingError
from .config import TrainingConfig
from .data.examples import Conditioning
from .denoiser import Denoiser
from .engine import LocalEngine
from .feedback.judge import Judge
from .feedback.judged_memory import judged
from .flat import AT_FIRST
from .kept import Ledger
from .lora_layers import TEACHER, LoraLayers
from .objectives.discriminator import Features, Heads
from .probes import NOTHING, PROBE_SIDES, Activations, at_area, is_small
from .recompute import recomputed_blocks

FLOAT32_BYTES, GB = 4, 1e9
MOMENT_BYTES = {"adamw": 8, "adamw8bit": 2}  # of both moments of a weight
PROBE = "probe"
HEADROOM = 1.15  # for what no graph keeps: gradients on their way, a layer's own working memory, gaps between blocks


@dataclass(frozen=True)
class MemoryEstimate:
    """What a training keeps in memory besides the network's own weights, in bytes.

    Args:
        adapters: of the adapter sets, their copies in the dtype of a pass, and a discriminator's heads, with the optimizer's
            two moments of those that are trained.
        plain: what a pass keeps as it is.
        recomputed: what a pass keeps with gradient checkpointing, and the largest block while it is computed again.
        heads: weights of the discriminator's heads, 0 without a discriminator.
        gradients: of all that is trained, in float32.
        ending: of the gradients as the flat ones of whole sets are made, late in a backward pass.
        records: whether passes are recorded as CUDA graphs, whose gradients stay where they are.
        judged: what decoding and scoring pictures keeps.
    """

    adapters: int
    plain: Activations
    recomputed: Activations
    heads: int = 0
    gradients: int = 0
    ending: int = 0
    records: bool = False
    judged: Activations = NOTHING

    def needed(self, config: TrainingConfig) -> int:
        """Returns the bytes that a run of these settings takes, with some headroom; all passes of one loss are kept at once."""
        activations = self.recomputed if config.gradient_checkpointing else self.plain
        at_once = _at_once(config)
        kept = round(HEADROOM * (config.graphs * activations.of(at_once) + self.judged.of(at_once)))
        if self.records or config.accumulation > 1:
            return self.adapters + self.gradients + kept
        # What a pass keeps is let go of on the way back, while the gradients come.
        return self.adapters + max(kept, kept - kept // AT_FIRST + self.ending)


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
    records: bool = False,
    judge: Judge | None = None,
    beneath: int = 0,
) -> MemoryEstimate:
    """Measures forward passes on small latents and returns what the training of full ones takes.

    Passes on three small areas, and one with a second example, tell what the full size keeps. What they took is given back to a
    card.

    Args:
        denoiser: the network.
        layers: those to be trained, or their rank.
        config: of the run.
        shape: of the latents, [.., channels, height, width]; only these three count.
        conditioning: tensors [batch, ...] of one example or more; the first is used.
        teacher: whether a set "teacher" will be there; one that is there counts by itself.
        records: whether passes are recorded, as graphs.can_record() says.
        judge: of human feedback.
        beneath: rank of the LoRA that human feedback is learnt on top of.
    """
    with ExitStack() as stack:
        stack.enter_context(denoiser.frozen())
        probe = stack.enter_context(_probing(denoiser, layers))
        heads = _head_weights(denoiser, probe, config, shape, conditioning) if config.is_adversarial else 0
        fixed, each = _at_full_size(denoiser, probe, config, shape, conditioning)
        copy = sum(tensor.nbytes for tensor in probe.sets[PROBE].copies)
        weights, has_teacher = probe.sets[PROBE].flat.numel(), teacher or TEACHER in probe.sets
        rank, device = probe.rank, next(denoiser.network.parameters()).device
        seen = judged(judge, shape, device) if judge is not None else NOTHING
    plain = recomputed = _activations(fixed[0], each[0])
    if len(fixed) > 2:
        largest = 2 + int(each[2:].argmax())
        recomputed = _activations(fixed[1] + fixed[largest], each[1] + each[largest])
    give_back(device)
    measured = MemoryEstimate(0, plain, recomputed, heads, records=records, judged=seen)
    return _whole(config, weights, copy, heads, has_teacher + beneath / rank, measured)


def give_back(device: torch.device) -> None:
    """Gives memory that torch keeps for later, and nobody uses, back to a card."""
    if device.type == "cuda":
        torch.cuda.empty_cache()


def _whole(
    config: TrainingConfig, weights: int, copy: int, heads: int, beneath: float, measured: MemoryEstimate
) -> MemoryEstimate:
    """Returns an estimate with what does not depend on the pictures.

    Args:
        config: of the run.
        weights: of an adapter set.
        copy: bytes of a set's copy in the dtype of a pass, 0 where that is the set's own.
        heads: weights of the discriminator's heads.
        beneath: how many sets stay as they are, such as "teacher", in sizes of the student.
        measured: the estimate so far.
    """
    backbone = config.is_adversarial and config.train_backbone
    watched = config.feedback is not None and bool(config.feedback.held_out)
    sets = 1 + config.has_target + beneath + backbone + config.has_fake + watched  # one is the student
    trained = (1 + backbone + config.has_fake) * weights + heads
    reached = 1 + backbone  # sets that one backward pass reaches
    whole, parts = FLOAT32_BYTES * weights, copy or FLOAT32_BYTES * weights
    return replace(
        measured,
        adapters=round(sets * (FLOAT32_BYTES * weights + copy))
        + FLOAT32_BYTES * heads
        + MOMENT_BYTES[config.optimizer] * trained,
        gradients=FLOAT32_BYTES * trained,
        ending=reached * (parts // AT_FIRST + whole) + FLOAT32_BYTES * heads,
    )


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
    probe.add(PROBE, seed=None)
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
    """Returns what a pass keeps as (fixed, for each example), both [2 + blocks], in the order of _kept_bytes()."""
    channels, height, width = shape[-3:]

    @cache
    def measure(count: int, *sides: int) -> torch.Tensor:
        with LocalEngine(next(denoiser.network.parameters()).device, config.precision).autocast(denoiser):
            return _kept_bytes(denoiser, layers, (count, channels, *sides), conditioning, config.is_adversarial)

    one = at_area(partial(measure, 1), height, width)
    if is_small(height, width):
        each = measure(2, height, width) - one
        return one - each, each
    smallest = PROBE_SIDES[0]
    fixed = 2 * measure(1, *smallest) - measure(2, *smallest)
    return fixed, one - fixed


def _inputs(denoiser: Denoiser, shape: Sequence[int], conditioning: Conditioning) -> tuple:
    """Returns latents, timesteps and conditioning of as many examples as the shape has."""
    device = next(denoiser.network.parameters()).device
    texts = {key: tensor[:1].to(device).expand(shape[0], *tensor.shape[1:]).clone() for key, tensor in conditioning.items()}
    dtype = next((t.dtype for t in texts.values() if t.is_floating_point()), torch.float32)
    return torch.zeros(tuple(shape), device=device, dtype=dtype), torch.full((shape[0],), 500, device=device), texts


def _kept_bytes(
    denoiser: Denoiser, layers: LoraLayers, shape: Sequence[int], conditioning: Conditioning, judged: bool
) -> torch.Tensor:
    """Runs the network forward and returns the bytes autograd keeps, float64 [2 + blocks], without the weights.

    They are those of the whole pass, those it keeps where its blocks only keep their inputs, and those new in each block.

    Args:
        judged: whether the prediction goes through the network's encoder once more, as a discriminator has it.
    """
    ledger = Ledger([*denoiser.network.parameters(), *layers.sets[PROBE].parameters()])
    x, t, texts = _inputs(denoiser, shape, conditioning)
    with ledger.watching(recomputed_blocks(denoiser.network)), torch.enable_grad():
        prediction = denoiser.predict(x, t, texts)
        blocks = ledger.blocks
        if judged:
            Features(denoiser, layers)(prediction, t, texts)
    return ledger.sums(blocks, layers.sets[PROBE].copies)
