"""llama.cpp beside this project's language model: greedy tokens and log-probabilities after spoken prompts.

    pip install 'focalstream[gguf]' xllamacpp
    python benchmarks/llama_cpp.py [--lm LM] [--prompts 10] [--steps 100]

`export-lm --gguf` writes the model in each dtype, and llama.cpp's server (from the wheel xllamacpp) draws the likeliest
token again and again after prompts of 3 s. Prints for each dtype in how many prompts all tokens are ours, the first
step that differs, and up to there the largest difference of the log-probabilities of the 200 likeliest ids. Ours are
float32. llama.cpp's cache of keys and values and its fused attention are float16 unless told otherwise; the first line
is without both (`llama-server -fa off -ctk f32 -ctv f32`).
"""

from __future__ import annotations

import argparse
import json
import os
import tempfile
import urllib.request
from pathlib import Path

import numpy as np
import torch
import xllamacpp

from slm.checkpoint import load_lm
from slm.generation.generate import Sampling, generate
from slm.llama import export_lm
from slm.llama_cpp import FILE
from slm.vocabulary import BOS, FIRST_CODE
from tokenizer import Codec
from tokenizer.audio import read_audio

SPOKEN = Path(__file__).parents[1] / "slm/demo/speech/audio"
SECONDS = 3.0
LIKELIEST = 200
CASES = (("float32", True), ("float32", False), ("float16", False), ("bfloat16", False))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--lm", default="small")
    parser.add_argument("--prompts", type=int, default=10)
    parser.add_argument("--steps", type=int, default=100)
    args = parser.parse_args()
    model, vocabulary = load_lm(args.lm)
    codec = Codec.from_pretrained(vocabulary.codec_name)
    prompts = []
    recordings = sorted(SPOKEN.iterdir())
    for path in recordings[:: max(1, len(recordings) // args.prompts)][: args.prompts]:
        wave = read_audio(path, codec.sample_rate_in)[: round(SECONDS * codec.sample_rate_in)]
        prompts.append(codec.encode(wave[: len(wave) // codec.chunk_samples * codec.chunk_samples])[0])
    ours = [
        [
            int(code)
            for code in generate(model, vocabulary, [prompt], Sampling(temperature=0), [0], args.steps, args.steps)
        ]
        for prompt in prompts
    ]
    print(f"xllamacpp {xllamacpp.__version__}, torch {torch.__version__}; {len(prompts)} prompts, {args.steps} steps")
    for dtype, exact in CASES:
        with tempfile.TemporaryDirectory() as folder:
            export_lm(model, vocabulary, Path(folder) / "lm", dtype, gguf=True)
            server = serve(Path(folder) / "lm" / FILE, model.config.context, exact)
            compared = [compare(server, model, *pair) for pair in zip(prompts, ours, strict=True)]
            same = sum(step is None for step, _ in compared)
            first = min((step for step, _ in compared if step is not None), default="-")
            worst = max(error for _, error in compared)
            kind = f"{dtype} weights, {'float32' if exact else 'its own'} attention"
            print(f"{kind}: {same} of {len(prompts)} equal, first other step {first}, error {worst:.1e}")
            del server


def serve(file: Path, context: int, exact: bool) -> xllamacpp.Server:
    """llama.cpp's server on a port of its own; `exact`: attention in float32."""
    params = xllamacpp.CommonParams()
    params.model.path, params.port, params.n_ctx, params.n_parallel = str(file), 0, context, 1
    if exact:
        params.cache_type_k = params.cache_type_v = xllamacpp.ggml_type.GGML_TYPE_F32
        params.flash_attn_type = xllamacpp.llama_flash_attn_type.LLAMA_FLASH_ATTN_TYPE_DISABLED
    params.verbosity, params.warmup = 0, False
    params.cpuparams.n_threads = params.cpuparams_batch.n_threads = int(os.environ.get("OMP_NUM_THREADS", 1))
    return xllamacpp.Server(params)


def compare(
    server: xllamacpp.Server, model: torch.nn.Module, prompt: torch.Tensor, ours: list[int]
) -> tuple[int | None, float]:
    """The first step at which llama.cpp's greedy code is another one, and the largest error of log-probabilities."""
    ids = [BOS, *(prompt + FIRST_CODE).tolist()]
    request = {
        "prompt": ids,
        "n_predict": len(ours),
        "temperature": 0,
        "n_probs": LIKELIEST,
        "logit_bias": [[i, False] for i in range(FIRST_CODE)],
        "ignore_eos": True,
    }
    content = json.dumps(request).encode()
    asked = urllib.request.Request(f"{server.listening_address}/completion", content)
    with urllib.request.urlopen(asked) as answer:
        steps = json.load(answer)["completion_probabilities"]
    theirs = [step["id"] - FIRST_CODE for step in steps]
    differs = next((i for i, pair in enumerate(zip(theirs, ours, strict=True)) if pair[0] != pair[1]), None)
    with torch.no_grad():
        whole = torch.tensor([[*ids, *(code + FIRST_CODE for code in ours)]])
        wanted = model(whole)[0, len(ids) - 1 : -1].log_softmax(-1).numpy()
    error = 0.0
    for step, row in zip(steps[: None if differs is None else differs + 1], wanted, strict=False):
        found = {entry["id"]: entry["logprob"] for entry in step["top_logprobs"]}
        error = max(error, float(np.abs(row[list(found)] - np.array(list(found.values()))).max()))
    return differs, error


if __name__ == "__main__":
    main()
