"""Exchange with transformers: the same logits and tokens there, back again, and a text model to begin with."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from slm.checkpoint import load_lm, save_lm
from slm.cli import main
from slm.generation.generate import Sampling, generate
from slm.llama import export_lm, llama_config, model_config
from slm.model.transformer import LanguageModel, ModelConfig
from slm.training.train import train
from slm.training.warm_start import new_rows, warm_start
from slm.vocabulary import BOS, EOS, FIRST_CODE, Vocabulary
from tokenizer.errors import InputError

VOCABULARY = Vocabulary(codebook_size=64, token_rate=50.0, codec_name="some/codec", codec_fingerprint="ab" * 32)
CONFIG = ModelConfig(
    width=24, layers=3, heads=4, kv_heads=2, ffn_width=40, context=48, rope_theta=5000.0, norm_eps=1e-6, dropout=0.1
)
# Both compute in float32, one with its rotary angles in float64: what differs is the order of sums.
TOLERANCE = {"atol": 1e-5, "rtol": 1e-5}


def model_of(**changes: object) -> LanguageModel:
    """Weights large enough for every part of the network to matter."""
    torch.manual_seed(0)
    model = LanguageModel(dataclasses.replace(CONFIG, **changes), VOCABULARY.size).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.1)
    return model


def ids_of(rows: int, length: int, seed: int = 1) -> torch.Tensor:
    return torch.randint(0, VOCABULARY.size, (rows, length), generator=torch.Generator().manual_seed(seed))


@pytest.fixture
def text_llama(tmp_path: Path) -> Path:
    """A random Llama of a text vocabulary, as transformers saves it, in several files."""
    torch.manual_seed(3)
    config = LlamaConfig(
        vocab_size=100,
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=128,
        rms_norm_eps=1e-5,
        bos_token_id=7,
        eos_token_id=[8, 9],
        tie_word_embeddings=True,
    )
    LlamaForCausalLM(config).save_pretrained(tmp_path / "text", max_shard_size="20KB")
    assert (tmp_path / "text" / "model.safetensors.index.json").exists()
    return tmp_path / "text"


@pytest.mark.parametrize("tied", [True, False])
def test_transformers_has_the_same_logits_and_greedy_tokens(tied, tmp_path):
    model = model_of(tied_embeddings=tied)
    export_lm(model, VOCABULARY, tmp_path / "out")
    theirs = LlamaForCausalLM.from_pretrained(tmp_path / "out").eval()
    ids = ids_of(2, CONFIG.context)
    with torch.no_grad():
        torch.testing.assert_close(theirs(ids).logits, model(ids), **TOLERANCE)
    said = 0
    for seed in range(6):
        codes = ids_of(1, 9, seed)[0] % VOCABULARY.codebook_size
        ours = [int(code) for code in generate(model, VOCABULARY, [codes], Sampling(temperature=0), [0], 0, 30)]
        prompt = torch.cat((torch.tensor([BOS]), codes + FIRST_CODE))[None]
        found = theirs.generate(prompt, max_new_tokens=30, do_sample=False)[0, prompt.shape[1] :]
        assert ours == (found[found != EOS] - FIRST_CODE).tolist()
        said += len(ours)
    assert said > 30


@pytest.mark.parametrize("tied", [True, False])
def test_an_exported_folder_loads_back(tied, tmp_path):
    model = model_of(tied_embeddings=tied)
    export_lm(model, VOCABULARY, tmp_path / "out")
    LlamaForCausalLM.from_pretrained(tmp_path / "out").save_pretrained(tmp_path / "again")  # as after tuning it there
    (tmp_path / "again" / "vocabulary.json").write_bytes((tmp_path / "out" / "vocabulary.json").read_bytes())
    for folder in ("out", "again"):
        loaded, vocabulary = load_lm(tmp_path / folder)
        assert vocabulary == VOCABULARY
        assert loaded.config == dataclasses.replace(model.config, dropout=0.0)
        torch.testing.assert_close(loaded.state_dict(), model.state_dict(), rtol=0, atol=0)


def test_the_command_exports_in_half_precision_once(tmp_path, capsys):
    save_lm(model_of(), VOCABULARY, tmp_path / "lm")
    command = ["export-lm", str(tmp_path / "out"), "--lm", str(tmp_path / "lm"), "--dtype", "bfloat16"]
    assert main(command) == 0
    assert "LlamaForCausalLM, bfloat16, 80 ids" in capsys.readouterr().out
    note = (tmp_path / "out" / "README.md").read_text()
    assert "ab" * 32 in note and "--max-model-len 48" in note
    assert LlamaForCausalLM.from_pretrained(tmp_path / "out").dtype == torch.bfloat16
    assert main(command) == 2
    assert "is there already" in capsys.readouterr().err
    assert main(["export-lm", str(tmp_path / "lm"), str(tmp_path / "old"), "--dtype", "bfloat16"]) == 0
    assert main(["export-lm", str(tmp_path / "none")]) == 2
    assert "note: LM OUT_DIR is now OUT_DIR --lm LM" in capsys.readouterr().err
    weights = [(tmp_path / folder / "model.safetensors").read_bytes() for folder in ("out", "old")]
    assert weights[0] == weights[1]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"model_type": "mistral"}, "model_type is 'mistral', expected 'llama'"),
        ({"attention_bias": True}, "attention_bias is True"),
        ({"head_dim": 16}, "head_dim is 16; expected 6"),
        ({"rope_parameters": {"rope_type": "llama3"}}, "rope_type is 'llama3'"),
        ({"rope_scaling": {"rope_type": "linear", "factor": 2.0}}, "rope_type is 'linear'"),
        ({"hidden_size": None}, "expected the config.json of a Llama"),
        ({"num_attention_heads": 7}, "not a multiple of model.heads 7"),
    ],
)
def test_what_our_model_is_not_is_refused(change, message):
    raw = {**llama_config(CONFIG, VOCABULARY.size, "float32"), **change}
    with pytest.raises(InputError, match=message):
        model_config(raw, Path("config.json"))


def test_folders_that_do_not_fit_are_refused(tmp_path, text_llama):
    with pytest.raises(InputError, match=r"not a speech model; to train one from it: .* --init-from"):
        load_lm(text_llama)
    export_lm(model_of(), VOCABULARY, tmp_path / "out")
    dataclasses.replace(VOCABULARY, codebook_size=32).save(tmp_path / "out" / "vocabulary.json")
    with pytest.raises(InputError, match=r"a vocabulary of 80 ids, vocabulary\.json one of 48"):
        load_lm(tmp_path / "out")


def test_a_text_model_begins_a_speech_model(text_llama):
    theirs = LlamaForCausalLM.from_pretrained(text_llama).eval()
    config = ModelConfig(width=32, layers=2, heads=4, kv_heads=2, ffn_width=64, context=16, dropout=0.2)
    model = LanguageModel(config, VOCABULARY.size).eval()
    warm_start(model, VOCABULARY, str(text_llama), seed=5)
    old, new = theirs.get_input_embeddings().weight.detach(), model.embed_tokens.weight.detach()
    assert torch.equal(new[BOS], old[7]) and torch.equal(new[EOS], old[8])
    hidden = torch.randn(1, 12, 32, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():  # the layers are theirs: the same embeddings in, the same states out
        model.embed_tokens.weight[:12] = hidden[0]
        expected = theirs.model(inputs_embeds=hidden).last_hidden_state
        torch.testing.assert_close(
            model._hidden(torch.arange(12)[None], torch.arange(12)[None], None), expected, **TOLERANCE
        )


@pytest.mark.parametrize("options", [{"code_embedding": "bits"}, {"head_groups": 2}])
def test_what_llama_lacks_is_refused_before_anything_is_written(options, tmp_path):
    model = model_of(tied_embeddings=False, **options)
    with pytest.raises(InputError, match=f"{next(iter(options))} .*can be exported"):
        export_lm(model, VOCABULARY, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_table_that_started_from_bits_is_a_table(tmp_path):
    export_lm(model_of(), VOCABULARY, tmp_path / "out")
    wanted, _ = load_lm(str(tmp_path / "out"))
    begun = model_of(code_embedding="table_from_bits")
    warm_start(begun, VOCABULARY, str(tmp_path / "out"), seed=0)
    torch.testing.assert_close(begun.embed_tokens.weight, wanted.embed_tokens.weight, rtol=0, atol=0)


def test_new_rows_lie_among_the_old():
    generator = torch.Generator().manual_seed(0)
    old = torch.randn(500, 6, generator=generator) * torch.tensor([0.1, 1, 2, 3, 4, 5]) + torch.arange(6)
    new = new_rows(old, 4000, {1: 3, 2: None, 4: 10_000}, seed=1)
    assert torch.equal(new, new_rows(old, 4000, {1: 3}, seed=1))
    assert torch.equal(new[1], old[3])
    # The mean of 4,000 draws lies within 5 standard errors, their deviation within 6 %, of what they are drawn from.
    assert ((new.mean(0) - old.mean(0)).abs() < 5 * old.std(0) / 4000**0.5).all()
    assert ((new.std(0) / old.std(0) - 1).abs() < 0.06).all()


def test_training_begins_with_a_text_model_and_resumes(text_llama, token_dataset, tmp_path, lm_settings):
    config = ModelConfig(width=32, layers=2, heads=4, kv_heads=2, ffn_width=64, context=48)
    settings = dataclasses.replace(lm_settings, steps=4, warmup_steps=1)
    run = tmp_path / "run"
    train(config, settings, [token_dataset], run, show_progress=False, init_from=str(text_llama))
    first = json.loads((run / "log.jsonl").read_text().splitlines()[0])
    train(config, settings, [token_dataset], tmp_path / "other", show_progress=False)
    assert first != json.loads((tmp_path / "other" / "log.jsonl").read_text().splitlines()[0])
    longer = dataclasses.replace(settings, steps=6)
    report = train(config, longer, [token_dataset], run, resume=True, show_progress=False, init_from=str(text_llama))
    assert report.step == 6
    with pytest.raises(InputError, match="set there: width: 32, heads: 4"):
        other = dataclasses.replace(config, width=16, heads=2)
        train(other, settings, [token_dataset], tmp_path / "third", show_progress=False, init_from=str(text_llama))


def test_a_speech_model_of_the_same_codec_keeps_its_rows(tmp_path):
    model = model_of()
    save_lm(model, VOCABULARY, tmp_path / "lm")
    again = LanguageModel(model.config, VOCABULARY.size)
    warm_start(again, VOCABULARY, str(tmp_path / "lm"), seed=0)
    torch.testing.assert_close(again.state_dict(), model.state_dict(), rtol=0, atol=0)
    other = dataclasses.replace(VOCABULARY, codec_fingerprint="cd" * 32)
    warm_start(again, other, str(tmp_path / "lm"), seed=0)
    assert not torch.equal(again.embed_tokens.weight, model.embed_tokens.weight)
    assert torch.equal(again.embed_tokens.weight[[BOS, EOS]], model.embed_tokens.weight[[BOS, EOS]])


def test_a_speech_model_of_a_related_codec_keeps_its_rows_when_asked(tmp_path, text_llama):
    model = model_of()
    save_lm(model, VOCABULARY, tmp_path / "lm")
    retrained = dataclasses.replace(VOCABULARY, codec_fingerprint="cd" * 32, codec_name="some/codec-2")
    again = LanguageModel(model.config, retrained.size)
    warm_start(again, retrained, str(tmp_path / "lm"), seed=0, related_codec=True)
    torch.testing.assert_close(again.state_dict(), model.state_dict(), rtol=0, atol=0)
    for change in ({"codebook_size": 128}, {"token_rate": 25.0}):
        unrelated = dataclasses.replace(retrained, **change)
        with pytest.raises(InputError, match="are not related: leave --related-codec out"):
            warm_start(LanguageModel(model.config, unrelated.size), unrelated, str(tmp_path / "lm"), 0, True)
    config = ModelConfig(width=32, layers=2, heads=4, kv_heads=2, ffn_width=64, context=16)
    with pytest.raises(InputError, match="no codes that --related-codec could keep"):
        warm_start(LanguageModel(config, VOCABULARY.size), VOCABULARY, str(text_llama), 0, True)


def test_the_command_keeps_the_codes_of_a_related_codec(tiny_lm_dir, token_dataset, tmp_path, capsys):
    model, vocabulary = load_lm(tiny_lm_dir)
    save_lm(model, dataclasses.replace(vocabulary, codec_fingerprint="ef" * 32), tmp_path / "old")
    shape = dataclasses.asdict(model.config)
    command = ["train-lm", "--config", "tiny", "--data", str(token_dataset), "--row-tokens", "64", "--rows", "4"]
    command += ["--rows-at-once", "4", "--steps", "1", "--warmup-steps", "0", "--validation-rows", "4"]
    command += ["--model", *(f"{key}={str(value).lower()}" for key, value in shape.items())]
    for options, name in ([["--related-codec"], "kept"], [[], "new"]):
        assert main([*command, "--init-from", str(tmp_path / "old"), *options, "--out", str(tmp_path / name)]) == 0
    bits = {
        name: json.loads((tmp_path / name / "log.jsonl").read_text().splitlines()[0])["bits_per_token"]
        for name in ("kept", "new")
    }
    assert bits["kept"] < bits["new"] - 0.5
    assert json.loads((tmp_path / "kept" / "run.json").read_text())["data"]["related_codec"] is True
    capsys.readouterr()
    assert main([*command, "--related-codec", "--out", str(tmp_path / "none")]) == 2
    assert "name the model with --init-from" in capsys.readouterr().err
