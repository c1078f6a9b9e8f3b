"""Our model as `transformers.LlamaForCausalLM`: its config.json, the names of its weights, and a folder of them.

Both have the same architecture up to `context` tokens. Llama has no sliding window, so `max_position_embeddings` is the
context.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save
from torch import Tensor

from slm.llama_cpp import FILE as GGUF_FILE
from slm.llama_cpp import gguf_package, write_gguf
from slm.model.transformer import LanguageModel, ModelConfig
from slm.token_strings import tokenizer_files
from slm.vocabulary import BOS, EOS, FIRST_CODE, INTERLEAVED, PAD, SPEECH, TEXT, Vocabulary
from tokenizer.errors import InputError
from tokenizer.files import check_new_folder, write_atomically

MODEL_TYPE = "llama"
PREFIX = "model."  # of all weights except the head
HEAD = "lm_head.weight"
SAMPLING = {"temperature": 1.0, "top_k": 0, "top_p": 0.95, "min_p": 0.0}  # unless a user of the folder says otherwise
DTYPES = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}

README = """# A speech language model as transformers.LlamaForCausalLM

Its tokens are those of codec `{codec}` (fingerprint `{fingerprint}`), {rate:g} a second of speech.

| id | meaning |
|---|---|
| {pad}, {bos}, {eos} | padding, begin, end |
| {text}, {speech} | in models with text: start of a part of text, of speech |
| {interleaved} | in models with text, after the begin: such parts alternate |
| {unused} to {last_special} | not used |
| {first} to {last} | code 0 to {last_code} of the codec |{text_row}

A prompt is the id {bos}, then the codes of some speech, each plus {first}. Only codes and the end should be generated:
`generation_config.json` suppresses the other ids.{text_note} The model was trained with a context of {context} tokens
(`max_position_embeddings`). Beyond it focalstream uses a sliding window, which this layout does not have.

