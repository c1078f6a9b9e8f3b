"""Saving and loading a model, and everything that can be wrong with its files."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from slm.checkpoint import load_lm, read_best, save_lm
from slm.model.transformer import LanguageModel, ModelConfig
from slm.vocabulary import BOS, EOS, FIRST_CODE, Vocabulary
from tokenizer.errors import InputError

VOCABULARY = Vocabulary(codebook_size=32, token_rate=50.0, codec_name="some/codec", codec_fingerprint="ab" * 32)


def model_of(tied: bool = True) -> LanguageModel:
    torch.manual_seed(0)
    config = ModelConfig(
        width=16, layers=2, heads=2, kv_heads=1, ffn_width=24, context=20, tied_embeddings=tied, dropout=0.2
    )
    return LanguageModel(config, VOCABULARY.size)


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    save_lm(model_of(), VOCABULARY, tmp_path / "lm")
    return tmp_path / "lm"


@pytest.mark.parametrize("tied", [True, False])
def test_a_saved_model_comes_back_equal(tied, tmp_path):
    model = model_of(tied)
    save_lm(model, VOCABULARY, tmp_path / "lm")
    loaded, vocabulary = load_lm(tmp_path / "lm")
    assert vocabulary == VOCABULARY and loaded.config == model.config
    assert not loaded.training and not any(p.requires_grad for p in loaded.parameters())
    torch.testing.assert_close(loaded.state_dict(), model.state_dict(), rtol=0, atol=0)
    assert (loaded.lm_head.weight.data_ptr() == loaded.embed_tokens.weight.data_ptr()) == tied
    assert ("lm_head.weight" in load_file(tmp_path / "lm" / "model.safetensors")) == (not tied)


def test_half_precision_on_disk_is_float32_in_memory(tmp_path, saved):
    save_lm(model_of(), VOCABULARY, tmp_path / "half", torch.float16)
    loaded, _ = load_lm(tmp_path / "half")
    assert {p.dtype for p in loaded.parameters()} == {torch.float32}
    sizes = [(folder / "model.safetensors").stat().st_size for folder in (saved, tmp_path / "half")]
    assert sizes[1] < 0.7 * sizes[0]
    expected = {name: tensor.half().float() for name, tensor in model_of().state_dict().items()}
    torch.testing.assert_close(loaded.state_dict(), expected, rtol=0, atol=0)


def rewrite_config(folder: Path, **changes: object) -> None:
    raw = json.loads((folder / "config.json").read_text())
    raw["model"].update(changes)
    (folder / "config.json").write_text(json.dumps(raw))


def change_weights(folder: Path, change) -> None:
    weights = load_file(folder / "model.safetensors")
    change(weights)
    save_file(weights, folder / "model.safetensors")


def put_nan(weights: dict[str, torch.Tensor]) -> None:
    weights["layers.1.mlp.up_proj.weight"][3, 4] = float("nan")


def truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-7])


DAMAGE = {
    "no weights": (lambda f: (f / "model.safetensors").unlink(), "no model.safetensors"),
    "no vocabulary": (lambda f: (f / "vocabulary.json").unlink(), "cannot be read as a vocabulary"),
    "truncated weights": (lambda f: truncate(f / "model.safetensors"), "model.safetensors: not a readable file"),
    "truncated config": (lambda f: truncate(f / "config.json"), "config.json: not a JSON file"),
    "truncated vocabulary": (lambda f: truncate(f / "vocabulary.json"), "cannot be read as a vocabulary"),
    "other config": (lambda f: (f / "config.json").write_text("[]"), "is not a language model's config.json"),
    "other vocabulary": (lambda f: (f / "vocabulary.json").write_text('{"a": 1}'), "is not a vocabulary"),
    "unknown key": (lambda f: rewrite_config(f, depth=2), "unknown key 'depth'"),
    "endless layers": (lambda f: rewrite_config(f, layers=10**12), "config.json says 1000000000000 layers"),
    "vast width": (lambda f: rewrite_config(f, width=2**24), "they do not belong together"),
    "fewer layers": (lambda f: rewrite_config(f, layers=1), "has an unknown layers.1"),
    "missing weight": (lambda f: change_weights(f, lambda w: w.pop("norm.weight")), "lacks norm.weight"),
    "NaN": (lambda f: change_weights(f, put_nan), "values that are not finite"),
}


@pytest.mark.parametrize("kind", DAMAGE)
def test_damaged_and_hostile_files_are_refused(kind, saved):
    damage, message = DAMAGE[kind]
    damage(saved)
    with pytest.raises(InputError, match=message):
        load_lm(saved)


def test_a_pickle_in_disguise_is_not_run(saved, tmp_path):
    class Bomb:
        def __reduce__(self):
            return Path.touch, (tmp_path / "ran",)

    torch.save({"embed_tokens.weight": Bomb()}, saved / "model.safetensors")
    with pytest.raises(InputError, match="not a readable file"):
        load_lm(saved)
    assert not (tmp_path / "ran").exists()


def test_unknown_names_say_what_is_known(tmp_path):
    with pytest.raises(InputError, match="language model 'nosuch': no such model; expected a folder"):
        load_lm("nosuch")
    with pytest.raises(InputError, match="no such model"):
        load_lm(tmp_path)


def test_a_run_stands_for_its_best_checkpoint_only_within_itself(saved, tmp_path):
    run = tmp_path / "run"
    run.mkdir()
    shutil.copytree(saved, run / "step-000005")
    best = {"checkpoint": "step-000005", "step": 5, "bits_per_token": 9.5}
    (run / "best.json").write_text(json.dumps(best))
    assert read_best(run) == best
    load_lm(run)
    for hostile in ("../lm", "step-000006", 5):
        (run / "best.json").write_text(json.dumps({**best, "checkpoint": hostile}))
        with pytest.raises(InputError, match="does not name a checkpoint"):
            load_lm(run)


def test_ids_and_codes_convert_both_ways():
    codes = torch.arange(32)
    ids = VOCABULARY.ids(codes)
    assert torch.equal(VOCABULARY.codes(ids), codes)
    assert int(ids.min()) == FIRST_CODE and int(ids.max()) == VOCABULARY.size - 1
    assert VOCABULARY.codes(torch.tensor([BOS, EOS, FIRST_CODE - 1])).tolist() == [-1, -1, -1]


def test_a_vocabulary_refuses_codes_of_another_codec():
    VOCABULARY.check("this", "ab" * 32, 32)
    for fingerprint, size in (("cd" * 32, 32), ("ab" * 32, 64)):
        with pytest.raises(InputError, match=r"that has codes of another codec .* use codec 'some/codec'"):
            VOCABULARY.check("that", fingerprint, size)


def test_loading_a_model_for_generation_imports_no_training(saved: Path) -> None:
    code = (
        f"import sys, slm.generation.spoken_text; from slm.checkpoint import load_lm; load_lm({str(saved)!r})\n"
        "training = {'slm.training', 'torch.distributed.fsdp', 'torch.distributed.tensor'} & set(sys.modules)\n"
        "sys.exit(f'imported {training}' if training else 0)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=Path(__file__).parents[2])
    assert done.returncode == 0, done.stderr


def test_a_context_that_no_memory_holds_is_refused() -> None:
    with pytest.raises(InputError, match=r"model\.context is 1000000000000; expected 131072 tokens at most"):
        ModelConfig(width=32, layers=2, heads=4, kv_heads=2, ffn_width=48, context=10**12)
