"""What the selection leaves out is counted, and a chosen channel is what Lhotse would make of it."""

import json

import numpy as np
import pytest

from pipelines.dataset.token_dataset import TokenDataset
from pipelines.sources.audio import read_wave
from pipelines.sources.cuts import Selection, SourceCut
from pipelines.tools.verify import verify
from tokenizer.errors import InputError


def test_cuts_too_short_or_too_long_are_counted_and_the_unreadable_is_not_taken_for_short(
    write_manifest, speech, run, tmp_path
):
    manifest = write_manifest({f"{seconds}": speech(i, seconds) for i, seconds in enumerate((0.2, 0.5, 1.0, 1.5, 2.0))})
    lines = [json.loads(line) for line in manifest.read_text().splitlines()]
    lines.append({**lines[0], "id": "unknown", "duration": None})
    manifest.write_text("".join(json.dumps(line) + "\n" for line in lines))
    totals = run(manifest, tmp_path / "out", selection=Selection(0.5, 1.5))
    assert (totals["skipped"], totals["planned"], totals["cuts"], totals["quarantined"]) == (2, 4, 3, 1)
    dataset = TokenDataset(tmp_path / "out")
    assert [dataset.cut_id(i) for i in range(3)] == ["0.5", "1.0", "1.5"]
    assert verify(tmp_path / "out") == []
    with pytest.raises(InputError, match=r"--min-seconds was 0\.5, now not given"):
        run(manifest, tmp_path / "out")
    with pytest.raises(InputError, match="no cuts in it but 5 that are too short or too long"):
        manifest.write_text("".join(json.dumps(line) + "\n" for line in lines[:5]))
        run(manifest, tmp_path / "none", selection=Selection(30.0))


def test_a_channel_is_chosen_as_lhotse_does(write_manifest, speech):
    from lhotse import CutSet

    stereo = np.stack([speech(0, 1.0), speech(1, 1.0)], axis=1)
    manifest = write_manifest({"a": stereo})
    line = json.loads(manifest.read_text())
    line["supervisions"].append({**line["supervisions"][0], "id": "left only", "channel": [0]})
    line["recording"]["sources"][0]["source"] = str(manifest.parent / "audio/0.wav")
    manifest.write_text(json.dumps(line) + "\n")
    chosen = Selection(channel=1).narrowed(line)
    left, right = next(iter(CutSet.from_file(manifest))).to_mono()
    assert chosen == {**right.to_dict(), "id": "a"}
    np.testing.assert_array_equal(read_wave(SourceCut(chosen), 16000), stereo[:, 1])
    assert Selection(channel=0).narrowed(line) == {**left.to_dict(), "id": "a"}
    assert Selection(channel=1).narrowed(chosen) is chosen  # a MonoCut has chosen already


def test_a_channel_that_is_not_there_is_quarantined(write_manifest, speech, run, tmp_path):
    stereo = np.stack([speech(0, 0.5), speech(1, 0.5)], axis=1)
    manifest = write_manifest({"stereo": stereo, "mono": speech(2, 0.5)})
    totals = run(manifest, tmp_path / "out", selection=Selection(channel=5))
    entry = json.loads((tmp_path / "out/quarantine.jsonl").read_text())
    assert totals["cuts"] == 1 and (entry["id"], entry["reason"]) == ("stereo", "no such channel")


@pytest.mark.parametrize("bad", [{"min_seconds": -1}, {"min_seconds": 2, "max_seconds": 1}, {"channel": -1}])
def test_nonsense_is_refused(bad):
    with pytest.raises(InputError, match="expected"):
        Selection(**bad)
