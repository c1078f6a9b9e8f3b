"""Streams in slots: the same alone and among others, paced, fair, and gone without a trace."""

from __future__ import annotations

import copy
import random
from typing import Any

import numpy as np
import pytest
import torch

from slm.generation.continuation import Continuation
from slm.generation.generate import Sampling, generate
from slm.generation.level import LevelMatch
from slm.model.transformer import LanguageModel, ModelConfig
from slm.serve.messages import Cancel, Decode, Done, Encode, EndPrompt, Event, Feed, Open, Queued, Ready, Request, Sound
from slm.serve.scheduler import Scheduler
from slm.serve.slots import SlotBatch, piece_chunks
from slm.text_model import TextModel
from slm.vocabulary import Vocabulary
from tokenizer import Codec
from tokenizer.live import to_pcm

CHUNK = 1280


@pytest.fixture(scope="module")
def lm(tiny_codec: Codec) -> tuple[LanguageModel, Vocabulary]:
    """A random model whose logits differ enough for draws to depend on all that it has taken in."""
    torch.manual_seed(0)
    vocabulary = Vocabulary(tiny_codec.codebook_size, tiny_codec.token_rate, "tiny", tiny_codec.fingerprint)
    config = ModelConfig(width=64, layers=2, heads=4, kv_heads=2, ffn_width=96, context=24)
    model = LanguageModel(config, vocabulary.size).eval().requires_grad_(False)
    for parameter in model.parameters():
        parameter.add_(torch.randn_like(parameter) * 0.1)
    return model, vocabulary


@pytest.fixture(scope="module")
def lm_with_text(tiny_codec: Codec) -> tuple[LanguageModel, Vocabulary]:
    text = TextModel.train([f"the {word} jumps over a lazy dog" for word in ("fox", "cat", "hen")] * 20, 40)
    vocabulary = Vocabulary(tiny_codec.codebook_size, tiny_codec.token_rate, "tiny", tiny_codec.fingerprint, text)
    torch.manual_seed(1)
    config = ModelConfig(width=64, layers=2, heads=4, kv_heads=2, ffn_width=96, context=24)
    return LanguageModel(config, vocabulary.size, vocabulary.pieces).eval().requires_grad_(False), vocabulary


class Driver:
    """A scheduler under a clock that moves by a fixed time a piece of work."""

    def __init__(
        self, codec: Any, lm: tuple[LanguageModel, Vocabulary], slots: int, cost: float, **options: Any
    ) -> None:
        self.now, self.cost = 100.0, cost
        self.events: list[Event] = []
        self.times: list[float] = []
        self.scheduler = Scheduler(SlotBatch(codec, *lm, slots), self.take, clock=lambda: self.now, **options)

    def take(self, event: Event) -> None:
        self.events.append(event)
        self.times.append(self.now)

    def run(self, until: float = float("inf")) -> None:
        """Work until nothing is to do, or until a time."""
        while self.now < until and (wait := self.scheduler.work()) is not None:
            self.now += wait or self.cost
        if until < float("inf"):
            self.now = max(self.now, until)

    def say(self, number: int, prompt: np.ndarray, request: Request) -> None:
        for command in (Open(number, request), Feed(number, prompt), EndPrompt(number, self.now)):
            self.scheduler.do(command)

    def of(self, number: int, kind: type) -> list[Any]:
        return [event for event in self.events if event.stream == number and isinstance(event, kind)]

    def said(self, number: int) -> tuple[list[int], bytes]:
        """Codes and PCM of a stream, prompt and speech."""
        sounds = self.of(number, Sound)
        return np.concatenate([sound.codes for sound in sounds]).tolist(), b"".join(sound.pcm for sound in sounds)


def speech(chunks: float, seed: int) -> np.ndarray:
    rng = np.random.default_rng(seed)
    count = int(chunks * CHUNK)
    level = np.interp(np.arange(count), np.linspace(0, count, 20), rng.random(20))
    return (0.5 * rng.standard_normal(count) * level).astype(np.float32)


def request(seed: int = 0, seconds: float | None = 1.6, live: bool = True, **sampling: Any) -> Request:
    return Request(Sampling(**sampling), seed, 30.0, seconds, live)


