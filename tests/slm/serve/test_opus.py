"""Opus on the wire: the same sound at the same place in a tenth of the bytes, and hostile packets."""

from __future__ import annotations

import asyncio
from typing import Any

import numpy as np
import pytest

pytest.importorskip("av", reason='needs pip install "focalstream[media]"')
pytest.importorskip("starlette", reason='needs pip install "focalstream[serve]"')

from slm.generation.opus import LENGTH, MESSAGE_PACKETS, OPUS, OpusDecoder, OpusEncoder, split
from slm.serve.assets import SPEECH
from slm.serve.client import ReceivedSound, ServerError, connect
from tests.slm.serve.browser import Wire, until, wait
from tests.slm.serve.test_server import noise, spoken
from tokenizer.audio import read_audio
from tokenizer.errors import InputError
from tokenizer.live import to_pcm

TOKEN = "open sesame"


def likeness(a: np.ndarray, b: np.ndarray) -> float:
    return float(np.corrcoef(a.astype(np.float64), b.astype(np.float64))[0, 1])


@pytest.mark.parametrize("rate", [16000, 24000])
def test_sound_comes_out_whole_and_in_place_however_it_is_cut(rate: int) -> None:
    speech = read_audio(SPEECH / "ada-01.ogg", rate, 2.0137)
    wave, rng = np.frombuffer(to_pcm(speech), "<i2"), np.random.default_rng(rate)
    found = []
    for cuts in ([], np.sort(rng.integers(0, len(wave), 40)).tolist()):
        encoder, received = OpusEncoder(rate), ReceivedSound(rate, 1)
        messages = [encoder.encode(piece.tobytes()) for piece in np.split(wave, cuts)]
        pieces = [received.samples(OPUS, np.zeros(len(wave), np.uint16), messages[0])]  # a token for each sample
        pieces += [received.samples(OPUS, np.zeros(0, np.uint16), m) for m in (*messages[1:], encoder.end())]
        found.append((b"".join(messages), np.concatenate(pieces)))
    (packets, sound), (again, _) = found
    assert packets == again and len(sound) == len(wave)
    assert len(packets) * 8 / 2.0137 < 30_000  # bit/s
    half_ms = rate // 2000  # Opus shifts phases, so the best place may be a sample or two away
    places = {n: likeness(wave[2000:-2000], np.roll(sound, -n)[2000:-2000]) for n in (-half_ms, 0, half_ms)}
    assert places[0] > 0.8 and places[0] == max(places.values())


@pytest.mark.parametrize(
    ("message", "reason"),
    [
        (b"\x05", "each after its length"),
        (b"\x05\x00abc", "each after its length"),
        (b"\x00\x00", "each after its length"),
        (LENGTH.pack(3) + b"\xff\xff\xff", "packet 1 of a message is not Opus"),
        ((LENGTH.pack(1) + b"\x08") * (MESSAGE_PACKETS + 1), "more than 25 packets"),
    ],
)
def test_what_is_no_opus_is_refused(message: bytes, reason: str, capfd: Any) -> None:
    with pytest.raises(InputError, match=reason):
        OpusDecoder().decode(message, MESSAGE_PACKETS)
    assert capfd.readouterr().err == ""  # FFmpeg would write a line for each bad packet


@pytest.mark.slow
def test_a_stream_in_opus_has_the_tokens_and_the_sound_of_one_in_pcm(server: Any) -> None:
    settings = {"seconds": 1.5, "min_seconds": 1.5, "seed": 3}

    async def run(**options: Any) -> Any:
        async with connect(server.websocket, TOKEN, **options) as client:
            return await spoken(client, noise(1.3), **settings)

    plain, coded = asyncio.run(run()), asyncio.run(run(sound_format=OPUS))
    assert coded[:2] == plain[:2]
    assert len(coded[2]) == len(plain[2]) and likeness(coded[2], plain[2]) > 0.5  # of untrained models: noise
    prompt, new, sound = asyncio.run(run(sound_format=OPUS, prompt_format=OPUS))
    assert len(prompt) == len(plain[0]) and len(new) == 76 and len(sound) == len(plain[2])
    assert (np.array(prompt) == plain[0]).mean() < 1  # Opus loses something of the prompt


@pytest.mark.slow
def test_a_prompt_in_opus_is_metered_and_checked(server: Any) -> None:
    async def error(message: bytes) -> ServerError:
        async with connect(server.websocket, TOKEN, prompt_format=OPUS) as client:
            await client.start()
            await client._socket.send(message)
            with pytest.raises(ServerError) as refused:
                while True:
                    await client.receive()
            return refused.value

    head = next(split(OpusEncoder(48000).end()))[:1]  # alone it is a packet too: nothing was transmitted
    assert asyncio.run(error(b"\x05")).code == "bad_audio"
    too_many = (LENGTH.pack(1) + head) * (MESSAGE_PACKETS + 1)
    assert "more than 25 packets" in str(asyncio.run(error(too_many)))

    async def unknown() -> None:
        async with connect(server.websocket, TOKEN) as client:
            with pytest.raises(ServerError, match="sound_format is 'mp3'; this server has pcm, opus"):
                await client.start(sound_format="mp3")
            await client.start(sound_format=OPUS)
            await client.cancel()
            assert len((await spoken(client, noise(0.5), seconds=0.4, min_seconds=0.4))[1]) == 20

    asyncio.run(unknown())


class WeighedWire(Wire):
    """Notes the format and the size of the server's sound."""

    def __init__(self) -> None:
        super().__init__()
        self.formats: set[int] = set()
        self.bytes = 0

    def bring(self, message: str | bytes) -> None:
        if isinstance(message, bytes):
            self.formats.add(message[1])
            self.bytes += len(message)
        super().bring(message)


@pytest.mark.slow
@pytest.mark.browser
@pytest.mark.parametrize("source", ["microphone", "example"])
def test_the_page_speaks_and_hears_opus(open_page: Any, source: str) -> None:
    wire = WeighedWire()
    page = open_page(wire=wire)
    assert not page.is_checked("#opus")  # on the server's own machine PCM costs nothing
    page.check("#opus")
    page.locator("[name=seconds]").fill("2")
    page.click(f"label:has([value={source}])")
    page.click("#go")
    if source == "microphone":
        wait(page, "phase === 'recording'")
        until(page, lambda: wire.spoken > 3000, "about a second of speech")
        page.click("#go")
    wait(
        page, "phase === 'idle' && chunks === 25 && loudest > 0.001 && played === 2 * 16000 + 104"
    )  # 6.5 ms of the prompt come late
    assert wire.told == ["start", "continue"] and "error" not in wire.heard[1:]
    assert wire.formats == {1} and wire.heard.count("speech") == 26  # the last brings what the encoder held
    seconds = 2 + 0.08 * wire.heard.count("prompt")
    assert wire.spoken < 0.15 * 32000 * 3 and wire.bytes < 0.3 * 32000 * (seconds + 3)
    page.click("#go")  # another stream on the same connection, cancelled
    wait(page, "phase === 'recording'" if source == "microphone" else "phase === 'speaking'")
    page.click("#cancel")
    wait(page, "phase === 'idle'")
    page.uncheck("#opus")
    page.click("label:has([value=example])")
    page.click("#go")
    wait(page, "phase === 'idle' && chunks === 25")
    assert wire.formats == {0, 1}
