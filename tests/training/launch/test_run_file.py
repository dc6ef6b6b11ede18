import pytest
from hyper_sd.errors import TrainingError
from hyper_sd.tests.conftest import ROOT
from hyper_sd.training.launch.run_file import read_run_file

WHOLE = """
[model]
folder = "model"
[data]
folder = "images"
[training]
stages = [{num_segments = 8, steps = 2}]
[output]
folder = "out"
name = "fox"
"""


def read(tmp_path, text):
    path = tmp_path / "run.toml"
    path.write_text(text, encoding="utf-8")
    return read_run_file(path)


def test_paths_start_at_the_folder_of_the_file(tmp_path):
    file = read(tmp_path, WHOLE)
    assert file.model.folder == str(tmp_path / "model")
    assert file.data.folder == str(tmp_path / "images")
    assert file.data.cache == str(tmp_path / "cache")
    assert file.output.lora_path(8) == tmp_path / "out" / "fox-8steps.safetensors"
    assert file.output.lora_path(1) == tmp_path / "out" / "fox-1step.safetensors"
    assert file.output.lora_path(1, is_one_step=True) == tmp_path / "out" / "fox-one-step.safetensors"
    assert file.output.lora_path(None) == tmp_path / "out" / "fox.safetensors"


def test_absolute_paths_and_hub_ids_are_kept(tmp_path):
    elsewhere = (tmp_path / "elsewhere").as_posix()
    text = WHOLE.replace('"images"', f"'{elsewhere}'").replace('folder = "model"', 'hub_id = "owner/name"')
    file = read(tmp_path, text)
    assert (file.model.hub_id, file.model.folder) == ("owner/name", "")
    assert file.data.folder.replace("\\", "/") == elsewhere


def test_dtype_follows_precision_unless_it_is_given(tmp_path):
    bf16 = WHOLE.replace("[output]", 'precision = "bf16"\n[output]')
    assert read(tmp_path, WHOLE).dtype == "fp32"
    assert read(tmp_path, bf16).dtype == "bf16"
    assert read(tmp_path, bf16.replace("[data]", 'dtype = "fp32"\n[data]')).dtype == "fp32"


@pytest.mark.parametrize(("value", "word"), [("true", "auto"), ("false", "off"), ('"auto"', "auto"), ('"off"', "off")])
def test_cuda_graphs_of_a_run_of_stages_may_be_true_false_or_a_word(tmp_path, value, word):
    assert read(tmp_path, WHOLE.replace("[output]", f"cuda_graphs = {value}\n[output]")).training.cuda_graphs == word


def test_example_is_a_valid_file_and_names_every_setting():
    text = (ROOT / "training" / "launch" / "example.toml").read_text(encoding="utf-8")
    file = read_run_file(ROOT / "training" / "launch" / "example.toml")
    assert [stage.num_segments for stage in file.training.stages] == [8, 4, 2, 1]
    for table in (file.model, file.data, file.training, file.output, file.training.stages[0]):
        for name in vars(table).keys() - {"stages", "feedback", "scorers"}:  # feedback goes by preset
            assert f"{name} =" in text, name


@pytest.mark.parametrize(
    ("before", "after", "said"),
    [
        ("[model]", "[modle]", "must have the tables"),
        ('folder = "model"', "", "exactly one of folder, hub_id, embedded, got none"),
        ('folder = "model"', 'folder = "a"\nhub_id = "b/c"', "got folder, hub_id"),
        ('folder = "model"', 'folder = "a"\ndtype = "int8"', "must be one of fp32, bf16, fp16"),
        ('folder = "model"', 'folder = "a"\ndtype = "bf16"', "needs training.precision 'bf16'"),
        ('folder = "model"', "folder = 3", "must be text in quotes, got 3"),
        ('folder = "images"', 'folder = "a"\nprompts = "b"', "exactly one of folder, shards, prompts"),
        ('folder = "images"', 'folder = "a"\nresolution = "512"', "resolution must be a whole number"),
        ('folder = "images"', 'folder = "a"\nresolution = true', "resolution must be a whole number"),
        ('folder = "images"', 'folder = "a"\nresolution = -1', "must be 0 or more"),
        ('folder = "images"', 'folder = "a"\nmax_aspect = "2"', "max_aspect must be a number"),
        ('folder = "images"', 'folder = "a"\nresolutoin = 512', "unknown ['resolutoin']"),
        ('name = "fox"', "", "lacks ['name']"),
        ('name = "fox"', 'name = "../fox"', "plain file name"),
        ('name = "fox"', r'name = "my\new"', "plain file name"),
        ("stages = [{num_segments = 8, steps = 2}]", "", "list of stages"),
        ("stages = ", "rank = 0\nstages = ", "rank must lie in"),
        ("stages = ", "ranks = 4\nstages = ", "Unknown settings ['ranks']"),
        ('"out"', '"out', "is not TOML"),
    ],
)
def test_bad_file_is_refused_in_one_line(tmp_path, before, after, said):
    with pytest.raises(TrainingError) as error:
        read(tmp_path, WHOLE.replace(before, after))
    assert said in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("path", [r"C:\unets\bears", "D:\\bears\\", r"\\server\share"])
def test_backslashes_that_are_not_toml_name_single_quotes(tmp_path, path):
    with pytest.raises(TrainingError, match=r"is not TOML.* single quotes, 'D:\\test\\bears', or with /"):
        read(tmp_path, WHOLE.replace('"images"', f'"{path}"'))
    assert path in read(tmp_path, WHOLE.replace('"images"', f"'{path}'")).data.folder


@pytest.mark.parametrize(
    ("before", "after", "said"),
    [
        ('"model"', r'"D:\test\new"', r"model.folder became 'D:\test\new'"),
        ('"images"', r'"D:\bears"', r"data.folder became 'D:\x08ears'"),
        ('"images"', '"images"\n' + r'cache = "E:\fast\new"', r"data.cache became 'E:\x0cast\new'"),
        ('folder = "images"', r'shards = "D:\red-{0..3}.tar"', r"data.shards became 'D:\red-{0..3}.tar'"),
        ('"out"', r'"D:\results"', r"output.folder became 'D:\results'"),
        (
            "stages = [{num_segments = 8, steps = 2}]",
            'preset = "Small"\n' + r'start_from = "D:\new.safetensors"',
            "training.start_from became",
        ),
    ],
)
def test_backslashes_that_toml_took_for_codes_are_refused_in_every_path(tmp_path, before, after, said):
    with pytest.raises(TrainingError) as error:
        read(tmp_path, WHOLE.replace(before, after))
    assert said in str(error.value)
    assert "single quotes" in str(error.value)


def test_file_in_another_encoding_is_refused_by_its_encoding(tmp_path):
    (tmp_path / "run.toml").write_bytes(WHOLE.encode("utf-16"))
    with pytest.raises(TrainingError, match=r"is not UTF-8 text.*save it as UTF-8"):
        read_run_file(tmp_path / "run.toml")


def test_missing_file_is_refused(tmp_path):
    with pytest.raises(TrainingError, match=r"cannot be read .*example\.toml"):
        read_run_file(tmp_path / "none.toml")
