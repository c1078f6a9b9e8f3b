"""Whole runs of `tokenize` on a CUDA device; see `test_device` for what can be seen without one."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from pipelines.bulk.encoding import Encoding
from pipelines.bulk.executors.inline import Inline
from pipelines.bulk.executors.local import Local
from pipelines.bulk.plan import Sharding
from pipelines.bulk.run import Job, tokenize
from pipelines.dataset.token_dataset import TokenDataset
from pipelines.sources.audio import read_wave
from pipelines.sources.manifests import find_inputs, read_cuts
from tokenizer import Codec

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device on this machine"),
]


@pytest.fixture
def corpus(write_manifest, speech):
    """Forty utterances and three recordings of over a minute, some of them at another rate."""
    seconds = [0.02, 0.5 + 61, 63.3, 130.7, *(0.3 + 0.37 * i for i in range(39))]
    return write_manifest({f"cut-{i}": speech(i, length, 22050) for i, length in enumerate(seconds)}, 22050)


@pytest.fixture
def run_on(corpus, tiny_codec_dir, tmp_path):
    """run_on(name, device, decoders, executor, precision) -> the folder of the dataset."""

    def call(name, device, decoders, executor=None, precision="fp32"):
        encoding = Encoding(20.0, device, batch_shards=3, long_rows=2, precision=precision)
        out, sharding = tmp_path / name, Sharding(cuts=5)
        job = Job(str(corpus), out, str(tiny_codec_dir), sharding, encoding, executor or Inline(), decoders=decoders)
        totals = tokenize(job).totals
        assert (totals.cuts, totals.quarantined) == (43, 0)
        return out

    return call


def test_the_codes_are_those_of_the_cpu_by_any_number_of_decoders(run_on, corpus, tiny_codec_dir, file_bytes):
    """By threads, by one and by two decoders in this process, and in a worker process: the same bytes. All codes are
    those of the CPU, but for bits whose latent is within rounding of zero."""
    host, first = TokenDataset(run_on("cpu", "cpu", 0)), run_on("gpu-0", "cuda", 0)
    for decoders in (1, 2):
        assert file_bytes(run_on(f"gpu-{decoders}", "cuda", decoders)) == file_bytes(first)
    assert file_bytes(run_on("gpu-worker", "cuda", 1, Local(1))) == file_bytes(first)
    codec, device = Codec.from_pretrained(tiny_codec_dir), TokenDataset(first)
    firm_share = []
    for row, item in enumerate(read_cuts(find_inputs(str(corpus)))):
        features = codec.features(torch.from_numpy(read_wave(item, codec.sample_rate_in)))
        firm = (codec.latents(features)[0].abs().amin(-1) > 1e-4).numpy()  # a hundred times the rounding of float32
        wanted, found = host.codes(row), device.codes(row)
        assert len(found) == len(wanted) == len(firm)
        np.testing.assert_array_equal(found[firm], wanted[firm])
        firm_share.append(firm.mean())
    assert np.mean(firm_share) > 0.95


@pytest.mark.parametrize("precision", ["tf32", "bf16"])
def test_other_precisions_give_most_of_the_codes(run_on, precision):
    host, device = TokenDataset(run_on("cpu", "cpu", 0)), TokenDataset(run_on(precision, "cuda", 2, None, precision))
    equal = np.concatenate([host.codes(row) == device.codes(row) for row in range(len(host))])
    assert equal.mean() > 0.5  # chance: 1 in 256


@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="one CUDA device on this machine")
def test_two_gpus_give_the_same_bytes(run_on, file_bytes):
    one = run_on("one", "cuda:1", 1)
    both = run_on("both", "cuda", 1, Local(2, devices=("cuda:0", "cuda:1")))
    assert file_bytes(both) == file_bytes(one)
