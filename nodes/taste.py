"""The node that learns a person's taste from the votes of the tab "Hyper-SD votes", as the score my_taste."""

import comfy.model_management
import comfy.utils
from comfy_api.latest import io

from ..evaluation import collected
from ..evaluation.taste import AUTO, CHOICES, choose_features, learn_taste, report, target_in, write_taste
from ..models.host_folders import REWARDS
from ..rewards.table import MY_TASTE
from .model_downloads import model_folders
from .schema import CATEGORY, found_as, lasting_text, node_id_of, require_choice
from .vote import DEFAULT, comparisons_folder

ROOM = 2**31  # bytes of a card that CLIP ViT-L/14 and one picture take at most

INPUTS = [
    io.String.Input(
        "comparison",
        default=DEFAULT,
        tooltip="The collection that you have voted on: its name in Hyper-SD Vote, or that node's output. All votes beside it "
        "are learnt from.",
    ),
    io.Combo.Input(
        "features",
        options=list(CHOICES),
        default=AUTO,
        tooltip="What is seen of a picture. auto takes clip_l, CLIP ViT-L/14, where its file is there, which the tab Hyper-SD "
        "models downloads; embedded comes with the pack and knows the demo model's drawings alone.",
    ),
]
OUTPUTS = [
    io.String.Output("report", "report", tooltip="How well your votes are foreseen, and what the taste may be used for."),
    io.String.Output("scorer", "scorer", tooltip="my_taste: the name that Hyper-SD Score and Hyper-SD Train LoRA call it by."),
]


class HyperSDLearnTaste(io.ComfyNode):
    """A person's taste, learnt from votes."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="HyperSDLearnTaste",
            display_name="Hyper-SD Learn Taste",
            category=CATEGORY,
            **found_as("preference", "reward model", "my taste", "personal", "votes", "aesthetic", "blind test"),
            description="Learns from your votes which pictures you like: a score that sorts, and a reward to train on.",
            inputs=INPUTS,
            outputs=OUTPUTS,
            hidden=[io.Hidden.unique_id],
            is_output_node=True,
        )

    @classmethod
    def fingerprint_inputs(cls, **inputs) -> str:
        # of all collections: the host does not say which one is wired in
        files = sorted(path for path in comparisons_folder().glob("*/*.json") if path.is_file())
        return " ".join(f"{path} {path.stat().st_mtime_ns}" for path in files)

    @classmethod
    def execute(cls, comparison: str = DEFAULT, features: str = AUTO) -> io.NodeOutput:
        require_choice("features", features, CHOICES)
        management, folders = comfy.model_management, model_folders(REWARDS)
        known, ballots = collected.loaded(collected.folder_of(comparisons_folder(), comparison))
        chosen, device = choose_features(features, folders), management.get_torch_device()
        management.free_memory(ROOM, device)
        bar = comfy.utils.ProgressBar(len(known.pictures), node_id_of(cls))

        def progress(done: int, total: int) -> None:
            management.throw_exception_if_processing_interrupted()
            bar.update_absolute(done, total)

        taste = learn_taste(known, ballots, chosen, folders, device, progress)
        target = target_in(folders[0])
        older = write_taste(taste, target)
        kept = f" The one before is kept as {older.name}." if older else ""
        text = f"{report(taste)}\nWritten: {target}.{kept}"
        return io.NodeOutput(text, MY_TASTE, ui=lasting_text(text))


NODES = [HyperSDLearnTaste]
