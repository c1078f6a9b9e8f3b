"""Codes from a language model on a server that speaks OpenAI's completions protocol: vLLM, SGLang, llama.cpp, ...

The server runs the folder of `focalstream export-lm`. It gets the prompt as ids and streams strings of tokens back, one
server-sent event after another (`slm.token_strings`); each becomes a code as soon as it is complete.
"""

from __future__ import annotations

import contextlib
import http.client
import json
import os
import urllib.error
import urllib.request
from collections.abc import Generator, Iterator
from functools import partial
from typing import Any

import numpy as np

from slm.generation.sampling import Sampling
from slm.token_strings import codes_in
from slm.vocabulary import BOS, EOS, Vocabulary
from tokenizer.errors import InputError

TIMEOUT_SECONDS = 120.0  # without a byte; a busy server lets requests wait
LONGEST_LINE = 1 << 20  # bytes of an event
KEY = "OPENAI_API_KEY"  # environment variable; sent as the bearer token


class _NoRedirects(urllib.request.HTTPRedirectHandler):
    """A redirect could send the key, and the prompt, anywhere."""

    def redirect_request(self, *_: Any) -> None:
        return None


class Endpoint:
    """A language model behind a URL, in place of one in memory.

    Args:
        url: as OpenAI's clients take it, such as "http://localhost:8000/v1".
        model: the name under which the server has it; None: the only one that it lists.

    Raises:
        InputError: the URL is not one of HTTP, or nothing answers there as expected.
    """

    def __init__(self, url: str, model: str | None = None) -> None:
        if not url.startswith(("http://", "https://")):
            raise InputError(f"--endpoint {url}: expected a URL such as http://localhost:8000/v1")
        self._url = url.rstrip("/").removesuffix("/completions")
        self._opener = urllib.request.build_opener(_NoRedirects())
        self.model = model or self._only_model()

    def codes(
        self,
        prompt: np.ndarray,
        vocabulary: Vocabulary,
        sampling: Sampling,
        seed: int,
        least: int = 0,
        most: int | None = None,
    ) -> Iterator[np.ndarray]:
        """Continue a prompt, a code a step; close the iterator to end the request.

        Args:
            prompt: codes, int64 [T].
            vocabulary: of the server's model.
            sampling: how codes are drawn; with the same seed, a server may draw other codes than this project does.
            least, most: number of codes.

        Yields:
            int64 [1].

        Raises:
            InputError: `most` is None, sampling has settings that the protocol lacks, the server refuses the request,
                or its answer holds anything but codes.
        """
        if most is None:
            raise InputError("--seconds inf: a server needs a number of tokens; give a finite length")
        if sampling.repetition_penalty != 1 or sampling.silence_limit:
            raise InputError("--repetition-penalty and --silence-limit: are not in the protocol; leave them out")
        known = prompt.tolist()
        draw = partial(self._completion, known, vocabulary, sampling)
        yield from draw(seed, most, min_tokens=least)
        missing = len(prompt) + least - len(known)
        if missing > 0:  # llama.cpp's server ignores `min_tokens`: go on, at first without an end
            yield from draw(seed + 1, missing, logit_bias={str(EOS): -100})
            if most > least:
                yield from draw(seed + 2, most - least)

    def _completion(
        self, known: list[int], vocabulary: Vocabulary, sampling: Sampling, seed: int, most: int, **limits: Any
    ) -> Iterator[np.ndarray]:
        """What one request draws after the codes `known`, int64 [1] each. They are added to `known`."""
        request = {
            "model": self.model,
            "prompt": [BOS, *vocabulary.ids(np.array(known)).tolist()],
            "stream": True,
            "max_tokens": most,
            "temperature": sampling.temperature,
            "top_p": sampling.top_p,
            # Given even when off: llama.cpp has limits of its own. Not every server takes 0 for no limit.
            "top_k": sampling.top_k or vocabulary.size,
            "min_p": sampling.min_p,
            "seed": seed,
            **limits,
        }
        with contextlib.closing(self._texts(request)) as texts:
            for count, code in enumerate(codes_in(texts), 1):
                if code >= vocabulary.codebook_size:
                    raise self._error(f"its code {code} is not in the codebook of {vocabulary.codebook_size}")
                known.append(code)
                yield np.array([code])
                if count == most:
                    return

    def _texts(self, request: dict[str, Any]) -> Generator[str]:
        """The texts of the events of a completion, in order."""
        with self._opened("completions", request) as answer:
            while True:
                line = answer.readline(LONGEST_LINE)
                if not line:
                    raise self._error("the stream ended before the completion did")
                kind, _, data = line.decode("utf-8", "replace").strip().partition(":")
                if kind != "data":
                    continue  # comments keep a connection alive
                if data.strip() == "[DONE]":
                    return
                event = self._parsed(data)
                if "error" in event:
                    raise self._error(_message(event))
                for choice in self._objects(event.get("choices")):
                    yield str(choice.get("text") or "")
                    if choice.get("finish_reason"):
                        return

    def _only_model(self) -> str:
        with self._opened("models") as answer:
            listed = self._parsed(answer.read(LONGEST_LINE)).get("data")
        names = [str(entry.get("id")) for entry in self._objects(listed)]
        if len(names) != 1:
            raise self._error(f"it has {len(names)} models ({', '.join(names[:5])}); name one by --endpoint-model")
        return names[0]

    @contextlib.contextmanager
    def _opened(self, what: str, content: dict[str, Any] | None = None) -> Iterator[Any]:
        """The answer to a GET, or to a POST of `content`. Raises InputError."""
        headers = {"Content-Type": "application/json", "Accept": "text/event-stream, application/json"}
        if key := os.environ.get(KEY):
            headers["Authorization"] = f"Bearer {key}"
        data = None if content is None else json.dumps(content).encode()
        request = urllib.request.Request(f"{self._url}/{what}", data, headers)
        try:
            answer = self._opener.open(request, timeout=TIMEOUT_SECONDS)
        except urllib.error.HTTPError as error:
            reason = error.reason
            with contextlib.suppress(ValueError, OSError):
                reason = _message(json.loads(error.read(LONGEST_LINE)))
            raise self._error(f"HTTP {error.code}: {reason}") from None
        except (OSError, http.client.HTTPException, ValueError) as error:
            raise self._error(
                f"cannot be reached ({getattr(error, 'reason', error)}); start the server, or correct the URL"
            ) from error
        with contextlib.closing(answer):
            try:
                yield answer
            except (OSError, http.client.HTTPException) as error:
                raise self._error(f"the answer broke off ({type(error).__name__})") from error

    def _parsed(self, data: str | bytes) -> dict[str, Any]:
        try:
            value = json.loads(data)
        except (ValueError, RecursionError):
            value = None
        return self._objects([value])[0]

    def _objects(self, listed: Any) -> list[dict[str, Any]]:
        """A list of objects; None is an empty one."""
        if not isinstance(listed or [], list) or not all(isinstance(entry, dict) for entry in listed or []):
            raise self._error("its answer is not as in OpenAI's protocol; expected the URL of the API, ending in /v1")
        return listed or []

    def _error(self, words: str) -> InputError:
        return InputError(f"--endpoint {self._url}: {words}")


def _message(content: Any) -> str:
    """What a server says is wrong: OpenAI's form, or older ones of others."""
    error = content.get("error", content) if isinstance(content, dict) else content
    return str(error.get("message", error) if isinstance(error, dict) else error)[:500]
