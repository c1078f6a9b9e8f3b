"""Every difference between stored and wanted settings is found, and only those."""

import json
import random

from tokenizer.runs.settings import differences


def test_settings_that_were_stored_as_json_do_not_differ():
    wanted = {"train": {"steps": 5, "betas": (0.9, 0.95), "note": None}, "codec": "f" * 64}
    assert differences(json.loads(json.dumps(wanted)), wanted) == []
    del wanted["train"]["note"]
    assert differences({**wanted, "train": {**wanted["train"], "note": None}}, wanted) == []


def test_changed_missing_and_new_settings_are_named_in_order():
    stored = {"train": {"steps": 5, "rows": 2}, "codec": "a"}
    wanted = {"train": {"steps": 6}, "codec": "a", "data": {"seed": 1}}
    found = differences(stored, wanted)
    assert [difference.name for difference in found] == ["train.steps", "train.rows", "data.seed"]
    assert str(found[0]) == "train.steps was 5, now 6"
    assert found[1].sentence({"train.rows": "--rows"}) == "--rows was 2, now not given"


def test_one_random_change_is_one_difference():
    rng = random.Random(1)
    for _ in range(50):
        stored = {f"s{i}": {f"k{j}": rng.randrange(9) for j in range(4)} for i in range(3)}
        section, key = f"s{rng.randrange(3)}", f"k{rng.randrange(4)}"
        wanted = json.loads(json.dumps(stored))
        wanted[section][key] += 1
        assert [(d.name, d.wanted - d.stored) for d in differences(stored, wanted)] == [(f"{section}.{key}", 1)]
