"""model.gguf of an export: what is in it, and that llama.cpp draws from it what we draw.

llama.cpp runs where its server as a wheel is installed: pip install xllamacpp.
"""

from __future__ import annotations

import dataclasses
import json
import sys
import urllib.request

import numpy as np
import pytest
import torch

from slm.cli import main
from slm.generation.generate import Sampling, generate
from slm.llama import export_lm
from slm.llama_cpp import FILE, in_pairs
from slm.vocabulary import BOS, FIRST_CODE
from tests.slm.test_llama import VOCABULARY, model_of

SHAPE = {"width": 64, "layers": 2, "ffn_width": 96, "context": 64, "dropout": 0.0}


@pytest.mark.parametrize(("dtype", "tied"), [("float32", True), ("float16", False), ("bfloat16", True)])
def test_the_file_has_the_weights_and_says_of_which_codec(tmp_path, dtype, tied):
    gguf = pytest.importorskip("gguf", reason="needs pip install focalstream[gguf]")
    model = model_of(**SHAPE, tied_embeddings=tied)
    export_lm(model, VOCABULARY, tmp_path / "out", dtype, gguf=True)
    read = gguf.GGUFReader(tmp_path / "out" / FILE)
    found = {tensor.name: gguf.dequantize(tensor.data, tensor.tensor_type) for tensor in read.tensors}
    attention, last = model.layers[1].self_attn, "blk.1."
    query, key = (
        in_pairs(weight, f"{name}_proj.weight", model.config)
        for name, weight in (("q", attention.q_proj.weight), ("k", attention.k_proj.weight))
    )
    expected = {
        f"{last}attn_q.weight": query,
        f"{last}attn_k.weight": key,
        f"{last}ffn_down.weight": model.layers[1].mlp.down_proj.weight,
        "token_embd.weight": model.embed_tokens.weight,
        "output_norm.weight": model.norm.weight,  # as float32 in the file, after the rounding of model.safetensors
    }
    for name, weight in expected.items():
        wanted = weight.detach().to(getattr(torch, dtype)).float()
        np.testing.assert_array_equal(found[name], wanted, err_msg=name)
    assert ("output.weight" in found) is not tied and len(found) == 2 * 9 + (2 if tied else 3)
    assert read.fields["focalstream.codec_fingerprint"].contents() == VOCABULARY.codec_fingerprint
    assert read.fields["tokenizer.ggml.tokens"].contents()[FIRST_CODE + 5] == "<|c5|>"


def test_rotated_rows_become_neighbours():
    """Of each head of 6 rows, 0 and 3 rotate together, 1 and 4, 2 and 5."""
    config = dataclasses.replace(model_of(**SHAPE).config, width=12, heads=2, kv_heads=2)
    rows = in_pairs(torch.arange(12)[:, None], "layers.0.self_attn.k_proj.weight", config)[:, 0].tolist()
    assert rows == [0, 3, 1, 4, 2, 5, 6, 9, 7, 10, 8, 11]


def test_without_the_package_nothing_is_written(tmp_path, monkeypatch, capsys, tiny_lm_dir):
    monkeypatch.setitem(sys.modules, "gguf", None)
    assert main(["export-lm", str(tmp_path / "out"), "--lm", str(tiny_lm_dir), "--gguf"]) == 2
    assert "pip install 'focalstream[gguf]'" in capsys.readouterr().err and not (tmp_path / "out").exists()


@pytest.fixture
def serve():
    """A function from a GGUF file to the URL of llama.cpp's server with it."""
    pytest.importorskip("gguf", reason="needs pip install focalstream[gguf]")
    xllamacpp = pytest.importorskip("xllamacpp", reason="needs pip install xllamacpp")
    running = []

    def start(file):
        params = xllamacpp.CommonParams()
        params.model.path, params.port = str(file), 0
        params.n_ctx, params.n_parallel, params.warmup = 512, 1, False
        params.cache_type_k = params.cache_type_v = xllamacpp.ggml_type.GGML_TYPE_F32
        params.flash_attn_type = xllamacpp.llama_flash_attn_type.LLAMA_FLASH_ATTN_TYPE_DISABLED  # it has float16 inside
        params.cpuparams.n_threads = params.cpuparams_batch.n_threads = 1
        running.append(xllamacpp.Server(params))
        return running[-1].listening_address

    return start


def answer(url: str, path: str, **content: object) -> dict:
    request = urllib.request.Request(url + path, json.dumps(content).encode(), {"Content-Type": "application/json"})
    with urllib.request.urlopen(request) as found:
        return json.load(found)


@pytest.mark.parametrize("tied", [True, False])
def test_llama_cpp_has_the_same_probabilities_and_greedy_tokens(tmp_path, serve, tied):
    model = model_of(**SHAPE, tied_embeddings=tied)
    export_lm(model, VOCABULARY, tmp_path / "out", gguf=True)
    url = serve(tmp_path / "out" / FILE)
    codes = np.random.default_rng(0).integers(0, VOCABULARY.codebook_size, 20)
    ids = [BOS, *VOCABULARY.ids(codes).tolist()]
    text = "".join(f"<|c{code}|>" for code in codes)
    assert answer(url, "/tokenize", content=text, add_special=True)["tokens"] == ids
    assert answer(url, "/tokenize", content="<|c1|> Hello")["tokens"] == [FIRST_CODE + 1, 6]
    drawn = answer(url, "/completion", prompt=ids, n_predict=1, n_probs=VOCABULARY.size, temperature=0)
    found = {entry["id"]: entry["logprob"] for entry in drawn["completion_probabilities"][0]["top_logprobs"]}
    with torch.no_grad():
        expected = model(torch.tensor([ids]))[0, -1].log_softmax(-1)
    # Both in float32, one with its rotary angles in float64.
    np.testing.assert_allclose([found[i] for i in range(VOCABULARY.size)], expected, atol=1e-4)
    ours = [
        int(code)
        for code in generate(model, VOCABULARY, [torch.from_numpy(codes)], Sampling(temperature=0), [0], 0, 30)
    ]
    biases = [[i, False] for i in range(FIRST_CODE) if i != 2]
    told = answer(url, "/v1/completions", prompt=ids, max_tokens=30, temperature=0, logit_bias=biases)["choices"][0]
    assert told["text"] == "".join(f"<|c{code}|>" for code in ours) and ours


def test_the_sound_through_llama_cpp_is_that_of_continue(tmp_path, serve):
    assert main(["export-lm", str(tmp_path / "lm"), "--lm", "small", "--gguf"]) == 0
    url = serve(tmp_path / "lm" / FILE)
    command = ["continue", "slm/demo/speech/audio/eve-01.ogg", "--seconds", "2", "--temperature", "0", "--top-p", "1"]
    assert main([*command, str(tmp_path / "own.wav")]) == 0
    endpoint = ["--lm", str(tmp_path / "lm"), "--endpoint", f"{url}/v1", "--stream"]
    assert main([*command, *endpoint, str(tmp_path / "theirs.wav")]) == 0
    assert (tmp_path / "own.wav").read_bytes() == (tmp_path / "theirs.wav").read_bytes()
