"""What the language model's options for binary codes do, at small scale: one short training each, on the same batches.

    focalstream tokenize TRAIN tokens/train && focalstream tokenize TEST tokens/test
    python benchmarks/lm_options.py --data tokens/train --held-out tokens/test --steps 300

Beside the options of the model, it says how far byte-pair encoding over codes ("acoustic BPE", by SentencePiece, pieces
learnt from --data) would shorten held-out sequences. Speeds are of passes in turns, in bfloat16.
"""

from __future__ import annotations

import argparse
import io
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import sentencepiece
import torch

from pipelines.dataset.token_dataset import TokenDataset
from slm.model.transformer import LanguageModel
from slm.training.settings import read_settings
from slm.training.train import train
from slm.vocabulary import FIRST_CODE

UNTIED = {"tied_embeddings": False}
OPTIONS: dict[str, dict[str, Any]] = {
    "tied table (the default)": {},
    "bits, 2 groups of bits": {**UNTIED, "code_embedding": "bits", "head_groups": 2},
    "table, 2 groups of bits": {**UNTIED, "head_groups": 2},
    "bits, head of its own": {**UNTIED, "code_embedding": "bits"},
    "tied table that starts from bits": {"code_embedding": "table_from_bits"},
    "table, head of its own": UNTIED,
}
PIECES = (8192, 16384)
FIRST_CHARACTER = 0xF0000  # of a plane kept for private use: code c is character 0xF0000 + c


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="dataset to train on")
    parser.add_argument("--held-out", type=Path, required=True, help="dataset for the figures")
    parser.add_argument("--config", default="tiny")
    parser.add_argument("--steps", type=int, default=300)
    parser.add_argument("--rows", type=int, default=8, help="rows of a step")
    args = parser.parse_args()
    training, held_out = TokenDataset(args.data), TokenDataset(args.held_out)
    for count in PIECES:
        print(byte_pairs(training, held_out, count), flush=True)
    speeds = processor_speeds(args.config, training.codebook_size)
    run = {"steps": args.steps, "warmup_steps": args.steps // 10, "save_every": args.steps, "rows": args.rows}
    run |= {"rows_at_once": args.rows, "validate_every": args.steps, "validation_rows": 64}
    print(
        "\n| model | parameters | tokens a second of processor time | held-out bits/token | bits per second of speech |"
    )
    print("|---|---|---|---|---|")
    for name, changes in OPTIONS.items():
        config, settings = read_settings(args.config, run, changes)
        with tempfile.TemporaryDirectory() as folder:
            report = train(config, settings, [args.data], Path(folder), [args.held_out], show_progress=False)
        if report.stopped_by != "end":
            raise SystemExit(f"stopped by {report.stopped_by}")
        assert report.best_bits_per_token is not None and report.best_bits_per_second is not None
        print(
            f"| {name} | {report.parameters:,} | {speeds[name]:,.0f} | {report.best_bits_per_token:.3f} | "
            f"{report.best_bits_per_second:.1f} |",
            flush=True,
        )


def processor_speeds(name: str, codes: int) -> dict[str, float]:
    """Tokens per second of processor time of forward and backward passes, the options in turns."""
    tokens = torch.randint(FIRST_CODE, FIRST_CODE + codes, (4, 257), generator=torch.Generator().manual_seed(0))
    models = {
        option: LanguageModel(read_settings(name, {}, changes)[0], FIRST_CODE + codes)
        for option, changes in OPTIONS.items()
    }
    times: dict[str, list[float]] = {option: [] for option in models}
    for _ in range(8):
        for option, model in models.items():
            began = time.process_time()
            with torch.autocast("cpu", torch.bfloat16):
                loss = model(tokens[:, :-1], targets=tokens[:, 1:])
            loss.backward()
            times[option].append(time.process_time() - began)
    return {option: 4 * 256 / statistics.median(found) for option, found in times.items()}


def byte_pairs(training: TokenDataset, held_out: TokenDataset, count: int) -> str:
    """How long held-out sequences are in `count` pieces learnt by SentencePiece's BPE."""
    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(characters(training)),
        model_writer=model,
        model_type="bpe",
        vocab_size=count,
        character_coverage=1.0,
        normalization_rule_name="identity",
        add_dummy_prefix=False,
        split_by_unicode_script=False,
        max_sentence_length=1_000_000,
        minloglevel=2,
        hard_vocab_limit=False,
    )
    processor = sentencepiece.SentencePieceProcessor(model_proto=model.getvalue())
    codes = characters(held_out)
    pieces = [processor.encode(sentence) for sentence in codes]
    share = sum(map(len, pieces)) / sum(map(len, codes))
    return f"BPE of {count} pieces: {share * held_out.token_rate:.1f} pieces a second of speech instead of " + (
        f"{held_out.token_rate:.0f} codes ({share:.3f})"
    )


def characters(dataset: TokenDataset) -> list[str]:
    """Each cut as a string of private characters."""
    return ["".join(map(chr, dataset.codes(i).astype(np.int64) + FIRST_CHARACTER)) for i in range(len(dataset))]


if __name__ == "__main__":
    main()
