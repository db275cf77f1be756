"""Samples by step, each once."""

import json

import pytest

from jaxformer.run.samples import read_samples, write_samples

pytestmark = [pytest.mark.device_free, pytest.mark.smoke]

SAMPLES = {4: '"4" \n\x00\u2028 é', 8: ""}


def test_samples_are_read_as_they_were_written_and_only_those_before_a_step(tmp_path):
    write_samples(tmp_path, {})
    assert read_samples(tmp_path) == {} and not list(tmp_path.iterdir())
    write_samples(tmp_path, SAMPLES)
    assert read_samples(tmp_path) == SAMPLES and read_samples(tmp_path, 8) == {4: SAMPLES[4]}
    lines = (tmp_path / "samples.jsonl").read_bytes().splitlines()
    assert [json.loads(line) for line in lines] == [{"step": step, "text": text} for step, text in SAMPLES.items()]


@pytest.mark.parametrize("damage", ['{"step": 8, "te', "[]", "null", '{"step": "", "text": ""}', '{"step": 8}', "\x00"])
def test_a_damaged_line_is_left_out(damage, tmp_path):
    write_samples(tmp_path, SAMPLES)
    with (tmp_path / "samples.jsonl").open("a") as file:
        file.write(damage)
    assert read_samples(tmp_path) == SAMPLES
