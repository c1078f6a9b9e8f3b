"""Codes as the bits that they are: embeddings made of bits, and a head that predicts bits in groups.

A code of the codec is an integer of sign bits (`tokenizer.quantizer`), so codes that share bits sound alike. What is
here lets the language model know that. Ids below `FIRST_CODE` are special tokens, which have no bits.

Dimension letters:  N rows    D width    V vocabulary    P values of the groups so far
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from slm.cross_entropy import IGNORED, summed_cross_entropy
from slm.vocabulary import FIRST_CODE
from tokenizer.errors import InputError

CODE_EMBEDDINGS = ("table", "table_from_bits", "bits")  # see `slm.model.ModelConfig`
ROWS_AT_ONCE = 64  # rows of the head whose whole distribution is made at once, which bounds the memory


def bits_of(vocabulary_size: int) -> int:
    """Bits of a code. Raises InputError for a codebook whose size is no power of two: its codes are not bits."""
    codes = vocabulary_size - FIRST_CODE
    if codes < 2 or codes & (codes - 1):
        raise InputError(
            f"the codec has {codes} codes, which is no power of two, so they have no bits; expected "
            "model.code_embedding 'table' and model.head_groups 1"
        )
    return codes.bit_length() - 1


def signs(codes: Tensor, bits: int) -> Tensor:
    """Codes int64 [...] to float32 [..., bits] of +-1/sqrt(bits), as the codec's quantizer does."""
    places = torch.arange(bits - 1, -1, -1, device=codes.device)
    return ((codes[..., None] >> places & 1) * 2 - 1) * bits**-0.5


class BitEmbedding(nn.Module):
    """An embedding of V ids with FIRST_CODE + bits vectors: special ids have their own, a code is the signed sum of
    those of its bits. `weight` [FIRST_CODE + bits, D] holds the vectors of the special ids, then those of the bits.
    """

    def __init__(self, vocabulary_size: int, width: int) -> None:
        super().__init__()
        self.bits = bits_of(vocabulary_size)
        self.weight = nn.Parameter(torch.empty(FIRST_CODE + self.bits, width))

    def forward(self, ids: Tensor) -> Tensor:
        """int64 [...] -> [..., D]."""
        special = F.embedding(ids.clamp(max=FIRST_CODE - 1), self.weight)
        code = signs((ids - FIRST_CODE).clamp(min=0), self.bits).to(self.weight.dtype) @ self.weight[FIRST_CODE:]
        return torch.where((ids < FIRST_CODE)[..., None], special, code)


@torch.no_grad()
def begin_as_bits(table: nn.Embedding) -> None:
    """Fill a table [V, D] so that codes start as a random projection of their bits, of the table's own deviation."""
    bits = bits_of(table.num_embeddings)
    vectors = torch.randn(bits, table.embedding_dim) * table.weight.std()
    table.weight[FIRST_CODE:] = signs(torch.arange(2**bits), bits) @ vectors


class BitGroupHead(nn.Module):
    """The next id as a chain: a special id or the code's first group of bits, then each further group given the former.

    The chain is conditional, so the likelihood is exact and any distribution over codes can be had:
    p(code) = p(group 1) p(group 2 | group 1) ...; `hidden_g = silu(M_g h + sum of T_j[group j], j < g)`, and the logits
    of group g are linear in it. With two groups, 65,536 codes need 528 outputs instead of 65,552.

    Args:
        width: D.
        vocabulary_size: V.
        groups: of bits, sizes as even as they can be; the first has the code's most significant bits.

    Raises:
        InputError: more groups than bits, or codes without bits.
    """

    def __init__(self, width: int, vocabulary_size: int, groups: int) -> None:
        super().__init__()
        bits = bits_of(vocabulary_size)
        if groups > bits:
            raise InputError(f"model.head_groups is {groups}, but a code has {bits} bits; expected at most {bits}")
        self.sizes = [bits // groups + (group < bits % groups) for group in range(groups)]
        values = [2**size for size in self.sizes]
        self.first = nn.Linear(width, FIRST_CODE + values[0], bias=False)
        self.mix = nn.ModuleList(nn.Linear(width, width, bias=False) for _ in values[1:])
        self.said = nn.ModuleList(nn.Embedding(count, width) for count in values[:-1])
        self.rest = nn.ModuleList(nn.Linear(width, count, bias=False) for count in values[1:])

    def forward(self, hidden: Tensor) -> Tensor:
        """[..., D] -> [..., V]: log-probabilities of every id, which serve as logits."""
        rows = hidden.flatten(0, -2).split(ROWS_AT_ONCE)
        return torch.cat([self._distribution(piece) for piece in rows]).unflatten(0, hidden.shape[:-1])

    def _distribution(self, hidden: Tensor) -> Tensor:
        """[N, D] -> [N, V], by going through all values of the groups before each group."""
        known = self.first(hidden).log_softmax(-1)
        special, known = known[:, :FIRST_CODE], known[:, FIRST_CODE:]
        said = hidden.new_zeros(1, hidden.shape[-1])
        for mix, table, rest in zip(self.mix, self.said, self.rest, strict=True):
            said = (said[:, None] + table.get_parameter("weight")).flatten(0, 1)  # [P, D]
            new = rest(F.silu(mix(hidden)[:, None] + said)).log_softmax(-1)  # [N, P, values]
            known = (known[:, :, None] + new).flatten(1)
        return torch.cat((special, known), dim=-1)

    def summed_loss(self, hidden: Tensor, targets: Tensor) -> Tensor:
        """Cross-entropy in nats of targets int64 [N] given [N, D], summed over those that are not `IGNORED`."""
        is_code = targets >= FIRST_CODE
        codes = torch.where(is_code, targets - FIRST_CODE, 0)
        groups, below = [], sum(self.sizes)
        for size in self.sizes:
            below -= size
            groups.append(codes >> below & (2**size - 1))
        first = torch.where(is_code, groups[0] + FIRST_CODE, targets)
        total = summed_cross_entropy(hidden, self.first.weight, first)
        said = torch.zeros_like(hidden)
        for index, (mix, table, rest) in enumerate(zip(self.mix, self.said, self.rest, strict=True)):
            said = said + table(groups[index])
            wanted = torch.where(is_code, groups[index + 1], IGNORED)
            total = total + summed_cross_entropy(F.silu(mix(hidden) + said), rest.get_parameter("weight"), wanted)
        return total
