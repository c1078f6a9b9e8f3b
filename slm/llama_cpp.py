"""Our model as a GGUF file, which llama.cpp runs. Written by the package `gguf` of llama.cpp.

The weights are those of `slm.llama`, with the query and key rows of each head in the order of llama.cpp: it rotates
neighbours, pairs (2i, 2i + 1), and we the halves, pairs (i, i + K/2) for a head width K.
"""

from __future__ import annotations

from pathlib import Path
from types import ModuleType
from typing import Any

from torch import Tensor

from slm.model.transformer import ModelConfig
from slm.token_strings import UNKNOWN, token_strings
from slm.vocabulary import BOS, EOS, FIRST_CODE, PAD, Vocabulary
from tokenizer.errors import InputError

FILE = "model.gguf"
TYPES = {"float32": "F32", "float16": "F16", "bfloat16": "BF16"}  # as llama.cpp names them
OWN_KEYS = "focalstream."  # before what only this project knows of: the codec of the codes


def gguf_package() -> ModuleType:
    """The package. Raises InputError if it is not installed."""
    try:
        import gguf
    except ImportError:
        raise InputError("--gguf needs the package gguf: pip install 'focalstream[gguf]'") from None
    return gguf


def write_gguf(
    config: ModelConfig,
    weights: dict[str, Tensor],
    vocabulary: Vocabulary,
    sampling: dict[str, float],
    dtype: str,
    path: Path,
) -> None:
    """Write a model and its vocabulary as one file.

    Args:
        config: of a model that `slm.llama.is_exportable`.
        weights: with the names of `slm.llama.llama_names`, on the CPU.
        vocabulary: of the model.
        sampling: `temperature`, `top_k`, `top_p` and `min_p` with which llama.cpp draws unless told otherwise.
        dtype: of the matrices, a key of `TYPES`; vectors become float32.
        path: is replaced.

    Raises:
        InputError: the package gguf is missing.
    """
    gguf = gguf_package()
    writer = gguf.GGUFWriter(path, gguf.MODEL_ARCH_NAMES[gguf.MODEL_ARCH.LLAMA])
    writer.add_name(f"speech language model on codec {vocabulary.codec_name}")
    kind_of_file = "ALL_F32" if dtype == "float32" else f"MOSTLY_{TYPES[dtype]}"
    writer.add_file_type(gguf.LlamaFileType[kind_of_file])
    writer.add_quantization_version(gguf.GGML_QUANT_VERSION)
    writer.add_block_count(config.layers)
    writer.add_context_length(config.context)
    writer.add_embedding_length(config.width)
    writer.add_feed_forward_length(config.ffn_width)
    writer.add_head_count(config.heads)
    writer.add_head_count_kv(config.kv_heads)
    writer.add_key_length(config.head_width)
    writer.add_value_length(config.head_width)
    writer.add_rope_dimension_count(config.head_width)
    writer.add_rope_freq_base(config.rope_theta)
    writer.add_layer_norm_rms_eps(config.norm_eps)
    writer.add_vocab_size(vocabulary.size)
    writer.add_sampling_temp(sampling["temperature"])
    writer.add_sampling_top_k(int(sampling["top_k"]))
    writer.add_sampling_top_p(sampling["top_p"])
    writer.add_sampling_min_p(sampling["min_p"])
    _add_tokens(gguf, writer, vocabulary)
    names = gguf.get_tensor_name_map(gguf.MODEL_ARCH.LLAMA, config.layers)
    for name, tensor in weights.items():
        kind = gguf.GGMLQuantizationType[TYPES[dtype] if tensor.dim() > 1 else "F32"]
        values = in_pairs(tensor, name, config).float().contiguous().numpy()
        writer.add_tensor(names.get_name(name, (".weight",)), gguf.quantize(values, kind), raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def in_pairs(weight: Tensor, name: str, config: ModelConfig) -> Tensor:
    """The rows of a query or key matrix [heads * K, D] so that rotated ones are neighbours; others as they are."""
    if not name.endswith(("q_proj.weight", "k_proj.weight")):
        return weight
    halves = weight.unflatten(0, (-1, 2, config.head_width // 2))
    return halves.transpose(1, 2).flatten(0, 2)


def _add_tokens(gguf: ModuleType, writer: Any, vocabulary: Vocabulary) -> None:
    """The strings of all ids; user-defined ones are never divided.

    In the kind "t5" (UGM) what is none of these strings becomes <unk>; in the kind "llama" it is an error.
    """
    strings = token_strings(vocabulary)
    kinds = [gguf.TokenType.CONTROL] * FIRST_CODE + [gguf.TokenType.USER_DEFINED] * (len(strings) - FIRST_CODE)
    kinds[UNKNOWN] = gguf.TokenType.UNKNOWN
    writer.add_tokenizer_model("t5")
    writer.add_tokenizer_pre("default")
    writer.add_token_list(strings)
    writer.add_token_scores([0.0] * len(strings))
    writer.add_token_types(kinds)
    writer.add_bos_token_id(BOS)
    writer.add_eos_token_id(EOS)
    writer.add_unk_token_id(UNKNOWN)
    writer.add_pad_token_id(PAD)
    writer.add_add_bos_token(True)
    writer.add_add_eos_token(False)
    writer.add_add_space_prefix(False)
    writer.add_string(f"{OWN_KEYS}codec_name", vocabulary.codec_name)
    writer.add_string(f"{OWN_KEYS}codec_fingerprint", vocabulary.codec_fingerprint)
    writer.add_float32(f"{OWN_KEYS}token_rate", vocabulary.token_rate)
