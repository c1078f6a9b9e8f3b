"""The note in an exported folder: how to run its graphs with nothing but NumPy and ONNX Runtime."""

from __future__ import annotations

from tokenizer.model import CodecModel
from tokenizer.onnx_engine.manifest import Manifest, StateSpec

TEXT = """# A streaming speech codec as ONNX graphs ({precision})

{bitrate:g} bit/s, {rate_in} Hz in, {rate_out} Hz out, in chunks of {chunk} samples ({latency:g} ms) or {tokens} tokens.
Exported from the codec of fingerprint `{fingerprint}`.

| graph | data in | data out |
|---|---|---|
| `encode_step.onnx` | `wave` float32 [batch, n x {chunk}], in [-1, 1] | `tokens` int64 [batch, n x {tokens}] |
| `decode_step.onnx` | `tokens` int64 [batch, n x {tokens}], -1 for silence | `wave` float32 [batch, n x {samples}] |

Both also take `position`, int64 [batch], the chunks that each stream has had before this step, and their states,
listed below and in `codec.json`: each is an input `<name>` and an output `next.<name>`, float32, zeros before a stream
begins.
{history}{int8}
With the package that wrote this, and without PyTorch: `tokenizer.onnx_engine.arrays.ArrayCodec(folder, "{precision}")`.

## One stream, chunk by chunk

In this folder (from the Hugging Face Hub: `hf download THIS_REPOSITORY --local-dir FOLDER`, then `cd FOLDER`):

```python
{example}```

## States

{states}"""

HISTORY = """
A state marked "history" is a buffer over time. The graph writes a step's frames at slot `past` + `rate` x `slot`, where
`slot`, int64 [1], is one more input. The plain way is the example's: buffers of `past` + `rate` slots, `slot` always 0,
and after each one-chunk step the buffer is rolled back by `rate`. The fast way is longer buffers, of which input and
output are bound to the same memory (`IOBinding`), and `slot` counted up until they are full: then no state is copied.
Buffers of `past` + n x `rate` slots take steps of n chunks.
"""

INT8 = """
The large products are `com.microsoft.MatMulIntegerToFloat`, an operator of ONNX Runtime, with {kernel} weights{limit}.
"""

EXAMPLE = """import json
import numpy as np, onnxruntime as ort

specs = json.load(open("codec.json"))
def begin(step, batch=1):
    return {s["name"]: np.zeros((batch, *s["shape"]), "float32") for s in specs[step]}
def run(step, session, data, out, state, position):
    feeds = {**data, **state, "position": np.full(1, position)}
    if any(s["history"] for s in specs[step]):
        feeds["slot"] = np.zeros(1, "int64")
    result, *after = session.run([out, *("next." + s["name"] for s in specs[step])], feeds)
    rolled = [np.roll(a, -s["rate"], s["axis"]) if s["history"] else a for s, a in zip(specs[step], after)]
    return result, dict(zip(state, rolled))

encoder, decoder = (ort.InferenceSession(f"{step}_step.onnx") for step in ("encode", "decode"))
heard, spoken = begin("encode_step"), begin("decode_step")
audio = np.random.default_rng(0).uniform(-0.1, 0.1, (1, 10 * CHUNK)).astype("float32")
for position, chunk in enumerate(np.split(audio, 10, axis=1)):
    tokens, heard = run("encode_step", encoder, {"wave": chunk}, "tokens", heard, position)
    wave, spoken = run("decode_step", decoder, {"tokens": tokens}, "wave", spoken, position)
    print(tokens[0], wave.shape)
"""


def readme(codec: CodecModel, manifest: Manifest) -> str:
    """The text for `codec`, as `manifest` says it was exported."""
    steps = {"encode_step": manifest.encode_states, "decode_step": manifest.decode_states}
    has_history = any(spec.history for specs in steps.values() for spec in specs)
    return TEXT.format(
        precision=manifest.precision,
        fingerprint=manifest.fingerprint,
        bitrate=codec.bitrate,
        rate_in=codec.sample_rate_in,
        rate_out=codec.sample_rate_out,
        latency=codec.latency_ms,
        chunk=codec.chunk_samples,
        tokens=codec.tokens_per_chunk,
        samples=codec.tokens_per_chunk * codec.samples_per_token,
        history=HISTORY if has_history else "",
        int8=_int8(manifest),
        example=EXAMPLE.replace("CHUNK", str(codec.chunk_samples)),
        states="".join(_table(step, specs) for step, specs in steps.items()),
    )


def _int8(manifest: Manifest) -> str:
    if manifest.kernel is None:
        return ""
    limit = ", which need a processor with VNNI or the like" if manifest.kernel == "signed" else ""
    return INT8.format(kernel=manifest.kernel, limit=limit)


def _table(step: str, specs: list[StateSpec]) -> str:
    rows = [f"| `{step}` | shape (after the batch) | history |", "|---|---|---|"]
    for spec in specs:
        kind = f"axis {spec.axis}, past {spec.past}, rate {spec.rate}" if spec.history else ""
        rows.append(f"| `{spec.name}` | {list(spec.shape)} | {kind} |")
    return "\n".join(rows) + "\n\n"
