"""What the benchmarks share: turns, figures, another run of the same program, memory and machine, the JSON."""

import json
import sys

import pytest
from hyper_sd.benchmarks import measure


def test_sides_take_turns_and_the_warm_up_is_left_out():
    calls = []
    sides = {name: lambda name=name: calls.append(name) or len(calls) for name in "abc"}
    results = measure.take_turns(sides, turns=2, warm_up=1)
    assert "".join(calls) == "abc" + "bca" + "cab"
    assert results == {"a": [6, 8], "b": [4, 9], "c": [5, 7]}


def test_figures_of_a_list_of_values():
    values = [4.0, 1.0, 2.0, 3.0, 10.0]
    assert measure.extremes(values) == {"min": 1.0, "median": 3.0, "max": 10.0}
    assert measure.spread(values, 1) == {"min": 1.0, "lower_quartile": 1.5, "median": 3.0, "upper_quartile": 7.0}
    assert measure.over_seeds([1.0, 3.0]) == {"mean": 2.0, "deviation": pytest.approx(2**0.5)}
    assert measure.over_seeds([1.5]) == {"mean": 1.5, "deviation": 0.0}
    assert measure.ratios_of([1.0, 6.0], [2.0, 3.0]) == [0.5, 2.0]


def test_result_is_written_into_a_new_folder_and_logged_where_there_is_no_file(tmp_path, caplog):
    path = tmp_path / "new" / "result.json"
    with caplog.at_level("INFO"):
        measure.write_result({"a": 1}, path)
        assert caplog.messages == []
        measure.write_result({"a": 1}, None)
    assert json.loads(path.read_text(encoding="utf-8")) == json.loads(caplog.messages[0]) == {"a": 1}


def test_program_that_runs_again_gets_what_the_other_one_hands_over(monkeypatch):
    program = "import json, sys; print('before'); print(json.dumps({'given': sys.argv[1:]})); print('after')"
    monkeypatch.setattr(sys, "orig_argv", [sys.executable, "-c", program, "--own"])
    assert measure.run_again("--load", "x") == {"given": ["--own", "--load", "x"]}


@pytest.mark.parametrize("program", ["raise SystemExit('out of memory')", "import sys; sys.stderr.write('out of memory')"])
def test_program_that_fails_or_hands_over_nothing_ends_the_other_one_with_its_error(monkeypatch, program):
    monkeypatch.setattr(sys, "orig_argv", [sys.executable, "-c", program])
    with pytest.raises(SystemExit, match=r"--load failed:\nout of memory"):
        measure.run_again("--load")


@pytest.mark.skipif(sys.platform != "linux", reason="the system tells a process's memory on Linux")
def test_memory_grows_with_what_is_held():
    before = measure.memory()
    held = bytearray(b"x" * 50_000_000)
    after = measure.memory()
    assert 49e6 < after["rss"] - before["rss"] < 150e6
    assert 49e6 < after["anonymous"] - before["anonymous"] < 150e6
    assert after["highest"] >= after["rss"] - 1e6
    assert len(held) == 50_000_000


def test_machine_is_called_by_its_own_name_or_the_one_given():
    assert measure.machine("a laptop")["processor"] == "a laptop"
    assert measure.machine()["processor"] == measure.processor()
    assert measure.machine()["threads"] >= 1


def test_what_the_pack_logs_is_kept_and_the_logger_left_as_it_was():
    before = list(measure.logger.handlers), measure.logger.level
    with measure.logged() as messages:
        measure.logger.info("%d graphs", 3)
        measure.logger.debug("not this")
    measure.logger.warning("too late")
    assert messages == ["3 graphs"]
    assert (list(measure.logger.handlers), measure.logger.level) == before
