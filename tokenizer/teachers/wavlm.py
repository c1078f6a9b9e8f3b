"""WavLM checkpoints to the codec's encoder in its full-context form: the teacher that a causal encoder learns from.

Two layouts are read: that of `transformers` (microsoft/wavlm-large: config.json beside model.safetensors or
pytorch_model.bin) and that of the original release (one `.pt` file of {"cfg": ..., "model": ...}; WavLM, arXiv
2110.13900). Both name the same weights differently, keep queries, keys and values apart, and store the positional
convolution weight-normalised. Only models built like WavLM Large fit the encoder: layer-normed convolutions without
bias and pre-norm layers. The wave goes in as it is, as in FocalCodec, without the scaling to unit variance that WavLM
Large was trained with.
"""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

from torch import Tensor

from tokenizer.checkpoint import assign, download, read_plain, read_weights, renamed, with_fused_attention
from tokenizer.errors import InputError
from tokenizer.network.encoder import Encoder
from tokenizer.network.stage_configs import EncoderConfig
from tokenizer.parsed import dataclass_from_dict

TRANSFORMERS_FILES = ("model.safetensors", "pytorch_model.bin")
# (pattern, name in the encoder) of each layout's weights, less queries, keys, values and the positional convolution.
LAYER = r"^encoder\.layers\.(\d+)\."
TRANSFORMERS_NAMES = (
    (r"^feature_extractor\.conv_layers\.(\d+)\.conv\.", r"feature_extractor.layers.\1.conv."),
    (r"^feature_extractor\.conv_layers\.(\d+)\.layer_norm\.", r"feature_extractor.layers.\1.norm."),
    (r"^feature_projection\.layer_norm\.", "norm."),
    (r"^feature_projection\.projection\.", "feature_proj."),
    (r"^encoder\.pos_conv_embed\.conv\.", "encoder.positional_embedding.conv."),
    (r"\.parametrizations\.weight\.original0$", ".weight_g"),
    (r"\.parametrizations\.weight\.original1$", ".weight_v"),
    (r"^encoder\.layers\.0\.attention\.rel_attn_embed\.", "encoder.relative_embedding."),
    (LAYER + r"layer_norm\.", r"encoder.layers.\1.attention_norm."),
    (LAYER + r"feed_forward\.intermediate_dense\.", r"encoder.layers.\1.feed_forward.in_proj."),
    (LAYER + r"feed_forward\.output_dense\.", r"encoder.layers.\1.feed_forward.out_proj."),
    (LAYER + r"final_layer_norm\.", r"encoder.layers.\1.feed_forward_norm."),
)
ORIGINAL_NAMES = (
    (r"^layer_norm\.", "norm."),
    (r"^post_extract_proj\.", "feature_proj."),
    (r"^feature_extractor\.conv_layers\.(\d+)\.0\.", r"feature_extractor.layers.\1.conv."),
    (r"^feature_extractor\.conv_layers\.(\d+)\.2\.1\.", r"feature_extractor.layers.\1.norm."),
    (r"^encoder\.pos_conv\.0\.", "encoder.positional_embedding.conv."),
    (r"^encoder\.layers\.0\.self_attn\.relative_attention_bias\.", "encoder.relative_embedding."),
    (LAYER + r"self_attn_layer_norm\.", r"encoder.layers.\1.attention_norm."),
    (LAYER + r"self_attn\.grep_linear\.", r"encoder.layers.\1.attention.gru_rel_pos_linear."),
    (LAYER + r"self_attn\.grep_a$", r"encoder.layers.\1.attention.gru_rel_pos_const"),
    (LAYER + r"self_attn\.", r"encoder.layers.\1.attention."),
    (LAYER + r"fc1\.", r"encoder.layers.\1.feed_forward.in_proj."),
    (LAYER + r"fc2\.", r"encoder.layers.\1.feed_forward.out_proj."),
    (LAYER + r"final_layer_norm\.", r"encoder.layers.\1.feed_forward_norm."),
)
ORIGINAL_DEFAULTS = {
    "conv_feature_layers": "[(512,10,5)] + [(512,3,2)] * 4 + [(512,2,2)] * 2",
    "conv_bias": False,
    "conv_pos": 128,
    "conv_pos_groups": 16,
    "num_buckets": 320,
    "max_distance": 1280,
}
UNUSED = re.compile(r"^(mask_emb|masked_spec_embed|encoder\.layer_norm\.)")  # of pretraining; of the last layer of all


def load_wavlm(source: str | Path, layers: int = 6) -> Encoder:
    """Load a WavLM model as a full-context encoder.

        teacher = load_wavlm("microsoft/wavlm-large")
        outputs, frames = teacher.forward_layers(wave, lengths)  # of each layer

    Args:
        source: a folder in the layout of `transformers`, a Hugging Face Hub id, or an original `.pt` file.
        layers: how many Transformer layers to keep, from the first (FocalCodec uses 6).

    Returns:
        The encoder in float32 on the CPU, without gradients. Its state dict fits a causal `Encoder` of the same sizes.

    Raises:
        InputError: nothing is found there, it is damaged, would run code, or is no WavLM built like Large.
    """
    name = str(source)
    if Path(source).is_file():
        config, weights = _read_original(Path(source), layers)
    else:
        config, weights = _read_transformers(name, layers)
    kept = {key: value for key, value in weights.items() if not UNUSED.match(key) and _layer(key) < layers}
    encoder = Encoder(config)
    assign(encoder, _with_plain_convolution(with_fused_attention(kept)), f"WavLM {name}")
    return encoder.requires_grad_(False).eval()


