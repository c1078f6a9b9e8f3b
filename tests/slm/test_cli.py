"""The command line: an option that takes a list adds to it each time it is given, and nothing is dropped silently."""

import importlib

import pytest

from slm.cli import COMMANDS, main

REQUIRED = {
    "train-lm": ["--config", "tiny", "--out", "run"],
    "eval-lm": [],
    "train-text": ["--out", "text.model"],
    "train-codec": ["--config", "small.yaml", "--out", "run"],
}


@pytest.mark.parametrize(
    ("command", "option", "name"),
    [
        ("train-lm", "--data", "data"),
        ("train-lm", "--held-out", "held_out"),
        ("train-lm", "--model", "model"),
        ("eval-lm", "--data", "data"),
        ("eval-lm", "--baseline-data", "baseline_data"),
        ("eval-lm", "--benchmarks", "benchmarks"),
        ("train-text", "--data", "data"),
        ("train-codec", "--data", "data"),
        ("train-codec", "--train", "data"),
        ("train-codec", "--held-out", "held_out"),
        ("train-codec", "--model", "model"),
        ("train-codec", "--losses", "losses"),
        ("train-codec", "--freeze", "freeze"),
    ],
)
def test_a_list_may_be_given_in_parts(command, option, name, monkeypatch):
    parsed = []
    module = importlib.import_module(COMMANDS[command][0])
    monkeypatch.setattr(module, "run", lambda args: parsed.append(getattr(args, name)) or 0)
    data = [] if name == "data" else ["--data", "other"]
    for _ in range(2):  # twice: defaults are not written into
        assert main([command, *REQUIRED[command], *data, option, "a", "b", option, "c"]) == 0
    assert [[str(value) for value in values] for values in parsed] == [["a", "b", "c"]] * 2


def test_old_and_new_spelling_of_a_list_add_up(monkeypatch, capsys):
    parsed = []
    monkeypatch.setattr("pipelines.commands.train_codec.run", lambda args: parsed.append(args.data) or 0)
    assert main(["train-codec", *REQUIRED["train-codec"], "--data", "a", "--train", "b"]) == 0
    assert parsed == [["a", "b"]]
    assert capsys.readouterr().err == "note: --train is now --data; the next release drops --train\n"
