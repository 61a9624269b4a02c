"""Records of many trainings: what is no such record is told in one line."""

import json

import pytest

from bpt.records import read_record
from burst import CheckpointError


@pytest.mark.parametrize(
    "kind, content",
    [
        ("bpt search 1", {}),
        ("bpt search 1", {"methods": [1]}),
        ("bpt search 1", {"methods": [], "kind": "bpt validate 1"}),
        ("bpt validate 1", {}),
        ("bpt validate 1", {"whitening": None, "benchmarks": []}),
        ("bpt validate 1", {"whitening": {}, "benchmarks": 3}),
    ],
)
def test_a_file_of_a_known_kind_that_lacks_its_parts_is_refused(tmp_path, kind, content):
    path = tmp_path / "record.json"
    path.write_text(json.dumps({"kind": kind} | content))
    with pytest.raises(CheckpointError, match=rf"record.json is not what `{kind[:-2]}` of this"):
        read_record(path, kind)
