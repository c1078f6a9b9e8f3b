"""`train-codec`, killed with SIGKILL in the midst of its stages, goes on as if nothing had been."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
import yaml

from slm.cli import main
from tokenizer import Codec

STAGE = {
    "steps": 12,
    "batch_size": 2,
    "crop_seconds": 0.48,
    "learning_rate": 1e-3,
    "save_every": 2,
    "validate_every": 5,
}
STAGES = {"end_to_end": STAGE, "tune": STAGE | {"losses": {"adversarial": 0, "feature_matching": 0}}}


def lines(folder: Path) -> list[dict]:
    rows = [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]
    return [{key: value for key, value in row.items() if key != "seconds"} for row in rows]


@pytest.mark.soak
def test_killed_training_goes_on_with_the_same_losses(write_manifest, speech, tiny_codec, tmp_path) -> None:
    manifest = write_manifest({name: speech(index, 2.0) for index, name in enumerate("abc")})
    config = tmp_path / "tiny.yaml"
    config.write_text(yaml.safe_dump({"model": tiny_codec.config.to_dict(), "stages": STAGES}))

    def words(out: str) -> list[str]:
        options = {"--config": config, "--data": manifest, "--held-out": manifest, "--out": tmp_path / out}
        return ["train-codec", *(str(word) for pair in options.items() for word in pair), "--threads", "1"]

    threads = torch.get_num_threads()
    assert main(words("whole")) == 0
    kills = 0
    for stage, after in (("end_to_end", 3), ("end_to_end", 8), ("tune", 5)):
        log = tmp_path / "parts" / stage / "log.jsonl"
        command = [sys.executable, "-m", "slm.cli", *words("parts")]
        with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as process:
            while process.poll() is None and (not log.exists() or log.read_text().count("\n") < after):
                time.sleep(0.01)
            process.send_signal(signal.SIGKILL)
        kills += process.returncode == -signal.SIGKILL
    assert kills == 3
    assert main([*words("parts"), "--resume"]) == 0
    torch.set_num_threads(threads)
    for stage in STAGES:
        assert lines(tmp_path / "parts" / stage) == lines(tmp_path / "whole" / stage)
    whole, parts = (Codec.from_pretrained(str(tmp_path / out / "tune" / "codec")) for out in ("whole", "parts"))
    assert whole.fingerprint == parts.fingerprint
