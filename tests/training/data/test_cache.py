import errno
import itertools

import pytest
import torch
from hyper_sd.errors import TrainingError
from hyper_sd.tests.training.data.pictures import BLUE, RED, encoded, picture, write
from hyper_sd.training import checkpoint
from hyper_sd.training.data.cache import CachedExamples, Encoders, encode, latents_path, load_pixels, prompt_path
from hyper_sd.training.data.examples import BatchOrder
from hyper_sd.training.data.folder import scan_folder
from hyper_sd.training.data.images import ImageRules
from safetensors import safe_open

RULES = ImageRules(resolution=64, step=16, min_side=32)


class FakeEncoders:
    """Latents are pixels averaged 8 x 8; conditioning counts letters. Remembers every call."""

    def __init__(self, fingerprint="tiny"):
        self.images, self.prompts, self.fingerprint = [], [], fingerprint

    def encode_images(self, pixels):
        self.images.append(len(pixels))
        return torch.nn.functional.avg_pool2d(pixels, 8)

    def encode_prompts(self, texts):
        self.prompts += texts
        tokens = torch.tensor([[len(text), text.count("a")] for text in texts])
        return {"context": tokens[:, :, None].expand(-1, -1, 3).half(), "tokens": tokens}

    @property
    def encoders(self):
        return Encoders(self.encode_images, self.encode_prompts, self.fingerprint)

    @property
    def counts(self):
        return sum(self.images), len(self.prompts)


@pytest.fixture
def images(tmp_path):
    """A folder of 7 images in two buckets, 6 of them different, with 4 different captions."""
    for number, (size, left) in enumerate(itertools.product([(64, 64), (200, 120)], [RED, BLUE, (0, 255, 0)])):
        write(tmp_path / "set", f"{number}.png", picture(size, left))
        write(tmp_path / "set", f"{number}.txt", f"caption {'a' * (number % 4)}")
    write(tmp_path / "set", "same as 0.png", picture((64, 64), RED))
    write(tmp_path / "set", "same as 0.txt", "caption a")
    return tmp_path / "set"


def run(items, fake, folder, **options):
    return list(encode(items, fake.encoders, folder, **options))


def test_examples_hold_what_the_encoders_returned(images, tmp_path):
    items, fake = scan_folder(images, RULES).items, FakeEncoders()
    run(items, fake, tmp_path / "cache", batch_size=4)
    examples = CachedExamples(items, tmp_path / "cache", "tiny")
    assert [[items[n].name for n in bucket] for bucket in examples.buckets] == [
        ["0.png", "1.png", "2.png", "same as 0.png"],
        ["3.png", "4.png", "5.png"],
    ]
    for numbers in ([0, 6], [5, 3, 5], [1]):
        batch = examples.batch(numbers, draw=0)
        chosen = [items[n] for n in numbers]
        expected = fake.encode_prompts([item.caption for item in chosen])
        assert torch.equal(batch.latents, fake.encode_images(torch.stack([load_pixels(item) for item in chosen])))
        assert batch.conditioning.keys() == expected.keys()
        assert all(torch.equal(batch.conditioning[name], expected[name]) for name in expected)
        assert all(batch.conditioning[name].dtype == expected[name].dtype for name in expected)
        assert batch.unconditional["context"].shape == batch.conditioning["context"].shape
        assert torch.equal(batch.unconditional["tokens"], torch.zeros(len(numbers), 2, dtype=torch.long))


def test_examples_serve_the_order_of_batches(images, tmp_path):
    items = scan_folder(images, RULES).items
    run(items, FakeEncoders(), tmp_path / "cache")
    examples = CachedExamples(items, tmp_path / "cache", "tiny")
    order, seen = BatchOrder(examples.buckets, 2, seed=0), set()
    for step in range(order.batches_per_epoch):
        assert examples.batch(order.numbers(step), step).latents.shape[0] == 2
        seen |= set(order.numbers(step))
    assert seen == set(range(7))


def test_equal_images_and_captions_are_encoded_once(images, tmp_path):
    fake = FakeEncoders()
    progress = run(scan_folder(images, RULES).items, fake, tmp_path / "cache", batch_size=2)
    assert fake.counts == (6, 5)
    assert max(fake.images) == 2
    assert sorted(fake.prompts) == ["", "caption", "caption a", "caption aa", "caption aaa"]
    assert len(list((tmp_path / "cache").rglob("*.safetensors"))) == 11
    assert [(p.done, p.total) for p in progress] == [(0, 11), (2, 11), (4, 11), (5, 11), (7, 11), (8, 11), (10, 11), (11, 11)]
    assert progress[0].eta_seconds is None
    assert progress[-1].eta_seconds == 0
    assert all(p.eta_seconds > 0 for p in progress[1:-1])


