"""Held-out cuts: no recording or speaker on both sides, and a mixture's sources one by one."""

from __future__ import annotations

import dataclasses
import json
from typing import Any

import numpy as np
import pytest

from pipelines.dataset.batches import split_held_out
from pipelines.dataset.token_dataset import TokenDataset
from slm.training.held_out import groups_of, short_names, sources_of, split, split_groups
from slm.training.train import train
from tests.slm.training.test_train import log_of
from tokenizer.errors import InputError

CUTS: list[dict[str, Any]] = [
    {"recording": {"id": "a"}, "supervisions": [{"speaker": "eve"}]},
    {"recording": {"id": "a"}, "supervisions": []},
    {"recording": {"id": "b"}, "supervisions": [{"speaker": "eve"}]},
    {"supervisions": [{"recording_id": "b", "speaker": "ida"}]},
    {"supervisions": []},
    {"supervisions": []},
]


def test_cuts_of_one_recording_or_speaker_are_one_group():
    assert groups_of(CUTS, "recording").tolist() == [0, 0, 1, 1, 2, 3]
    assert groups_of(CUTS, "speaker").tolist() == [0, 1, 0, 2, 3, 4]


def test_groups_are_held_out_whole():
    groups = np.repeat(np.arange(50), np.random.default_rng(0).integers(1, 9, 50))
    training, held_out = split_groups(groups, 0.1, seed=3)
    assert not set(groups[training]) & set(groups[held_out]) and len(set(groups[held_out])) == 5
    np.testing.assert_array_equal(np.sort(np.concatenate([training, held_out])), np.arange(len(groups)))


def test_recordings_of_one_cut_are_drawn_as_single_cuts_are(token_dataset, lm_settings):
    dataset = TokenDataset(token_dataset)
    expected = split_held_out(len(dataset), lm_settings.held_out_fraction, lm_settings.seed)
    for by in ("recording", "speaker", "cut"):
        found = split(dataset, None, dataclasses.replace(lm_settings, held_out_by=by))
        np.testing.assert_array_equal(found[1], expected[1])


def test_one_recording_alone_is_refused(token_dataset, lm_settings, monkeypatch):
    dataset = TokenDataset(token_dataset)
    monkeypatch.setattr(dataset, "cuts", lambda: iter([{"recording": {"id": "a"}}] * len(dataset)))
    with pytest.raises(InputError, match=r"all 20 cuts are of one recording.*--held-out-by cut"):
        split(dataset, None, lm_settings)


def test_shards_without_cuts_say_what_to_give(token_dataset, lm_settings, tmp_path):
    for part in ("index", "dataset.json"):
        (tmp_path / part).symlink_to(token_dataset / part)
    (tmp_path / "shards").mkdir()
    for tar in (token_dataset / "shards").glob("codes*"):
        (tmp_path / "shards" / tar.name).symlink_to(tar)
    dataset = TokenDataset(tmp_path)
    with pytest.raises(InputError, match="or give --held-out-by cut"):
        split(dataset, None, lm_settings)
    assert len(split(dataset, None, dataclasses.replace(lm_settings, held_out_by="cut"))[0]) == 16


def test_sources_have_short_names_that_differ():
    assert short_names(["/x/a/train", "/x/b/train/", "s3://k/c"]) == ["a/train", "b/train", "k/c"]
    assert short_names(["a", "a"]) == ["a 1", "a 2"]
    found = sources_of(["a", "b", "c"], [0, 5, 9, 12], np.array([1, 3, 10, 11]))
    assert {name: cuts.tolist() for name, cuts in found.items()} == {"a": [1, 3], "c": [10, 11]}


def test_a_mixture_is_validated_by_source(lm_config, lm_settings, token_dataset, tmp_path, capsys):
    (tmp_path / "again").symlink_to(token_dataset)
    settings = dataclasses.replace(lm_settings, steps=4, validate_every=4, validation_rows=1000, held_out_by="cut")
    data = [f"{token_dataset}:1", f"{tmp_path / 'again'}:3"]
    train(lm_config, settings, data, tmp_path / "run")
    record = log_of(tmp_path / "run")[-1]
    sources = {name: record[f"held_out_speech_bits_per_token/{name}"] for name in ("out", "again")}
    assert min(sources.values()) < record["held_out_bits_per_token"] < max(sources.values())
    assert f"(out {sources['out']:.3f}, again {sources['again']:.3f})" in capsys.readouterr().err
    train(lm_config, dataclasses.replace(settings, validate_by_source=False), data, tmp_path / "not")
    assert not any("/" in key for key in log_of(tmp_path / "not")[-1])


def test_an_older_run_goes_on_with_the_cuts_that_it_held_out(lm_config, lm_settings, token_dataset, tmp_path):
    settings = dataclasses.replace(lm_settings, steps=4, held_out_by="cut")
    train(lm_config, settings, [token_dataset], tmp_path, show_progress=False)
    record = json.loads((tmp_path / "run.json").read_text())
    del record["train"]["held_out_by"]
    (tmp_path / "run.json").write_text(json.dumps(record))
    longer = dataclasses.replace(settings, steps=5)
    with pytest.raises(InputError, match=r"began with another train\.held_out_by; give what its run\.json says"):
        other = dataclasses.replace(longer, held_out_by="recording")
        train(lm_config, other, [token_dataset], tmp_path, resume=True, show_progress=False)
    assert train(lm_config, longer, [token_dataset], tmp_path, resume=True, show_progress=False).step == 5
