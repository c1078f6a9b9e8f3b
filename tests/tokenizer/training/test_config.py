"""A training's YAML: what ships parses, and every mistake is named with its place."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from tokenizer import InputError
from tokenizer.config import CodecConfig
from tokenizer.training.recipe import read_config
from tokenizer.training.stages import STAGES
from tokenizer.training.train import check_trainable

CONFIGS = Path(__file__).parents[3] / "configs" / "codec"
CAUSAL = {"causal": True}
MODEL = {
    "encoder_config": CAUSAL,
    "compressor_config": CAUSAL,
    "decompressor_config": CAUSAL,
    "decoder_config": CAUSAL,
}
PLAIN = {"model": MODEL, "stages": {"tune": {"steps": 5}}}


@pytest.mark.parametrize("path", sorted(CONFIGS.glob("*.yaml")), ids=lambda path: path.stem)
def test_shipped_configurations_parse(path: Path) -> None:
    config = read_config(path)
    check_trainable(config)
    assert config.model.causal and list(config.stages)
    assert CodecConfig.from_dict(config.model.to_dict()) == config.model


@pytest.mark.parametrize("name", ["2k", "4k", "65k"])
def test_published_configurations_have_the_published_stages(name: str) -> None:
    config = read_config(CONFIGS / f"{name}.yaml")
    assert list(config.stages) == ["decoder", "posemb", "encoder", "quantizer", "joint"]
    assert config.model.quantizer.codebook_size == {"2k": 2048, "4k": 4096, "65k": 65536}[name]
    assert config.model.sample_rate_out == 24000
    assert config.stages["decoder"].losses == {"adversarial": 1.0, "feature_matching": 1.0, "mel": 45.0}


def test_losses_are_the_stages_own_unless_given(tmp_path: Path) -> None:
    path = tmp_path / "c.yaml"
    path.write_text(yaml.safe_dump(PLAIN | {"stages": {"tune": {"steps": 5, "losses": {"mel": 0, "loudness": 2}}}}))
    assert read_config(path).stages["tune"].losses == {"adversarial": 1.0, "feature_matching": 1.0, "loudness": 2.0}


def test_what_is_no_yaml_is_named(tmp_path: Path) -> None:
    path = tmp_path / "c.yaml"
    path.write_text("a: [b")
    with pytest.raises(InputError, match="not a YAML file"):
        read_config(path)


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"train": {}}, "expected the sections 'model', 'stages'"),
        ({"stages": {}}, "stages: expected a mapping"),
        ({"stages": {"polish": {"steps": 5}}}, "stages: 'polish' is unknown; the stages are teacher, decoder"),
        ({"stages": {"tune": 5}}, "stages.tune: expected a mapping"),
        ({"stages": {"tune": {"steps": 5, "pace": 1}}}, "stages.tune: unknown key 'pace'"),
        ({"stages": {"tune": {}}}, "stages.tune: steps 0 and epochs 0.0: expected one of them"),
        ({"stages": {"tune": {"steps": 5, "losses": {"joy": 1}}}}, "stages.tune.losses: 'joy' is unknown"),
        ({"stages": {"tune": {"steps": 5, "losses": {"mel": -1}}}}, "stages.tune.losses: mel is -1"),
        ({"stages": {"tune": {"steps": 5, "schedule": "steep"}}}, "stages.tune: schedule 'steep' is unknown"),
        ({"stages": {"tune": {"steps": 5, "optimizer": "lbfgs"}}}, "stages.tune: optimizer 'lbfgs' is unknown"),
        ({"stages": {"tune": {"steps": 5, "warmup_steps": 5}}}, "stages.tune: warmup_steps 5 must be less"),
        ({"stages": {"tune": {"steps": 5, "losses": {"mel": 0}}}}, "stages.tune.losses: expected a weight above 0"),
        ({"stages": {"tune": {"steps": 5, "losses": {"mel": float("nan")}}}}, "stages.tune.losses: mel is nan"),
        ({"stages": {"tune": {"steps": 5, "learning_rate": float("nan")}}}, "learning_rate is nan, expected a finite"),
        ({"stages": {"tune": {"steps": 5, "longest_seconds": float("inf")}}}, "longest_seconds is inf"),
        ({"stages": {"tune": {"steps": 5, "learning_rate": 1e-7}}}, "must not exceed learning_rate 1e-07"),
        ({"teacher": {"source": "a/b", "depth": 3}}, "teacher: unknown key 'depth'"),
    ],
)
def test_mistakes_are_named(changed: dict, message: str, tmp_path: Path) -> None:
    path = tmp_path / "c.yaml"
    path.write_text(yaml.safe_dump(PLAIN | changed))
    with pytest.raises(InputError) as error:
        read_config(path)
    assert message in str(error.value) and str(path) in str(error.value)


def test_every_stage_has_losses() -> None:
    for name, stage in STAGES.items():
        assert any(stage.losses.values()), name


@pytest.mark.parametrize(
    ("freeze", "message"),
    [
        (["decompressor.refinr"], "has no part 'decompressor.refinr'"),
        (["decoder"], "decoder is all that the stage trains"),
    ],
)
def test_what_cannot_be_frozen_is_refused(freeze: list[str], message: str, tmp_path: Path) -> None:
    path = tmp_path / "c.yaml"
    path.write_text(yaml.safe_dump(PLAIN | {"stages": {"tune": {"steps": 5, "freeze": freeze}}}))
    with pytest.raises(InputError, match=message):
        check_trainable(read_config(path))