def test_second_run_encodes_nothing(images, tmp_path):
    items = scan_folder(images, RULES).items
    run(items, FakeEncoders(), tmp_path / "cache")
    again = FakeEncoders()
    (progress,) = run(items, again, tmp_path / "cache")
    assert again.counts == (0, 0)
    assert (progress.done, progress.total, progress.eta_seconds) == (11, 11, None)


@pytest.mark.parametrize("batches", range(1, 6))
def test_stopped_run_goes_on_where_it_was(images, tmp_path, batches):
    items, first, second = scan_folder(images, RULES).items, FakeEncoders(), FakeEncoders()
    stopped = encode(items, first.encoders, tmp_path / "cache", batch_size=2)
    reached = [next(stopped) for _ in range(batches + 1)][-1].done
    stopped.close()
    rest = run(items, second, tmp_path / "cache", batch_size=2)
    assert rest[0].done == reached == sum(first.counts)
    assert sum(first.counts) + sum(second.counts) == 11
    assert CachedExamples(items, tmp_path / "cache", "tiny").batch([0, 1], 0).latents.shape == (2, 3, 8, 8)


@pytest.mark.parametrize(
    ("change", "costs"),
    [
        (
            lambda folder: write(folder, "new.png", picture((64, 64), (9, 9, 9))) and write(folder, "new.txt", "caption a"),
            (1, 0),
        ),
        (lambda folder: write(folder, "0.txt", "another caption"), (0, 1)),
        (lambda folder: write(folder, "0.png", picture((64, 64), (9, 9, 9))), (1, 0)),
        (lambda folder: (folder / "0.png").rename(folder / "renamed.png") and write(folder, "renamed.txt", "caption"), (0, 0)),
        (lambda folder: (folder / "5.png").unlink(), (0, 0)),
    ],
    ids=["image added", "caption changed", "image changed", "image renamed", "image removed"],
)
def test_change_of_the_folder_costs_itself(images, tmp_path, change, costs):
    run(scan_folder(images, RULES).items, FakeEncoders(), tmp_path / "cache")
    change(images)
    items, again = scan_folder(images, RULES).items, FakeEncoders()
    run(items, again, tmp_path / "cache")
    assert again.counts == costs
    assert sum(map(len, CachedExamples(items, tmp_path / "cache", "tiny").buckets)) == len(items)


def test_other_bucket_encodes_images_and_other_fingerprint_everything(images, tmp_path):
    run(scan_folder(images, RULES).items, FakeEncoders(), tmp_path / "cache")
    smaller, other = FakeEncoders(), FakeEncoders("another model")
    run(scan_folder(images, ImageRules(resolution=32, step=16)).items, smaller, tmp_path / "cache")
    run(scan_folder(images, RULES).items, other, tmp_path / "cache")
    assert smaller.counts == (6, 0)
    assert other.counts == (6, 5)


@pytest.mark.parametrize(
    "damage", [lambda data: b"", lambda data: data[:-1], lambda data: data[:20], lambda data: b"\xff" * 99]
)
def test_damaged_file_is_encoded_again(images, tmp_path, damage):
    items = scan_folder(images, RULES).items
    run(items, FakeEncoders(), tmp_path / "cache")
    damaged = [latents_path(tmp_path / "cache", "tiny", items[3]), prompt_path(tmp_path / "cache", "tiny", items[2].caption)]
    whole = [path.read_bytes() for path in damaged]
    for path in damaged:
        path.write_bytes(damage(path.read_bytes()))
    with pytest.raises(TrainingError, match="lacks 2 of the 11 files of 7 examples"):
        CachedExamples(items, tmp_path / "cache", "tiny")
    again = FakeEncoders()
    run(items, again, tmp_path / "cache")
    assert again.counts == (1, 1)
    assert [path.read_bytes() for path in damaged] == whole


@pytest.mark.parametrize("world", [1, 2, 3, 20])
def test_shares_are_disjoint_and_complete(images, tmp_path, world):
    items, fakes = scan_folder(images, RULES).items, [FakeEncoders() for _ in range(world)]
    runs = [encode(items, fake.encoders, tmp_path / "cache", 2, (rank, world)) for rank, fake in enumerate(fakes)]
    last = {}
    for _ in range(12):  # in turns, as processes side by side
        for rank, share in enumerate(runs):
            last[rank] = next(share, last.get(rank))
    assert [sum(fake.counts[kind] for fake in fakes) for kind in (0, 1)] == [6, 5]
    assert sum(progress.total for progress in last.values()) == 11
    assert all(progress.done == progress.total for progress in last.values())
    assert len(CachedExamples(items, tmp_path / "cache", "tiny").buckets) == 2


@pytest.mark.parametrize("options", [{"share": (2, 2)}, {"share": (-1, 2)}, {"share": (0, 0)}, {"batch_size": 0}])
def test_impossible_share_is_refused(images, tmp_path, options):
    with pytest.raises(TrainingError, match="0 <= rank < world"):
        run(scan_folder(images, RULES).items, FakeEncoders(), tmp_path / "cache", **options)