Below, THIS_FOLDER is a copy of it on disk (of the Hugging Face Hub's: `hf download THIS_REPOSITORY --local-dir
THIS_FOLDER`). The codec, from speech to codes and back, is part of the Python package
focalstream, which reads the folder directly: `focalstream continue PROMPT.wav OUT.wav --lm THIS_FOLDER`. transformers:

```python
import torch
from tokenizer import Codec  # of the package focalstream
from tokenizer.audio import read_audio, write_audio
from transformers import LlamaForCausalLM

codec = Codec.from_pretrained("{codec}")
wave = read_audio("PROMPT.wav", codec.sample_rate_in)  # float32 [S], resampled
codes = codec.encode(wave)[0]  # int64 [T]
model = LlamaForCausalLM.from_pretrained("THIS_FOLDER")
prompt = torch.cat((torch.tensor([{bos}]), codes + {first}))[None]
ids = model.generate(prompt, max_new_tokens=250)[0, prompt.shape[1] :]
codes = ids[ids >= {first}] - {first}
write_audio("OUT.wav", codec.decode(codes[None])[0].numpy(), codec.sample_rate_out)
```

As text, code 123 is `<|c123|>`: `AutoTokenizer.from_pretrained("THIS_FOLDER")` gives ids of such strings, after the id
{bos}, and strings of ids. A server with OpenAI's API streams them, and focalstream makes sound of them:

    vllm serve THIS_FOLDER --max-model-len {context}
    focalstream continue PROMPT.wav OUT.wav --stream --lm THIS_FOLDER --endpoint http://localhost:8000/v1
{gguf_note}"""

GGUF_NOTE = """
`model.gguf` is the same model for llama.cpp, with the codec's fingerprint in its metadata:

    llama-server -m THIS_FOLDER/model.gguf -c {context}
    focalstream continue PROMPT.wav OUT.wav --stream --lm THIS_FOLDER --endpoint http://localhost:8080/v1
"""

TEXT_ROW = """
| {first_piece} to {last_piece} | piece 0 (unknown) to {pieces_end} of the SentencePiece model `text.model` |"""
TEXT_NOTE = """ For text to speech, prompt with {bos}, {text}, the text's pieces, each plus {first_piece}, and {speech}.
For speech to text, prompt with {bos}, {speech}, the codes, {text}, and suppress {first} to {last} instead of
{first_piece} to {last_piece}."""


def is_llama(raw: Any) -> bool:
    """Whether a parsed config.json has transformers' layout (not necessarily Llama's)."""
    return isinstance(raw, dict) and "model_type" in raw


def is_exportable(config: ModelConfig) -> bool:
    """Whether Llama has the model's options: a table of codes and one head."""
    return config.code_embedding != "bits" and config.head_groups == 1


def llama_config(config: ModelConfig, vocabulary_size: int, dtype: str) -> dict[str, Any]:
    """config.json as transformers 4 (`rope_theta`, `torch_dtype`) and 5 (`rope_parameters`, `dtype`) read it.

    Raises:
        InputError: the model has options that Llama does not have.
    """
    if not is_exportable(config):
        raise InputError(
            f"the model has code_embedding {config.code_embedding!r} and head_groups {config.head_groups}, which "
            "Llama does not have; only models with a table of codes and one head can be exported"
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
        InputError: it is not a Llama, or has options that our model does not have.
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
            raise InputError(f"{path}: {name} is {found!r}; expected {needed!r}, the only one that our model has")
    return config


def llama_names(weights: dict[str, Tensor]) -> dict[str, Tensor]:
    """Our weights with transformers' names."""
    return {name if name == HEAD else PREFIX + name: tensor for name, tensor in weights.items()}


def own_names(weights: dict[str, Tensor], tied: bool) -> dict[str, Tensor]:
    """Transformers' weights with our names, without a tied head and the rotary tables of old files."""
    return {
        name.removeprefix(PREFIX): tensor
        for name, tensor in weights.items()
        if not name.endswith("rotary_emb.inv_freq") and not (tied and name == HEAD)
    }


def export_lm(
    model: LanguageModel, vocabulary: Vocabulary, folder: Path, dtype: str = "float32", gguf: bool = False
) -> None:
    """Write config.json, generation_config.json, model.safetensors, vocabulary.json, README.md and the tokenizer's
    files (`slm.token_strings`); for a model with text also text.model.

    Args:
        model: on any device.
        vocabulary: its vocabulary, with the codec's fingerprint.
        folder: is created; it may exist if it is empty.
        dtype: of the stored weights, a key of `DTYPES`.
        gguf: write model.gguf too, the same model for llama.cpp.

    Raises:
        InputError: the folder is not empty or cannot be written, Llama does not have the model's options, or the
            package gguf is missing.
    """
    if gguf:
        gguf_package()
    config = llama_config(model.config, vocabulary.size, dtype)
    check_new_folder(folder)
    folder.mkdir(parents=True, exist_ok=True)
    weights = {
        name: tensor.detach().to("cpu", DTYPES[dtype]).contiguous()
        for name, tensor in llama_names(model.stored_weights()).items()
    }
    pieces = range(vocabulary.first_piece, vocabulary.size)
    not_drawn = [*(i for i in range(FIRST_CODE) if i != EOS), *pieces]
    generation = {
        "bos_token_id": BOS,
        "eos_token_id": EOS,
        "pad_token_id": PAD,
        "suppress_tokens": not_drawn,
        "do_sample": True,
        **SAMPLING,
    }
    ids = {
        "pad": PAD,
        "bos": BOS,
        "eos": EOS,
        "text": TEXT,
        "speech": SPEECH,
        "interleaved": INTERLEAVED,
        "unused": INTERLEAVED + 1,
        "last_special": FIRST_CODE - 1,
        "first": FIRST_CODE,
        "last": vocabulary.first_piece - 1,
        "first_piece": vocabulary.first_piece,
        "last_piece": vocabulary.size - 1,
        "pieces_end": vocabulary.pieces - 1,
    }
    note = README.format(
        codec=vocabulary.codec_name,
        fingerprint=vocabulary.codec_fingerprint,
        rate=vocabulary.token_rate,
        last_code=vocabulary.codebook_size - 1,
        context=model.config.context,
        gguf_note=GGUF_NOTE.format(context=model.config.context) if gguf else "",
        text_row=TEXT_ROW.format(**ids) if pieces else "",
        text_note=TEXT_NOTE.format(**ids) if pieces else "",
        **ids,
    )
    write_atomically(folder / "README.md", note.encode())
    vocabulary.save(folder / "vocabulary.json")
    for name, content in tokenizer_files(vocabulary, model.config.context).items():
        write_atomically(folder / name, content)
    write_atomically(folder / "generation_config.json", (json.dumps(generation, indent=2) + "\n").encode())
    if gguf:
        write_gguf(model.config, weights, vocabulary, SAMPLING, dtype, folder / GGUF_FILE)
    write_atomically(folder / "model.safetensors", save(weights, metadata={"format": "pt"}))
    write_atomically(
        folder / "config.json", (json.dumps(config, indent=2) + "\n").encode()
    )  # last: without it the folder is incomplete
