import argparse
import json

from hyper_sd.benchmarks.first_step import HASH, TRIAL, report


def test_parts_are_timed_and_an_earlier_result_is_kept_beside_them(tmp_path):
    arguments = argparse.Namespace(narrow=True, device="cpu", turns=2, beside=None)
    first = report(arguments)
    assert {HASH, TRIAL} < set(first["seconds"])
    assert first["trial_passes"] == 4
    arguments.beside = tmp_path / "first.json"
    arguments.beside.write_text(json.dumps(first))
    assert report(arguments)["before"]["together"] == first["together"]