def test_full_disk_is_an_error_that_leaves_whole_files_only(images, tmp_path, monkeypatch):
    items, save, written = scan_folder(images, RULES).items, checkpoint.save_file, []

    def full(tensors, path, metadata):
        if len(written) == 7:
            path.write_bytes(b"half of it")
            raise OSError(errno.ENOSPC, "No space left on device")
        written.append(path)
        save(tensors, path, metadata)

    monkeypatch.setattr(checkpoint, "save_file", full)
    with pytest.raises(TrainingError, match=r"cache.*make room"):
        run(items, FakeEncoders(), tmp_path / "cache")
    monkeypatch.undo()
    assert len([path for path in (tmp_path / "cache").rglob("*") if path.is_file()]) == 7
    again = FakeEncoders()
    assert run(items, again, tmp_path / "cache")[0].done == 7
    assert sum(again.counts) == 4


def test_leftover_of_a_killed_run_is_in_nobodys_way(images, tmp_path):
    items = scan_folder(images, RULES).items
    path = latents_path(tmp_path / "cache", "tiny", items[0])
    write(path.parent, path.name + ".12345.part", b"half")
    run(items, FakeEncoders(), tmp_path / "cache")
    run(items, FakeEncoders(), tmp_path / "clean")
    with safe_open(path, "pt") as file, safe_open(latents_path(tmp_path / "clean", "tiny", items[0]), "pt") as other:
        assert set(file.keys()) == set(other.keys()) == {"latents"}
        assert torch.equal(file.get_tensor("latents"), other.get_tensor("latents"))
    again = FakeEncoders()
    run(items, again, tmp_path / "cache")
    assert again.counts == (0, 0)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_values_that_are_not_finite_are_refused(images, tmp_path, value):
    fake = FakeEncoders()
    broken = Encoders(lambda pixels: fake.encode_images(pixels) * value, fake.encode_prompts, "tiny")
    with pytest.raises(TrainingError, match=r"'same as 0\.png'.*not finite in latents.*float32 or bfloat16"):
        list(encode(scan_folder(images, RULES).items, broken, tmp_path / "cache"))
    assert len(list((tmp_path / "cache").rglob("*.*"))) == 5  # the prompts


def test_encoder_that_loses_rows_is_refused(images, tmp_path):
    fake = FakeEncoders()
    broken = Encoders(lambda pixels: fake.encode_images(pixels)[1:], fake.encode_prompts, "tiny")
    with pytest.raises(TrainingError, match="2 rows of latents for a batch of 3"):
        list(encode(scan_folder(images, RULES).items, broken, tmp_path / "cache"))


def test_image_that_changed_since_the_scan_is_an_error(images, tmp_path):
    items = scan_folder(images, RULES).items
    write(images, "1.png", encoded(picture((64, 64), RED)))
    with pytest.raises(TrainingError, match=r"1\.png changed"):
        run(items, FakeEncoders(), tmp_path / "cache")


def test_examples_that_are_not_encoded_are_refused(images, tmp_path):
    items = scan_folder(images, RULES).items
    run(items[:2], FakeEncoders(), tmp_path / "cache")
    for missing, fingerprint in ((items, "tiny"), (items[:2], "another model"), ((), "tiny")):
        with pytest.raises(TrainingError, match=f"examples encoded by {fingerprint}.*before training"):
            CachedExamples(missing, tmp_path / "cache", fingerprint)
    assert CachedExamples(items[:2], tmp_path / "cache", "tiny").buckets == [[0, 1]]


def test_prompts_of_different_shapes_are_refused_before_training(images, tmp_path):
    fake, items = FakeEncoders(), scan_folder(images, RULES).items
    ragged = Encoders(fake.encode_images, lambda texts: {"context": torch.zeros(1, 1 + len(texts[0]))}, "tiny")
    list(encode(items, ragged, tmp_path / "cache", batch_size=1))
    with pytest.raises(TrainingError, match=r"caption of 0\.png.*bring all prompts to one shape"):
        CachedExamples(items, tmp_path / "cache", "tiny")


def test_cache_that_goes_during_training_is_an_error(images, tmp_path):
    items = scan_folder(images, RULES).items
    run(items, FakeEncoders(), tmp_path / "cache")
    examples = CachedExamples(items, tmp_path / "cache", "tiny")
    latents_path(tmp_path / "cache", "tiny", items[1]).unlink()
    with pytest.raises(TrainingError, match="cache lacks a file"):
        examples.batch([1], 0)


def test_encoding_records_no_gradients_and_leaves_the_caller_his(images, tmp_path):
    fake, weight = FakeEncoders(), torch.ones((), requires_grad=True)
    encoders = Encoders(lambda pixels: fake.encode_images(pixels) * weight, fake.encode_prompts, "tiny")
    for _ in encode(scan_folder(images, RULES).items, encoders, tmp_path / "cache", 2):
        assert torch.is_grad_enabled()
        assert (weight * 2).requires_grad
