"""A training step of the language model beside `transformers`' LlamaForCausalLM: the same shape, weights and batch.

    OMP_NUM_THREADS=2 python benchmarks/lm_training.py [--config small] [--float32] [--device cuda]

Both keep documents apart with the same mask and positions, both step with fused AdamW, in turns, in one process;
without dropout, which Llama lacks. `transformers` runs SDPA attention on a CPU and FlexAttention on a GPU (add
--compile there), and its own loss over all logits. The first lines show that both compute
the same loss. Times are medians of steps, by the clock, and of the processor time they took, which a busy machine
disturbs less.
"""

from __future__ import annotations

import argparse
import dataclasses
import statistics
import time
from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor
from transformers import LlamaConfig, LlamaForCausalLM

from pipelines.dataset.batches import Batch
from slm.documents.tasks import summed_loss, targets_of
from slm.model.cross_entropy import IGNORED
from slm.model.packed_attention import block_mask
from slm.model.transformer import LanguageModel
from slm.training.settings import read_settings

VOCABULARY_SIZE = 4096 + 16
DOCUMENT = 200  # tokens, on average


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--config", default="small")
    parser.add_argument("--rows", type=int, default=8, help="rows of a step, in one pass")
    parser.add_argument("--steps", type=int, default=12)
    parser.add_argument("--float32", action="store_true", help="instead of bfloat16 autocast")
    parser.add_argument("--compile", action="store_true", help="compile the layers of ours, and all of the other")
    parser.add_argument("--whole", action="store_true", help="with --compile: ours as one graph too")
    parser.add_argument("--device", default="cpu")
    args = parser.parse_args()
    config, settings = read_settings(args.config, {})
    config = dataclasses.replace(config, dropout=0.0, context=settings.row_tokens)
    batch = packed(args.rows, settings.row_tokens)
    torch.manual_seed(0)
    ours = LanguageModel(config, VOCABULARY_SIZE).to(args.device).train()
    theirs = LlamaForCausalLM(
        LlamaConfig(
            vocab_size=VOCABULARY_SIZE,
            hidden_size=config.width,
            intermediate_size=config.ffn_width,
            num_hidden_layers=config.layers,
            num_attention_heads=config.heads,
            num_key_value_heads=config.kv_heads,
            rope_theta=config.rope_theta,
            rms_norm_eps=config.norm_eps,
            tie_word_embeddings=config.tied_embeddings,
            max_position_embeddings=2**16,
            use_cache=False,
            attn_implementation="flex_attention" if args.device.startswith("cuda") else "sdpa",
        )
    )
    state = ours.state_dict()
    head = state.pop("lm_head.weight")
    theirs.load_state_dict({f"model.{name}": t for name, t in state.items()} | {"lm_head.weight": head})
    theirs.to(args.device).train()
    if args.compile:
        if args.whole:
            ours.compile_whole()
        for layer in () if args.whole else ours.layers:
            layer.compile()
        theirs.compile()

    targets = int((targets_of(batch) != IGNORED).sum())
    losses: dict[str, Callable[[], Tensor]] = {
        "focalstream": lambda: summed_loss(ours, batch, not args.float32) / targets,
        "transformers": lambda: llama_loss(theirs, batch, not args.float32, args.device),
    }
    optimizers = {
        "focalstream": torch.optim.AdamW(ours.parameters(), lr=1e-4, fused=True),
        "transformers": torch.optim.AdamW(theirs.parameters(), lr=1e-4, fused=True),
    }
    clock: dict[str, list[float]] = {name: [] for name in losses}
    busy: dict[str, list[float]] = {name: [] for name in losses}
    for step in range(args.steps + 2):
        values = []
        for name, loss_of in losses.items():
            began, worked = time.perf_counter(), time.process_time()
            optimizers[name].zero_grad(set_to_none=True)
            loss = loss_of()
            loss.backward()
            optimizers[name].step()
            values.append(loss.item())  # waits for a GPU
            if step >= 2:
                clock[name].append(time.perf_counter() - began)
                busy[name].append(time.process_time() - worked)
        if step < 2:
            print(f"loss at step {step}: " + ", ".join(f"{n} {v:.6f}" for n, v in zip(losses, values, strict=True)))
    tokens = args.rows * settings.row_tokens
    for name in losses:
        print(
            f"{name}: {tokens / statistics.median(clock[name]):,.0f} tokens/s by the clock, "
            f"{tokens / statistics.median(busy[name]):,.0f} tokens per second of processor time"
        )
    for what, times in (("clock", clock), ("processor", busy)):
        ratios = [t / o for o, t in zip(times["focalstream"], times["transformers"], strict=True)]
        low, middle, high = (float(np.quantile(ratios, q)) for q in (0.25, 0.5, 0.75))
        print(f"{what}: {middle:.2f} times the rate of transformers (quartiles {low:.2f} and {high:.2f})")


def packed(rows: int, row_tokens: int) -> Batch:
    """Random tokens in rows of whole documents and parts of them."""
    random = np.random.default_rng(0)
    shape = (rows, row_tokens + 1)
    begins = random.random(shape) < 1 / DOCUMENT
    begins[:, 0] = True
    steps = np.broadcast_to(np.arange(row_tokens + 1), shape)
    positions = steps - np.maximum.accumulate(np.where(begins, steps, 0), axis=1)
    return Batch(random.integers(16, VOCABULARY_SIZE, shape), begins.cumsum(1), positions)


def llama_loss(model: LlamaForCausalLM, batch: Batch, bfloat16: bool, device: str) -> Tensor:
    """Nats per target of the same batch, by the arguments that `transformers` has for it."""
    tokens, documents, positions = (torch.from_numpy(field[:, :-1]).to(device) for field in batch)
    targets = torch.from_numpy(targets_of(batch)).to(device)
    if tokens.device.type == "cuda":
        visible = block_mask(documents, tokens, tokens.shape[1])
    else:
        same = documents[:, :, None] == documents[:, None, :]
        visible = (same & torch.ones_like(same[0]).tril())[:, None]
    with torch.autocast(torch.device(device).type, torch.bfloat16, enabled=bfloat16):
        output = model(tokens, attention_mask=visible, position_ids=positions, labels=targets, shift_labels=targets)
    loss: Tensor = output.loss
    return loss


if __name__ == "__main__":
    main()