def _layer(name: str) -> int:
    """The Transformer layer a weight belongs to, or -1."""
    found = re.match(LAYER, name)
    return int(found[1]) if found else -1


def _with_plain_convolution(weights: dict[str, Tensor]) -> dict[str, Tensor]:
    """Undo the weight normalisation of the positional convolution: for each tap, a direction and a length."""
    stem = "encoder.positional_embedding.conv.weight"
    if f"{stem}_g" not in weights or f"{stem}_v" not in weights:
        return weights
    out = dict(weights)
    length, direction = out.pop(f"{stem}_g").float(), out.pop(f"{stem}_v").float()
    out[stem] = length * direction / direction.norm(dim=(0, 1), keepdim=True)
    return out


def _read_transformers(name: str, layers: int) -> tuple[EncoderConfig, dict[str, Tensor]]:
    directory = Path(name)
    if directory.is_dir():
        found = [directory / file for file in TRANSFORMERS_FILES if (directory / file).is_file()]
        if not found or not (directory / "config.json").is_file():
            raise InputError(f"WavLM {name}: expected config.json beside {' or '.join(TRANSFORMERS_FILES)} there")
        config_path, weights_path = directory / "config.json", found[0]
    elif re.fullmatch(r"[\w.-]+/[\w.-]+", name) and not name.startswith("."):
        config_path, weights_path = download(name, TRANSFORMERS_FILES)
    else:
        raise InputError(
            f"WavLM {name}: not found; expected a directory with config.json, an original .pt file, or a Hugging Face "
            "id such as microsoft/wavlm-large"
        )
    try:
        raw = json.loads(config_path.read_text(encoding="utf-8"))
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise InputError(f"{config_path}: not a JSON file ({error}); expected WavLM's config.json") from None
    wanted = {"model_type": "wavlm", "do_stable_layer_norm": True, "feat_extract_norm": "layer", "conv_bias": False}
    fields = {
        "hidden_dims": "conv_dim",
        "kernel_sizes": "conv_kernel",
        "strides": "conv_stride",
        "dim": "hidden_size",
        "ffn_dim": "intermediate_size",
        "num_heads": "num_attention_heads",
        "num_buckets": "num_buckets",
        "max_distance": "max_bucket_distance",
        "conv_pos": "num_conv_pos_embeddings",
        "conv_pos_groups": "num_conv_pos_embedding_groups",
    }
    config = _config(raw, wanted, fields, "num_hidden_layers", layers, name)
    weights = {key.removeprefix("wavlm."): value for key, value in read_weights(weights_path).items()}
    return config, renamed(weights, TRANSFORMERS_NAMES)


def _read_original(path: Path, layers: int) -> tuple[EncoderConfig, dict[str, Tensor]]:
    content = read_plain(path)
    if not isinstance(content, dict) or not all(isinstance(content.get(key), dict) for key in ("cfg", "model")):
        raise InputError(f'{path}: expected an original WavLM checkpoint, a mapping with "cfg" and "model"')
    raw = {**ORIGINAL_DEFAULTS, **content["cfg"]}
    # Python source there, such as "[(512,10,5)] + [(512,3,2)] * 4": (channels, kernel, stride) of each convolution.
    blocks = re.findall(r"\[\((\d+), ?(\d+), ?(\d+)\)\](?: ?\* ?(\d+))?", str(raw["conv_feature_layers"]))
    shapes = [tuple(map(int, shape)) for *shape, times in blocks for _ in range(int(times or 1))]
    raw["dims"], raw["kernels"], raw["strides"] = zip(*shapes, strict=True) if shapes else ((), (), ())
    wanted = {"extractor_mode": "layer_norm", "layer_norm_first": True, "conv_bias": False, "gru_rel_pos": True}
    fields = {
        "hidden_dims": "dims",
        "kernel_sizes": "kernels",
        "strides": "strides",
        "dim": "encoder_embed_dim",
        "ffn_dim": "encoder_ffn_embed_dim",
        "num_heads": "encoder_attention_heads",
        "num_buckets": "num_buckets",
        "max_distance": "max_distance",
        "conv_pos": "conv_pos",
        "conv_pos_groups": "conv_pos_groups",
    }
    return _config(raw, wanted, fields, "encoder_layers", layers, str(path)), renamed(content["model"], ORIGINAL_NAMES)


def _config(
    raw: dict[str, Any], wanted: dict[str, Any], fields: dict[str, str], depth: str, layers: int, name: str
) -> EncoderConfig:
    """The encoder's configuration from WavLM's own.

    Args:
        raw: WavLM's configuration.
        wanted: what a model built like Large says of itself there.
        fields: where `raw` has each field of `EncoderConfig`.
        depth: where it has the number of layers.
    """
    for key, value in wanted.items():
        if raw.get(key) != value:
            raise InputError(
                f"WavLM {name}: its configuration has {key} {raw.get(key)!r}, expected {value!r}: only models built "
                "like WavLM Large fit this encoder (not Base or Base+)"
            )
    if missing := [key for key in (*fields.values(), depth) if key not in raw]:
        raise InputError(f"WavLM {name}: its configuration lacks {missing[0]!r}")
    if not 1 <= layers <= raw[depth]:
        raise InputError(f"WavLM {name}: layers is {layers}; it has {raw[depth]}, so expected 1 to {raw[depth]}")
    values = {ours: raw[theirs] for ours, theirs in fields.items()}
    return dataclass_from_dict(EncoderConfig, {**values, "num_layers": layers}, f"WavLM {name}")
