"""Codes as bits: embeddings made of bits, and a head that predicts bits in groups.

A code of the codec is an integer of sign bits (`tokenizer.network.quantizer`), so codes that share bits sound similar.
These modules give the language model that structure. Special tokens (ids below `FIRST_CODE`) and pieces of text (ids
above the codes) have no bits.

Dimension letters:  N rows    D width    V vocabulary    P values of the groups so far
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from slm.model.cross_entropy import IGNORED, summed_cross_entropy
from slm.vocabulary import FIRST_CODE
from tokenizer.errors import InputError

CODE_EMBEDDINGS = ("table", "table_from_bits", "bits")  # see `slm.model.transformer.ModelConfig`
ROWS_AT_ONCE = 64  # rows whose full distribution is computed at once; this bounds the memory


def bits_of(codes: int) -> int:
    """Bits of a code. Raises InputError if the number of codes is not a power of two."""
    if codes < 2 or codes & (codes - 1):
        raise InputError(
            f"the codec has {codes} codes, which is not a power of two, so they are not bits; expected "
            "model.code_embedding 'table' and model.head_groups 1"
        )
    return codes.bit_length() - 1


def signs(codes: Tensor, bits: int) -> Tensor:
    """Tokens int64 [...] to vectors float32 [..., bits] of +-1/sqrt(bits), as in the codec's quantizer."""
    places = torch.arange(bits - 1, -1, -1, device=codes.device)
    return ((codes[..., None] >> places & 1) * 2 - 1) * bits**-0.5


class BitEmbedding(nn.Module):
    """An embedding of V ids with FIRST_CODE + bits + pieces vectors: special ids and pieces have vectors of their own,
    a code is the signed sum of its bits' vectors. `weight` [FIRST_CODE + bits + pieces, D] holds them in this order.
    """

    def __init__(self, vocabulary_size: int, width: int, pieces: int = 0) -> None:
        super().__init__()
        self.first_piece = vocabulary_size - pieces
        self.bits = bits_of(self.first_piece - FIRST_CODE)
        self.weight = nn.Parameter(torch.empty(FIRST_CODE + self.bits + pieces, width))

    def forward(self, ids: Tensor) -> Tensor:
        """int64 [...] -> [..., D]."""
        first_row = FIRST_CODE + self.bits  # of the pieces
        rows = torch.where(ids < self.first_piece, ids.clamp(max=FIRST_CODE - 1), ids - self.first_piece + first_row)
        bits = signs((ids - FIRST_CODE).clamp(min=0), self.bits).to(self.weight.dtype)
        is_code = (ids >= FIRST_CODE) & (ids < self.first_piece)
        return torch.where(is_code[..., None], bits @ self.weight[FIRST_CODE:first_row], F.embedding(rows, self.weight))


def begin_as_bits(table: Tensor, pieces: int = 0, generator: torch.Generator | None = None) -> None:
    """Initialise the codes of a table [V, D] with a random projection of their bits, at the table's scale."""
    bits = bits_of(len(table) - FIRST_CODE - pieces)
    vectors = torch.randn(bits, table.shape[1], generator=generator, device="cpu") * table.std()
    table[FIRST_CODE : FIRST_CODE + 2**bits] = signs(torch.arange(2**bits, device="cpu"), bits) @ vectors


class BitGroupHead(nn.Module):
    """The next id as a chain: first a special id, a piece of text or the first group of a code's bits, then each
    further group given the groups before.

    The likelihood is exact, and the chain can represent any distribution over codes:
    p(code) = p(group 1) p(group 2 | group 1) ...; `hidden_g = silu(M_g h + sum of T_j[group j], j < g)`, and the logits
    of group g are linear in it. With two groups, 65,536 codes need 528 outputs instead of 65,552.

    Args:
        width: D.
        vocabulary_size: V.
        groups: number of groups of bits, of nearly equal size; the first has the most significant bits.
        pieces: the number of ids, the last ones, that are pieces of text.

    Raises:
        InputError: there are more groups than bits, or the number of codes is not a power of two.
    """

    def __init__(self, width: int, vocabulary_size: int, groups: int, pieces: int = 0) -> None:
        super().__init__()
        bits = bits_of(vocabulary_size - FIRST_CODE - pieces)
        if groups > bits:
            raise InputError(f"model.head_groups is {groups}, but a code has {bits} bits; expected at most {bits}")
        self.sizes = [bits // groups + (group < bits % groups) for group in range(groups)]
        values = [2**size for size in self.sizes]
        self.first_piece = vocabulary_size - pieces
        self.first = nn.Linear(width, FIRST_CODE + values[0] + pieces, bias=False)
        self.mix = nn.ModuleList(nn.Linear(width, width, bias=False) for _ in values[1:])
        self.said = nn.ModuleList(nn.Embedding(count, width) for count in values[:-1])
        self.rest = nn.ModuleList(nn.Linear(width, count, bias=False) for count in values[1:])

    def forward(self, hidden: Tensor) -> Tensor:
        """[..., D] -> [..., V]: log-probabilities of all ids, which serve as logits."""
        rows = hidden.flatten(0, -2).split(ROWS_AT_ONCE)
        return torch.cat([self._distribution(piece) for piece in rows]).unflatten(0, hidden.shape[:-1])

    def _distribution(self, hidden: Tensor) -> Tensor:
        """[N, D] -> [N, V]: each group for all values of the groups before it."""
        known = self.first(hidden).log_softmax(-1)
        values = 2 ** self.sizes[0]
        special, known, pieces = known.tensor_split((FIRST_CODE, FIRST_CODE + values), dim=1)
        given = hidden.new_zeros(1, hidden.shape[-1])
        for mix, table, rest in zip(self.mix, self.said, self.rest, strict=True):
            given = (given[:, None] + table.get_parameter("weight")).flatten(0, 1)  # [P, D]
            new = rest(F.silu(mix(hidden)[:, None] + given)).log_softmax(-1)  # [N, P, values]
            known = (known[:, :, None] + new).flatten(1)
        return torch.cat((special, known, pieces), dim=-1)

    def summed_loss(self, hidden: Tensor, targets: Tensor) -> Tensor:
        """Cross-entropy in nats of targets int64 [N] given [N, D], summed over targets that are not `IGNORED`."""
        is_code = (targets >= FIRST_CODE) & (targets < self.first_piece)
        codes = torch.where(is_code, targets - FIRST_CODE, 0)
        groups, below = [], sum(self.sizes)
        for size in self.sizes:
            below -= size
            groups.append(codes >> below & (2**size - 1))
        of_piece = targets - self.first_piece + FIRST_CODE + 2 ** self.sizes[0]
        first = torch.where(is_code, groups[0] + FIRST_CODE, torch.where(targets < self.first_piece, targets, of_piece))
        total = summed_cross_entropy(hidden, self.first.weight, first)
        given = torch.zeros_like(hidden)
        for index, (mix, table, rest) in enumerate(zip(self.mix, self.said, self.rest, strict=True)):
            given = given + table(groups[index])
            wanted = torch.where(is_code, groups[index + 1], IGNORED)
            total = total + summed_cross_entropy(F.silu(mix(hidden) + given), rest.get_parameter("weight"), wanted)
        return total