@pytest.fixture(params=["torch", "onnx"])
def codec(request: pytest.FixtureRequest, tiny_codec: Codec, tmp_path_factory: Any) -> Any:
    if request.param == "torch":
        return tiny_codec
    pytest.importorskip("onnxruntime")
    from tokenizer.onnx_engine.codec import OnnxCodec
    from tokenizer.onnx_engine.export import export

    folder = tmp_path_factory.mktemp("exported")
    export(tiny_codec, folder, "int8")
    return OnnxCodec(folder, "int8", "tiny")


def test_a_stream_is_the_same_alone_and_among_others(codec: Any, lm: Any) -> None:
    """To the last bit of its audio, in whatever slot, with neighbours that come, go and draw otherwise."""
    prompts = {n: speech(3.4 + 2.3 * n, seed=n) for n in range(1, 7)}
    requests = {n: request(seed=n, top_p=0.9 if n % 2 else 1.0, top_k=40 if n == 3 else 0) for n in prompts}
    alone = {}
    for number in prompts:
        driver = Driver(codec, lm, slots=3, cost=0.01)
        driver.say(number, prompts[number], requests[number])
        driver.run()
        alone[number] = driver.said(number)
    rng = random.Random(0)
    crowd = Driver(codec, lm, slots=3, cost=0.013)
    crowd.say(90, speech(5, seed=90), request(seed=90, seconds=None))  # is cancelled while the others speak
    for number in prompts:
        crowd.scheduler.do(Open(number, requests[number]))
    for number, prompt in prompts.items():
        while not crowd.of(number, Ready):
            crowd.run(crowd.now + 0.05)
            if crowd.now > 101.5:
                crowd.scheduler.do(Cancel(90))
        for piece in np.array_split(prompt, rng.randint(1, 9)):  # as a microphone would bring it
            crowd.scheduler.do(Feed(number, piece))
            crowd.run(crowd.now + 0.02)
        crowd.scheduler.do(EndPrompt(number, crowd.now))
    crowd.run()
    assert {number: crowd.said(number) for number in prompts} == alone
    assert len({tuple(codes) for codes, _ in alone.values()}) == len(prompts)
    assert [len(codes) for codes, _ in alone.values()] == [4 * (int(3.4 + 2.3 * n) + 20) for n in prompts]


