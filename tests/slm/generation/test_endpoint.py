"""A server with OpenAI's completions protocol draws the codes: the sound is that of `continue` with the same codes."""

from __future__ import annotations

import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import numpy as np
import pytest
import soundfile

from slm.checkpoint import load_lm
from slm.cli import main
from slm.generation import extend as extension
from slm.generation.engines import model_on_arrays
from slm.generation.sampling import Sampling
from slm.token_strings import token_strings


class Server:
    """A language model behind `url`. `requests` holds what it was asked, `events` replaces its answers where given."""

    def __init__(self, lm: str) -> None:
        self.model, self.vocabulary = load_lm(lm)
        self.requests: list[dict] = []
        self.events: list[str] | None = None
        self.status, self.models, self.location = 200, ["speech"], ""
        server = self

        class Handler(BaseHTTPRequestHandler):
            def log_message(self, *_):
                pass

            def do_GET(self):
                self.answer("application/json", json.dumps({"data": [{"id": name} for name in server.models]}).encode())

            def do_POST(self):
                request = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                server.requests.append({**request, "key": self.headers["Authorization"], "path": self.path})
                events = server.drawn(request) if server.events is None else server.events
                self.answer("text/event-stream", "".join(f"{event}\n\n" for event in events).encode())

            def answer(self, kind, data):
                self.send_response(server.status if kind == "text/event-stream" else 200)
                if server.location:
                    self.send_header("Location", server.location)
                self.send_header("Content-Type", kind)
                self.end_headers()
                for at in range(0, len(data), 100):
                    self.wfile.write(data[at : at + 100])
                    self.wfile.flush()

        self.http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.http.server_port}/v1"
        threading.Thread(target=self.http.serve_forever, daemon=True).start()

    def drawn(self, request):
        """Events as a server sends them, with texts that are cut in the middle of tokens."""
        sampling = Sampling(temperature=request["temperature"], top_p=request["top_p"], top_k=request.get("top_k", 0))
        ids = np.array([request["prompt"]])
        stream = extension.extend(
            model_on_arrays(self.model),
            ids,
            np.array([ids.shape[1]]),
            self.vocabulary.code_ids,
            sampling,
            [request["seed"]],
            request.get("min_tokens", 0),
            request["max_tokens"],
        )
        strings = token_strings(self.vocabulary)
        text = "".join(strings[int(code[0]) + 16] for code in stream)
        yield ": keep alive"
        for at in range(0, len(text), 5):
            yield event({"text": text[at : at + 5]})
        yield event({"text": "", "finish_reason": "length"})
        yield "data: [DONE]"


def event(choice: dict) -> str:
    return "data: " + json.dumps({"choices": [{"index": 0, "finish_reason": None, **choice}]})


@pytest.fixture
def server(tiny_lm_dir):
    server = Server(str(tiny_lm_dir))
    yield server
    server.http.shutdown()
    server.http.server_close()


@pytest.fixture
def command(tiny_codec_dir, tiny_lm_dir, tmp_path):
    """`continue` without its output."""
    noise = np.random.default_rng(0).standard_normal(16000) * np.linspace(0.01, 0.2, 16000)
    soundfile.write(tmp_path / "prompt.wav", noise, 16000)
    models = ["--codec", str(tiny_codec_dir), "--lm", str(tiny_lm_dir)]
    return ["continue", str(tmp_path / "prompt.wav"), *models, "--seconds", "1.5", "--min-seconds", "1", "--seed", "3"]


@pytest.mark.parametrize("options", [[], ["--stream"]])
def test_the_sound_is_that_of_continue(server, command, tmp_path, options, monkeypatch):
    monkeypatch.setenv("OPENAI_API_KEY", "secret")
    sampling = ["--temperature", "0.9", "--top-k", "40", "--top-p", "0.9"]
    assert main([*command, *sampling, str(tmp_path / "own.wav")]) == 0
    endpoint = ["--endpoint", server.url, *options]
    assert main([*command, *sampling, *endpoint, str(tmp_path / "theirs.wav")]) == 0
    assert (tmp_path / "own.wav").read_bytes() == (tmp_path / "theirs.wav").read_bytes()
    asked = server.requests[-1]
    assert (asked["path"], asked["model"], asked["key"]) == ("/v1/completions", "speech", "Bearer secret")
    assert (asked["max_tokens"], asked["min_tokens"], asked["top_k"], asked["min_p"]) == (76, 52, 40, 0)


