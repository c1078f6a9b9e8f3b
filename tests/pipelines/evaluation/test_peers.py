"""Other codecs: their delay is taken out, and a missing program is named."""

from __future__ import annotations

import numpy as np
import pytest

from pipelines.evaluation import peers


def test_a_delay_is_taken_out(speech) -> None:
    wave = speech(0, 1.0)
    delayed = np.concatenate([np.zeros(317, np.float32), wave])[: len(wave)]
    back = peers.aligned(delayed, wave)
    np.testing.assert_array_equal(back[:-317], wave[:-317])
    assert len(back) == len(wave) and not back[-317:].any()


def test_a_missing_program_is_named(monkeypatch) -> None:
    monkeypatch.setattr("shutil.which", lambda program: None if program == "c2dec" else f"/bin/{program}")
    assert [peer.missing() for peer in peers.PEERS] == ["c2dec not installed (Debian: codec2)"] * 3 + [None]


@pytest.mark.parametrize("peer", peers.PEERS, ids=lambda peer: peer.name)
def test_a_peer_keeps_the_length(peer: peers.Peer, speech) -> None:
    if peer.missing():
        pytest.skip(f"{peer.missing()}")
    wave = speech(1, 1.234)
    decoded = peer.resynthesise(wave)
    assert decoded.shape == wave.shape and np.abs(decoded).max() > 0.01
