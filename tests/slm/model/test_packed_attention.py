"""Attention over packed rows: every form sees the same, forward and backward."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from torch import Tensor

import slm.model.packed_attention as packed
from slm.documents.tasks import NO_DOCUMENT
from slm.model.cross_entropy import IGNORED, rows_at_once
from slm.model.packed_attention import attend, block_mask, dense_mask, spans_of, visible_tokens
from slm.model.transformer import LanguageModel, ModelConfig

CONTEXT = 12
CONFIG = ModelConfig(width=32, layers=2, heads=4, kv_heads=2, ffn_width=48, context=CONTEXT)
# Documents shorter and longer than the context, of one token, and ends of rows that belong to none.
DOCUMENTS = torch.tensor([[3] * 7 + [4] * 40 + [5] * 12 + [6] * 5, [7] * 1 + [8] * 13 + [9] * 30 + [NO_DOCUMENT] * 20])
TOKENS = torch.zeros_like(DOCUMENTS)


def qkv(dtype: torch.dtype = torch.float64) -> list[Tensor]:
    generator = torch.Generator().manual_seed(0)
    shapes = [(2, heads, 64, 16) for heads in (4, 2, 2)]
    return [torch.randn(shape, generator=generator, dtype=dtype).requires_grad_() for shape in shapes]


@pytest.mark.parametrize("documents", [DOCUMENTS, None])
def test_by_document_has_the_output_and_the_gradients_of_the_mask(documents):
    results = []
    for visible in (
        dense_mask(documents, TOKENS, CONTEXT, torch.float64),
        spans_of(documents, TOKENS, CONTEXT),
    ):
        inputs = qkv()
        out = attend(*inputs, visible)
        (out * torch.linspace(-1, 1, 16, dtype=torch.float64)).pow(2).sum().backward()
        results.append([out, *(x.grad for x in inputs)])
    for dense, other in zip(*results, strict=True):
        torch.testing.assert_close(other, dense, rtol=1e-12, atol=1e-12)


@pytest.mark.filterwarnings("ignore:flex_attention called without torch.compile")
@pytest.mark.parametrize("documents", [DOCUMENTS, None])
def test_flex_attention_sees_what_the_mask_shows(documents):
    """Uncompiled, on the CPU, where PyTorch has no backward pass of it."""
    inputs = [x.detach() for x in qkv(torch.float32)]
    expected = attend(*inputs, dense_mask(documents, TOKENS, CONTEXT, torch.float32))
    torch.testing.assert_close(attend(*inputs, block_mask(documents, TOKENS, CONTEXT)), expected, rtol=1e-5, atol=1e-5)


def test_spans_cover_every_token_once():
    spans, context = spans_of(DOCUMENTS, TOKENS, CONTEXT)
    assert spans[:4] == ((0, 0, 7), (0, 7, 47), (0, 47, 59), (0, 59, 64)) and spans[-1] == (1, 44, 64)
    assert sum(last - first for _, first, last in spans) == DOCUMENTS.numel() and context == CONTEXT


def test_the_form_follows_from_length_and_documents(monkeypatch):
    kind = torch.float32
    assert visible_tokens(None, TOKENS[:, :CONTEXT], CONTEXT, kind) is None
    assert isinstance(visible_tokens(None, TOKENS, CONTEXT, kind), Tensor)
    assert isinstance(visible_tokens(DOCUMENTS, TOKENS, CONTEXT, kind), Tensor)
    monkeypatch.setattr(packed, "LONGEST_DENSE", 63)
    assert isinstance(visible_tokens(DOCUMENTS, TOKENS, CONTEXT, kind), packed.Spans)


@pytest.mark.parametrize("recompute", [False, True])
def test_a_model_learns_the_same_in_long_rows(monkeypatch, recompute):
    torch.manual_seed(0)
    model = LanguageModel(dataclasses.replace(CONFIG, dropout=0.0), 40).double()
    model.recompute = recompute
    tokens = torch.randint(16, 40, DOCUMENTS.shape, generator=torch.Generator().manual_seed(1))
    targets = torch.where(DOCUMENTS == NO_DOCUMENT, IGNORED, tokens.roll(-1, 1))
    gradients = []
    for longest in (1024, 0):
        monkeypatch.setattr(packed, "LONGEST_DENSE", longest)
        model.zero_grad()
        model(tokens, DOCUMENTS, targets=targets).backward()
        gradients.append([parameter.grad.clone() for parameter in model.parameters()])
    for dense, other in zip(*gradients, strict=True):
        torch.testing.assert_close(other, dense, rtol=1e-6, atol=1e-6)  # the loss sums in float32


def test_the_loss_takes_a_few_large_pieces_on_a_gpu():
    assert rows_at_once("cpu", 4112) == 512
    assert rows_at_once("cuda", 65_552) == 4095 and rows_at_once("cuda", 4112) > 60_000


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device on this machine")
@pytest.mark.parametrize("documents", [DOCUMENTS, None])
def test_flex_attention_on_a_gpu_has_the_gradients_of_the_mask(documents):
    results = []
    place = None if documents is None else documents.cuda()
    for visible in (
        dense_mask(place, TOKENS.cuda(), CONTEXT, torch.float32),
        visible_tokens(place, TOKENS.cuda(), CONTEXT, torch.float32),
    ):
        inputs = [x.detach().cuda().requires_grad_() for x in qkv(torch.float32)]
        out = attend(*inputs, visible)
        out.pow(2).sum().backward()
        results.append([out, *(x.grad for x in inputs)])
    for dense, other in zip(*results, strict=True):
        torch.testing.assert_close(other, dense, rtol=2e-3, atol=2e-3)
