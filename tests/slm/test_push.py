"""What is uploaded to the Hugging Face Hub, with a stand-in for it, and what --dry-run says without a network."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import huggingface_hub
import pytest

from slm.cli import main
from slm.publishing import push_run
from slm.training.train import TrainReport
from tokenizer.errors import InputError
from tokenizer.hub import push


@pytest.fixture
def hub(monkeypatch):
    """Notes what it is given."""
    told: dict[str, Any] = {}

    class Api:
        def create_repo(self, repo: str, **options: Any) -> SimpleNamespace:
            told["repo"] = (repo, options)
            return SimpleNamespace(repo_id=f"me/{repo}")

        def create_commit(self, repo: str, operations: list[Any], **options: Any) -> None:
            told["commit"] = (repo, {one.path_in_repo: one.path_or_fileobj for one in operations}, options)

    monkeypatch.setattr(huggingface_hub, "HfApi", Api)
    return told


@pytest.fixture
def no_hub(monkeypatch):
    def refuse() -> None:
        raise ConnectionError("no network here\nmore")

    monkeypatch.setattr(huggingface_hub, "HfApi", refuse)


def test_a_folder_is_one_commit_with_its_card(hub, tmp_path):
    (tmp_path / "README.md").write_text("# Tokens\n")
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "a.parquet").write_bytes(b"12345")
    (tmp_path / ".lock").touch()
    said = push(tmp_path, "tokens", ["speech"], "dataset", private=True)
    assert "2 files" in said
    assert hub["repo"] == ("tokens", {"repo_type": "dataset", "private": True, "exist_ok": True})
    repo, files, options = hub["commit"]
    assert repo == "me/tokens" and options["repo_type"] == "dataset"
    assert set(files) == {"README.md", "data/a.parquet"} and files["data/a.parquet"] == str(tmp_path / "data/a.parquet")
    assert files["README.md"] == b'---\ntags: ["focalstream", "speech"]\n---\n\n# Tokens\n'
    (tmp_path / "README.md").write_text("---\nlicense: mit\n---\n")
    push(tmp_path, "tokens", ["speech"])
    assert hub["commit"][1]["README.md"] == b"---\nlicense: mit\n---\n"


def test_the_head_of_a_card(hub, tmp_path):
    (tmp_path / "a.bin").touch()
    card = tmp_path / "README.md"
    card.write_text('# Model\nload("THIS_REPOSITORY")\n')
    said = push(tmp_path, "model", [], library="transformers", license_id="mit")
    head = '---\nlicense: mit\nlibrary_name: transformers\ntags: ["focalstream"]\n---\n'
    assert hub["commit"][1]["README.md"].decode() == f'{head}\n# Model\nload("me/model")\n' and "license" not in said
    card.write_text("---\nlicense:\n- mit\n- other\ntags: [a]\n---\n# B\n")
    push(tmp_path, "model", [], license_id="cc-by-4.0")
    assert hub["commit"][1]["README.md"].decode() == "---\nlicense: cc-by-4.0\ntags: [a]\n---\n# B\n"
    card.write_text("license: mit\n")
    assert "README.md has no license" in push(tmp_path, "model", [], dry_run=True)


def test_a_codec_gets_a_card_and_a_dry_run_writes_nothing_and_needs_no_network(no_hub, tiny_codec, tmp_path, capsys):
    folder = tmp_path / "codec"
    tiny_codec.save_pretrained(folder)
    names = sorted(folder.iterdir())
    assert main(["push", str(folder), "me/codec", "--dry-run"]) == 0
    said = capsys.readouterr().out
    size = (folder / "model.safetensors").stat().st_size
    assert f"{size:,}  model.safetensors" in said and "would upload to model me/codec: 3 files" in said
    assert main(["push", str(folder), "me/codec"]) == 2
    assert "the Hugging Face Hub did not take it (no network here); log in" in capsys.readouterr().err
    assert sorted(folder.iterdir()) == names


def test_what_push_writes_on_a_card_that_is_missing(hub, tiny_codec, token_dataset, tmp_path, capsys, monkeypatch):
    tiny_codec.save_pretrained(tmp_path / "codec")
    assert main(["push", str(tmp_path / "codec"), "codec"]) == 0
    assert tiny_codec.fingerprint in hub["commit"][1]["README.md"].decode()
    assert main(["push", str(token_dataset), "tokens"]) == 2
    assert "is a tokenized dataset; add --dataset" in capsys.readouterr().err
    assert main(["push", str(token_dataset), "tokens", "--dataset"]) == 0
    _, files, options = hub["commit"]
    assert options["repo_type"] == "dataset" and {"dataset.json", "shards/codes.000000.tar"} < set(files)
    card = files["README.md"].decode()
    assert (
        "20 cuts" in card
        and "Written by `focalstream tokenize`" in card
        and tiny_codec.fingerprint in card
        and card.startswith("---\nsize_categories:")
    )
    assert not (token_dataset / "README.md").exists()
    monkeypatch.setattr(
        huggingface_hub, "snapshot_download", lambda repo, repo_type: {"me/tokens": token_dataset}[repo]
    )
    names: dict[str, Any] = {}
    exec(card.partition("```python\n")[2].partition("```")[0], names)  # as a stranger would run it
    assert names["wave"].shape[1] == names["dataset"].lengths[0] * tiny_codec.samples_per_token


def test_a_run_is_exported_with_its_settings_in_the_card(hub, tiny_lm_dir, monkeypatch):
    report = TrainReport(24, 24, 5.5, 275.0, 30_000, 30_000, 1000, 2.0, "end", 0, True)
    seen = {}
    real = huggingface_hub.CommitOperationAdd
    monkeypatch.setattr(  # the folder is gone after the upload
        huggingface_hub, "CommitOperationAdd", lambda name, source: seen.update({name: source}) or real(name, source)
    )
    push_run(tiny_lm_dir, report, "me/lm", private=False, dry_run=False)
    card = seen["README.md"].decode()
    assert {"model.safetensors", "config.json", "vocabulary.json", "generation_config.json"} < set(seen)
    assert "best held-out bits per token 5.500" in card and '"learning_rate": 0.01' in card
    assert "LlamaForCausalLM" in card and card.startswith("---\nlibrary_name: transformers\ntags:")


def test_what_cannot_be_uploaded_is_refused(tmp_path, capsys):
    (tmp_path / "model.safetensors").touch()
    with pytest.raises(InputError, match=r"has no README\.md, the card that the Hub shows"):
        push(tmp_path, "me/model", [])
    (tmp_path / "model.safetensors").rename(tmp_path / "README.md")
    with pytest.raises(InputError, match=r"has nothing beside README\.md"):
        push(tmp_path, "me/model", [])
    for command, message in [
        (f"export-lm {tmp_path / 'out'} --lm small --push a/b/c", "a/b/c: is no repository"),
        (f"export-lm {tmp_path / 'out'} --lm small --dry-run", "--dry-run is about an upload"),
        (f"export-lm {tmp_path / 'out'} --lm small --push me/lm --license GPL", "--license GPL: is no license"),
    ]:
        assert main(command.split()) == 2
        assert message in capsys.readouterr().err and not (tmp_path / "out").exists()