def test_what_is_said_is_what_generate_says(tiny_codec: Codec, lm: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """In float64, where the shapes of batches and pieces cannot tip a draw."""
    codec, model = copy.deepcopy(tiny_codec).double(), copy.deepcopy(lm[0]).double()
    vocabulary = Vocabulary(codec.codebook_size, codec.token_rate, "tiny", codec.fingerprint)
    prompt = speech(13.5, seed=3)
    monkeypatch.setattr(LevelMatch, "prompt", lambda self, original, rendered, seconds: rendered)  # the level as it is
    driver = Driver(codec, (model, vocabulary), slots=2, cost=0.01)
    wants = Request(Sampling(top_p=0.9, repetition_penalty=1.2), 5, 0.0, 2.0)
    driver.say(1, prompt, wants)
    driver.run()
    codes, pcm = driver.said(1)
    heard = codec.encode(torch.from_numpy(prompt[: 13 * CHUNK])[None])
    new = list(generate(model, vocabulary, [heard[0]], wants.sampling, [5], 0, 100))
    expected = torch.cat([heard[0], *new])
    assert codes == expected.tolist()
    difference = np.frombuffer(pcm, "<i2").astype(int) - np.frombuffer(to_pcm(codec.decode(expected)[0].numpy()), "<i2")
    assert abs(difference).max() <= 1  # float64 sums in other orders, rounded to 16 bits


def test_speech_keeps_a_little_ahead_and_no_more(tiny_codec: Codec, lm: Any) -> None:
    driver = Driver(tiny_codec, lm, slots=3, cost=0.015, lead_seconds=0.24)
    for number in (1, 2, 3):
        driver.say(number, speech(10, seed=number), request(seed=number, seconds=4.0))
        driver.run(driver.now + 0.7)
    driver.run()
    for number in (1, 2, 3):
        times = [
            time
            for event, time in zip(driver.events, driver.times, strict=True)
            if isinstance(event, Sound) and event.new and event.stream == number
        ]
        leads = [times[0] + 0.08 * (k + 1) - time for k, time in enumerate(times)]
        assert len(times) == 50 and max(leads) <= 0.24 + 2 * 0.08 and min(leads[5:]) >= 0.16
        (done,) = driver.of(number, Done)
        assert (done.reason, done.seconds, done.missed) == ("length", 4.0, 0)
        assert done.first_audio_ms < 400


@pytest.mark.slow
def test_a_newcomers_long_prompt_makes_nobody_late(tiny_codec: Codec, lm: Any) -> None:
    driver = Driver(tiny_codec, lm, slots=2, cost=0.03)
    driver.say(1, speech(10, seed=1), request(seconds=8.0))
    driver.run(102.0)
    driver.say(2, speech(187, seed=2), request(seconds=1.0))  # 47 pieces of 30 ms at once
    driver.scheduler.do(Encode(3, speech(80, seed=3)))
    driver.run()
    assert driver.of(1, Done)[0].missed == 0 and driver.of(2, Done)[0].missed == 0
    assert driver.of(2, Done)[0].first_audio_ms < 4000  # it gets more than half of the time


def test_slots_queue_and_cancel(tiny_codec: Codec, lm: Any) -> None:
    driver = Driver(tiny_codec, lm, slots=1, cost=0.01, queue=2)
    for number in (1, 2, 3, 4):
        driver.scheduler.do(Open(number, request(seed=number)))
    assert driver.events == [Ready(1), Queued(2, 1), Queued(3, 2), Done(4, "full")]
    driver.scheduler.do(Cancel(2))
    assert driver.events[4:] == [Done(2, "cancelled"), Queued(3, 1)]
    driver.scheduler.do(Cancel(1))
    assert [type(event) for event in driver.events[6:]] == [Done, Ready] and driver.events[-1].stream == 3
    driver.scheduler.do(Feed(1, speech(2, 0)))  # for nobody
    driver.scheduler.do(EndPrompt(3, driver.now))
    driver.run()
    assert driver.of(3, Done)[0].reason == "no prompt"
    driver.say(5, speech(4, seed=5), request(seed=5, seconds=None))
    driver.run(driver.now + 2.0)
    driver.scheduler.do(Cancel(5))
    driver.run()
    assert driver.of(5, Done)[0].reason == "cancelled" and driver.of(5, Done)[0].seconds > 1.5
    assert driver.scheduler.work() is None


def test_files_are_encoded_and_decoded_whole(tiny_codec: Codec, lm: Any) -> None:
    wave = speech(20.3, seed=8)
    driver = Driver(tiny_codec, lm, slots=1, cost=0.01)
    codes = tiny_codec.encode(torch.from_numpy(wave)[None])[0].numpy()
    driver.scheduler.do(Encode(1, wave))
    driver.scheduler.do(Decode(2, codes))
    driver.run()
    assert np.frombuffer(driver.of(1, Done)[0].result, "<u2").tolist() == codes.tolist()
    expected = np.frombuffer(to_pcm(tiny_codec.decode(torch.from_numpy(codes))[0].numpy()), "<i2").astype(int)
    heard = np.frombuffer(driver.of(2, Done)[0].result, "<i2")
    assert len(heard) == len(expected) and abs(heard - expected).max() <= 1  # float32 in blocks of another size


def test_an_endless_stream_does_not_grow(tiny_codec: Codec, lm: Any) -> None:
    driver = Driver(tiny_codec, lm, slots=1, cost=0.01)
    driver.say(1, speech(9, seed=1), request(seconds=None))
    driver.run(driver.now + 1)
    stream = next(iter(driver.scheduler._streams.values()))
    batch = driver.scheduler._batch
    before = [part.shape for part in batch._cache.tensors], len(stream.waiting), len(stream.sampler.recent)
    driver.run(driver.now + 12)  # 600 codes, 25 contexts
    assert ([part.shape for part in batch._cache.tensors], len(stream.waiting), len(stream.sampler.recent)) == before
    assert stream.state is None and not driver.of(1, Done) and len(driver.of(1, Sound)) > 140


def test_pieces_follow_from_the_prompts_length() -> None:
    def pieces(chunks: int, arrivals: list[int]) -> list[int]:
        taken, waiting = [], 0
        for ended, count in [(False, n) for n in arrivals] + [(True, chunks - sum(arrivals))]:
            waiting += count
            while size := piece_chunks(waiting, ended):
                taken.append(size)
                waiting -= size
        return taken

    for chunks in range(40):
        assert sum(pieces(chunks, [])) == chunks
        assert pieces(chunks, []) == pieces(chunks, [1] * chunks) == pieces(chunks, [chunks // 2])
    assert pieces(15, []) == [4, 4, 4, 2, 1]


def test_seconds_are_rounded_up_to_whole_chunks(tiny_codec: Codec, lm: Any) -> None:
    """0.805 s is a little more than 10 chunks of 4 codes, here and in `Continuation`; 0.8 s is 10."""
    driver = Driver(tiny_codec, lm, slots=2, cost=0.01)
    prompt = speech(3, seed=4)
    for number, seconds, codes in ((1, 0.805, 44), (2, 0.8, 40)):
        driver.say(number, prompt, request(seed=number, seconds=seconds))
        driver.run()
        assert sum(len(sound.codes) for sound in driver.of(number, Sound) if sound.new) == codes
        continuation = Continuation(tiny_codec, *lm, prompt, Sampling(), number, seconds, seconds)
        assert sum(len(chunk.codes) for chunk in continuation.chunks()) == codes


def test_a_model_that_knows_texts_speaks_codes(tiny_codec, lm_with_text):
    driver = Driver(tiny_codec, lm_with_text, slots=2, cost=0.01)
    driver.say(1, speech(3, seed=1), request(seed=2, seconds=2.0))
    driver.run()
    codes, _ = driver.said(1)
    assert len(codes) >= 100 and min(codes) >= 0  # of that many some would be pieces, one id in eight being one


def test_prompts_that_have_ended_come_first_the_shortest_before_the_others(tiny_codec: Codec, lm: Any) -> None:
    """1 goes on, 2 and 3 have ended with much and little left: nobody waits for 1, and 3 need not wait for all of 2."""
    driver = Driver(tiny_codec, lm, slots=3, cost=0.001)
    for number, chunks in ((1, 40), (2, 30), (3, 9)):
        driver.scheduler.do(Open(number, request(seed=number, seconds=0.08)))
        driver.scheduler.do(Feed(number, speech(chunks, seed=number)))
    for number in (2, 3):
        driver.scheduler.do(EndPrompt(number, driver.now))
    driver.run()
    heard = [event.stream for event in driver.events if isinstance(event, Sound) and not event.new]
    of_two, of_three = ([at for at, stream in enumerate(heard) if stream == number] for number in (2, 3))
    assert of_three == [0, 1, 2] and heard.index(1) > max(of_two)
    assert driver.of(3, Done)[0].first_audio_ms < driver.of(2, Done)[0].first_audio_ms


def test_files_wait_behind_live_streams_and_leave_them_a_slot(tiny_codec: Codec, lm: Any) -> None:
    driver = Driver(tiny_codec, lm, slots=2, cost=0.001)
    for number in (1, 2, 3):
        driver.scheduler.do(Open(number, request(live=False)))
    assert [driver.of(number, Queued)[0].position for number in (2, 3)] == [1, 2] and driver.of(1, Ready)
    driver.scheduler.do(Open(4, request()))
    assert driver.of(4, Ready)
    driver.scheduler.do(Open(5, request()))
    assert [driver.of(number, Queued)[-1].position for number in (5, 2, 3)] == [1, 2, 3]
    driver.scheduler.do(Cancel(1))  # the slot that comes free is for the live one
    assert driver.of(5, Ready) and not driver.of(2, Ready)
    for number in (4, 5):
        driver.scheduler.do(Cancel(number))
    assert driver.of(2, Ready) and not driver.of(3, Ready)
    alone = Driver(tiny_codec, lm, slots=1, cost=0.001)
    alone.scheduler.do(Open(1, request(live=False)))
    assert alone.of(1, Ready)
