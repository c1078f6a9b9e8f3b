"""TEXTS -> FIGURES: how varied and how likely the words are that a recogniser hears in generated speech.

Both are from arXiv 2102.01192: auto-BLEU says how much of a text repeats itself, GenPPL how surprising the
texts are to a language model of text. Each alone is easily fooled: silence repeats nothing, and one sentence said over
and over is likely. So read both together, and beside those of the recordings.

That paper's figure of diversity is VERT, the geometric mean of auto-BLEU and self-BLEU (how much a text shares with the
other texts). Self-BLEU, and so VERT, is not measured here.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any

import torch

from tokenizer.errors import InputError, first_line

NGRAMS = (1, 2)  # lengths whose geometric mean auto-BLEU is, as in the paper

TextJudge = Callable[[Sequence[str]], "tuple[float, int]"]  # texts -> nats of all of them, and their tokens


def auto_bleu(texts: Sequence[str]) -> float | None:
    """Auto-BLEU of bigrams: mean over texts of the geometric mean over `NGRAMS` of the share of n-grams that occur more
    than once in the same text.

    Words count without case; texts of fewer words than the longest n-gram are left out. None if none is long enough.

    The code that the authors published differs in two rare cases: a bigram that occurs again only where it overlaps
    itself ("the the the") does not count there, and a text of one word counts as 0.
    """
    found = []
    for text in texts:
        words = text.lower().split()
        if len(words) < max(NGRAMS):
            continue
        shares = []
        for length in NGRAMS:
            grams = Counter(tuple(words[i : i + length]) for i in range(len(words) - length + 1))
            shares.append(sum(count for count in grams.values() if count > 1) / grams.total())
        found.append(math.prod(shares) ** (1 / len(shares)))
    return sum(found) / len(found) if found else None


def perplexity(judge: TextJudge, texts: Sequence[str]) -> float | None:
    """Of all texts together, per token of the judge. None if there are no words."""
    nats, tokens = judge([text for text in texts if text.strip()])
    return math.exp(nats / tokens) if tokens else None


def load_text_judge(model: str, device: str | torch.device = "cpu") -> TextJudge:
    """A causal language model of text.

    Args:
        model: a folder, or a name on the Hugging Face Hub, that `transformers` loads with its tokenizer.
        device: of the model.

    Raises:
        InputError: `transformers` is not installed, or there is no such model.
    """
    try:
        from transformers import AutoModelForCausalLM, AutoTokenizer

        tokenizer = AutoTokenizer.from_pretrained(model)
        network: Any = AutoModelForCausalLM.from_pretrained(model)
        network.to(device).eval()
    except Exception as error:  # no package, no network, a damaged folder: say which
        reason = first_line(error)
        raise InputError(
            f"--genppl {model}: {reason}; pip install transformers, and give a folder or the name of a causal language "
            "model such as gpt2"
        ) from None
    begin = tokenizer.bos_token_id if tokenizer.bos_token_id is not None else tokenizer.eos_token_id
    longest = getattr(network.config, "max_position_embeddings", None) or 1024

    @torch.no_grad()
    def judge(texts: Sequence[str]) -> tuple[float, int]:
        nats, count = 0.0, 0
        for text in texts:
            ids = tokenizer(text, add_special_tokens=False)["input_ids"]
            ids = ([] if begin is None else [begin]) + ids  # so that the first word counts too
            ids = ids[:longest]
            if len(ids) > 1:
                row = torch.tensor([ids], device=device)
                logits = network(row).logits[0, :-1].double()
                nats += float(torch.nn.functional.cross_entropy(logits, row[0, 1:], reduction="sum"))
                count += len(ids) - 1
        return nats, count

    return judge