def test_a_server_without_least_tokens_is_asked_again(server, command, tmp_path):
    """llama.cpp's ignores `min_tokens`, and limits what no request says is unlimited."""
    answers = [["<|c1|>", "<|c2|>"], [f"<|c{code}|>" for code in range(50)], ["<|c7|>"]]
    server.drawn = lambda request: [
        *(event({"text": text}) for text in answers[len(server.requests) - 2]),  # the first warmed up
        event({"text": "", "finish_reason": "stop"}),
    ]
    answers.append([f"<|c{code}|>" for code in range(8)])  # index -1, of the warm-up
    assert main([*command, "--endpoint", server.url, "--json", str(tmp_path / "out.wav")]) == 0
    _, first, second, third = server.requests
    assert "logit_bias" not in first and "min_tokens" not in second and "logit_bias" not in third
    assert (second["logit_bias"], second["max_tokens"], third["max_tokens"]) == ({"2": -100}, 50, 24)
    assert [*first["prompt"], 17, 18] == second["prompt"]
    assert [*second["prompt"], *range(16, 66)] == third["prompt"]
    assert len({request["seed"] for request in (first, second, third)}) == 3
    assert first["top_k"] == server.vocabulary.size


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"events": [event({"text": "Hello"}), "data: [DONE]"]}, "expected tokens such as <|c123|>, found 'Hello'"),
        ({"events": [event({"text": "<|c9999|>"})]}, "its code 9999 is not in the codebook"),
        ({"events": [event({"text": "<|c1|>"})]}, "the stream ended before the completion did"),
        ({"events": ['data: {"error": {"message": "out of memory"}}']}, "out of memory"),
        ({"events": ["data: <html>"]}, "its answer is not as in OpenAI's protocol"),
        ({"status": 400, "events": ['{"error": {"message": "too long"}}']}, "HTTP 400: too long"),
        ({"status": 503, "events": ["busy"]}, "HTTP 503: Service Unavailable"),
        ({"status": 302, "location": "http://127.0.0.1:9/v1/completions"}, "HTTP 302"),
        ({"events": ['data: {"choices": ["<|c1|>"]}', "data: [DONE]"]}, "not as in OpenAI's protocol"),
        ({"models": ["a", "b"]}, "it has 2 models (a, b); name one by --endpoint-model"),
    ],
)
def test_answers_that_are_no_speech_leave_nothing(server, command, tmp_path, capsys, change, words):
    for name, value in change.items():
        setattr(server, name, value)
    assert main([*command, "--endpoint", server.url, "--stream", str(tmp_path / "out.wav")]) == 2
    said = capsys.readouterr().err
    assert words in said and said.count("\n") == 1
    assert not list(tmp_path.glob("*out*")) and not list(tmp_path.glob(".*"))


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--endpoint", "localhost:8000"], "expected a URL such as"),
        (["--endpoint", "http://127.0.0.1:9/v1"], "cannot be reached"),
        (["--endpoint", "http://127.0.0.1:9", "--lm-engine", "onnx"], "leave out --lm-engine"),
        (["--endpoint", "URL", "--repetition-penalty", "1.2"], "are not in the protocol"),
        (["--endpoint-model", "x"], "give its URL as --endpoint"),
    ],
)
def test_options_that_do_not_fit(server, command, tmp_path, capsys, options, words):
    options = [server.url if option == "URL" else option for option in options]
    assert main([*command, *options, str(tmp_path / "out.wav")]) == 2
    assert words in capsys.readouterr().err
