"""A language model for other programs: the layout of `transformers.LlamaForCausalLM`, and a note on its ids."""

from __future__ import annotations

import json
from pathlib import Path

import torch
from safetensors.torch import save

from slm.checkpoint import named_weights
from slm.llama import llama_config, llama_names
from slm.model.transformer import LanguageModel
from slm.vocabulary import BOS, EOS, FIRST_CODE, INTERLEAVED, PAD, SPEECH, TEXT, Vocabulary
from tokenizer.errors import InputError
from tokenizer.files import write_atomically

DTYPES = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}

README = """# A speech language model as transformers.LlamaForCausalLM

Its tokens are those of codec `{codec}` (fingerprint `{fingerprint}`), {rate:g} a second of speech.

| id | meaning |
|---|---|
| {pad}, {bos}, {eos} | padding, begin, end |
| {text}, {speech} | in models with text: a part of text, of speech begins |
| {interleaved} | in models with text, after the begin: such parts take turns |
| {unused} to {last_special} | not used |
| {first} to {last} | code 0 to {last_code} of the codec |{text_row}

A prompt is the id {bos}, then the codes of some speech, each plus {first}. Only codes and the end are to be drawn:
`generation_config.json` suppresses the other ids.{text_note} The model was trained to see {context} tokens at a time
(`max_position_embeddings`); where there are more, this layout has no sliding window, and focalstream has one.

focalstream reads this folder as it is: `focalstream continue PROMPT.wav OUT.wav --lm THIS_FOLDER`. transformers:

```python
import torch
from transformers import LlamaForCausalLM

model = LlamaForCausalLM.from_pretrained("THIS_FOLDER")
prompt = torch.cat((torch.tensor([{bos}]), codes + {first}))[None]  # codes: int64 [T], of Codec.encode
ids = model.generate(prompt, max_new_tokens=250)[0, prompt.shape[1] :]
codes = ids[ids >= {first}] - {first}
```

vLLM, ids in and ids out, without a tokenizer (written after its documentation, not run by this project):

```python
from vllm import LLM, SamplingParams

model = LLM("THIS_FOLDER", skip_tokenizer_init=True, max_model_len={context})
sampling = SamplingParams(
    temperature=1.0, top_p=0.95, max_tokens=250, detokenize=False,
    stop_token_ids=[{eos}], allowed_token_ids=[{eos}, *range({first}, {size})],
)
output = model.generate([{{"prompt_token_ids": prompt[0].tolist()}}], sampling)[0].outputs[0]
codes = [i - {first} for i in output.token_ids if i >= {first}]
```
"""

TEXT_ROW = """
| {first_piece} to {last_piece} | piece 0 (unknown) to {pieces_end} of the SentencePiece model `text.model` |"""
TEXT_NOTE = """ To have a text said, prompt with {bos}, {text}, its pieces, each plus {first_piece}, and {speech}. To
have speech written down, prompt with {bos}, {speech}, its codes, {text}, and suppress {first} to {last} in place of
{first_piece} to {last_piece}."""


def export_lm(model: LanguageModel, vocabulary: Vocabulary, folder: Path, dtype: str = "float32") -> None:
    """Write config.json, generation_config.json, model.safetensors, vocabulary.json and README.md; of a model with text
    its text.model too.

    Args:
        model: on any device.
        vocabulary: its vocabulary, with the codec's fingerprint.
        folder: made here; it may be there and empty.
        dtype: of the stored weights, a key of `DTYPES`.

    Raises:
        InputError: the folder holds something already, or cannot be written; or no Llama has the model's options.
    """
    config = llama_config(model.config, vocabulary.size, dtype)
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise InputError(f"{folder}: is there already; give a new or empty folder")
    folder.mkdir(parents=True, exist_ok=True)
    weights = {
        name: tensor.detach().to("cpu", DTYPES[dtype]).contiguous()
        for name, tensor in llama_names(named_weights(model)).items()
    }
    pieces = range(vocabulary.first_piece, vocabulary.size)
    not_drawn = [*(i for i in range(FIRST_CODE) if i != EOS), *pieces]
    generation = {
        "bos_token_id": BOS,
        "eos_token_id": EOS,
        "pad_token_id": PAD,
        "suppress_tokens": not_drawn,
        "do_sample": True,
        "temperature": 1.0,
        "top_k": 0,
        "top_p": 0.95,
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
        size=vocabulary.first_piece,
        context=model.config.context,
        text_row=TEXT_ROW.format(**ids) if pieces else "",
        text_note=TEXT_NOTE.format(**ids) if pieces else "",
        **ids,
    )
    write_atomically(folder / "README.md", note.encode())
    vocabulary.save(folder / "vocabulary.json")
    write_atomically(folder / "generation_config.json", (json.dumps(generation, indent=2) + "\n").encode())
    write_atomically(folder / "model.safetensors", save(weights, metadata={"format": "pt"}))
    write_atomically(folder / "config.json", (json.dumps(config, indent=2) + "\n").encode())  # last: nothing without it
