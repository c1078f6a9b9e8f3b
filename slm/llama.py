"""Our model in the words of `transformers.LlamaForCausalLM`: its config.json and the names of its weights.

The two are one architecture as long as no more than `context` tokens are seen: Llama has no sliding window, so
`max_position_embeddings` is the context.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from torch import Tensor

from slm.model.transformer import ModelConfig
from slm.vocabulary import BOS, EOS, PAD
from tokenizer.errors import InputError

MODEL_TYPE = "llama"
PREFIX = "model."  # of every weight but the head's
HEAD = "lm_head.weight"


def is_llama(raw: Any) -> bool:
    """Whether a parsed config.json is of transformers' layout, of Llama or not."""
    return isinstance(raw, dict) and "model_type" in raw


def llama_config(config: ModelConfig, vocabulary_size: int, dtype: str) -> dict[str, Any]:
    """config.json as transformers 4 (`rope_theta`, `torch_dtype`) and 5 (`rope_parameters`, `dtype`) read it.

    Raises:
        InputError: a model with options that Llama does not have.
    """
    if config.code_embedding == "bits" or config.head_groups > 1:
        raise InputError(
            f"the model has code_embedding {config.code_embedding!r} and head_groups {config.head_groups}, which no "
            "Llama has; only models with a table of codes and one head can be exported"
        )
    return {
        "architectures": ["LlamaForCausalLM"],
        "model_type": MODEL_TYPE,
        "vocab_size": vocabulary_size,
        "hidden_size": config.width,
        "intermediate_size": config.ffn_width,
        "num_hidden_layers": config.layers,
        "num_attention_heads": config.heads,
        "num_key_value_heads": config.kv_heads,
        "head_dim": config.head_width,
        "hidden_act": "silu",
        "max_position_embeddings": config.context,
        "rms_norm_eps": config.norm_eps,
        "rope_theta": config.rope_theta,
        "rope_parameters": {"rope_type": "default", "rope_theta": config.rope_theta},
        "tie_word_embeddings": config.tied_embeddings,
        "attention_bias": False,
        "mlp_bias": False,
        "bos_token_id": BOS,
        "eos_token_id": EOS,
        "pad_token_id": PAD,
        "torch_dtype": dtype,
        "dtype": dtype,
    }


def model_config(raw: dict[str, Any], path: Path) -> ModelConfig:
    """The shape that a transformers config.json describes.

    Raises:
        InputError: another architecture than Llama, or a part of it that ours does not have.
    """
    if raw.get("model_type") != MODEL_TYPE:
        raise InputError(
            f"{path}: model_type is {raw.get('model_type')!r}, expected '{MODEL_TYPE}'; convert the model to "
            "transformers' LlamaForCausalLM, or choose one that is"
        )
    rope = raw.get("rope_parameters") or {}
    kind = (raw.get("rope_scaling") or rope).get("rope_type", "default")
    try:
        width, heads = int(raw["hidden_size"]), int(raw["num_attention_heads"])
        config = ModelConfig(
            width=width,
            layers=int(raw["num_hidden_layers"]),
            heads=heads,
            kv_heads=int(raw.get("num_key_value_heads") or heads),
            ffn_width=int(raw["intermediate_size"]),
            context=int(raw.get("max_position_embeddings", 2048)),
            rope_theta=float(rope.get("rope_theta", raw.get("rope_theta", 10_000.0))),
            norm_eps=float(raw.get("rms_norm_eps", 1e-6)),
            tied_embeddings=bool(raw.get("tie_word_embeddings", False)),
        )
    except KeyError as error:
        raise InputError(f"{path}: lacks {error}; expected the config.json of a Llama model") from None
    except (TypeError, ValueError) as error:
        raise InputError(f"{path}: {error}; expected the config.json of a Llama model") from None
    for name, found, needed in (
        ("hidden_act", raw.get("hidden_act", "silu"), "silu"),
        ("head_dim", raw.get("head_dim") or config.head_width, config.head_width),
        ("attention_bias", bool(raw.get("attention_bias")), False),
        ("mlp_bias", bool(raw.get("mlp_bias")), False),
        ("rope_type", kind, "default"),
        ("quantization_config", raw.get("quantization_config"), None),
    ):
        if found != needed:
            raise InputError(f"{path}: {name} is {found!r}; expected {needed!r}, as our model has no other")
    return config


def llama_names(weights: dict[str, Tensor]) -> dict[str, Tensor]:
    """Our weights under transformers' names."""
    return {name if name == HEAD else PREFIX + name: tensor for name, tensor in weights.items()}


def own_names(weights: dict[str, Tensor], tied: bool) -> dict[str, Tensor]:
    """Weights of transformers under our names, without the copy of a tied head and the rotary tables of old files."""
    return {
        name.removeprefix(PREFIX): tensor
        for name, tensor in weights.items()
        if not name.endswith("rotary_emb.inv_freq") and not (tied and name == HEAD)
    }
