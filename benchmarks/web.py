"""The exported folder in headless Chromium: size, loading, real-time factor, first audio, memory, flips against Python.

    focalstream export-web web                                     # or `make web`
    python benchmarks/web.py web [--threads 1,2] [--rounds 3]
    taskset -c 0 python benchmarks/web.py web --threads 1          # on one core
    python benchmarks/web.py web --threads 1 --slower 4            # Chromium holds the engine back to a quarter
    python benchmarks/web.py web --threads 1 --pictures docs/images    # and takes the pictures of README.md

The host is local and sends the headers that threads need. The real-time factor is computing time over the duration of
the audio, in the engine without pacing: of a prompt (encoding, decoding and reading it, 80 ms at a time) and of new
speech (language model, sampling, decoder); best of the rounds. First audio is what the page shows: from the end of a
spoken prompt (Chromium's fake microphone) to the first sample played, the page's buffer of 80 ms included, and of that
the models' part; best and worst of the rounds; --slower does not reach the worker that it runs in. Memory is the
resident set of the page's process.
"""

from __future__ import annotations

import argparse
import functools
import http.server
import json
import tempfile
import threading
import time
from pathlib import Path
from typing import Any

import numpy as np

from tokenizer import Codec
from tokenizer.audio import read_audio, write_wav

ROOT = Path(__file__).resolve().parents[1]
PROMPT = ROOT / "slm" / "demo" / "speech" / "audio" / "ada-01.ogg"
PROMPT_SECONDS, SPEECH_SECONDS = 3.0, 6.0
CHROMIUM = "/usr/bin/chromium"
ENGINE = """async (text) => {
  const { wave, seconds, threads } = JSON.parse(text);
  const { Continuation, loadModels } = await import(new URL("engine/index.js", location.href));
  const began = performance.now();
  const { codec, model } = await loadModels(new URL("focalstream.json", location.href), { threads });
  const result = { load: performance.now() - began, prompt: [], speech: [], chunk: [] };
  for (let round = 0; round < 4; round++) {
    const continuation = new Continuation(codec, model, { topP: 0.95 }, { seed: round, minSeconds: seconds, maxSeconds: seconds });
    let at = performance.now();
    const samples = Float32Array.from(wave);
    const tokens = [];
    for (let i = 0; i + codec.chunkSamples <= samples.length; i += codec.chunkSamples)
      tokens.push(...(await continuation.feed(samples.slice(i, i + codec.chunkSamples))).codes);
    result.prompt.push((performance.now() - at) / (1000 * tokens.length / codec.tokenRate));
    result.tokens = tokens;
    const times = [];
    let before = (at = performance.now());
    for await (const _ of continuation.chunks()) {
      times.push(performance.now() - before);
      before = performance.now();
    }
    result.speech.push((performance.now() - at) / (1000 * seconds));
    result.chunk.push(times.sort((a, b) => a - b)[Math.floor(times.length * 0.95)]);
  }
  return JSON.stringify(result);
}"""  # noqa: E501


class Isolated(http.server.SimpleHTTPRequestHandler):
    """A static host with the headers for threads."""

    def end_headers(self) -> None:
        self.send_header("Cross-Origin-Opener-Policy", "same-origin")
        self.send_header("Cross-Origin-Embedder-Policy", "require-corp")
        super().end_headers()

    def log_message(self, *_: Any) -> None:
        pass


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--threads", default="1,2")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--slower", type=float, default=1.0, help="times as slow as this machine")
    parser.add_argument("--pictures", type=Path, metavar="FOLDER", help="write web-desktop.png and web-phone.png there")
    args = parser.parse_args()
    sizes = {path: path.stat().st_size for path in args.folder.rglob("*") if path.is_file()}
    manifest = json.loads((args.folder / "focalstream.json").read_text())
    precision = manifest["codec"]["precision"]
    print(f"{args.folder}: {precision}, {len(sizes)} files, {sum(sizes.values()) / 1e6:.1f} MB to download")
    host = http.server.ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(Isolated, directory=args.folder))
    threading.Thread(target=host.serve_forever, daemon=True).start()
    rate = manifest["codec"]["sample_rate_in"]
    wave = read_audio(PROMPT, rate, PROMPT_SECONDS)
    print("| threads | loading, s | real-time factor: prompt | new speech | p95 of a chunk, ms |", end="")
    print(" first audio, ms | of which the models | memory, MB |\n|---|---|---|---|---|---|---|---|")
    for threads in map(int, args.threads.split(",")):
        row, tokens = measure(f"http://127.0.0.1:{host.server_port}/", wave, rate, threads, args)
        print(f"| {threads} | {row} |", flush=True)
    host.shutdown()
    codec: Any = Codec.from_pretrained(manifest["codec"]["name"], engine="onnx", precision=precision)
    expected = np.asarray(codec.encode(wave[None]))[0][: len(tokens)]
    differ = [bin(a ^ b).count("1") for a, b in zip(tokens, expected.tolist(), strict=True)]
    bits = codec.bits_per_token * len(differ)
    tokens_differ = f"{sum(map(bool, differ))} of {len(differ)}"
    print(f"against Python's {precision} engine {tokens_differ} tokens differ, {sum(differ)} of {bits} bits")


def measure(address: str, wave: np.ndarray, rate: int, threads: int, args: argparse.Namespace) -> tuple[str, list[int]]:
    """A row of the table, and the tokens of `wave`."""
    from playwright.sync_api import sync_playwright

    with tempfile.TemporaryDirectory() as folder, sync_playwright() as started:
        voice = Path(folder) / "voice.wav"
        write_wav(voice, wave, rate)
        flags = ["--no-sandbox", "--use-fake-device-for-media-stream", "--use-fake-ui-for-media-stream"]
        flags += [f"--use-file-for-fake-audio-capture={voice}", "--autoplay-policy=no-user-gesture-required"]
        chromium = started.chromium.launch(executable_path=CHROMIUM, args=flags)
        page = chromium.new_page()
        slow_down(page, args.slower)
        page.goto(f"{address}LICENCES.txt")
        asked = {"wave": wave.tolist(), "seconds": SPEECH_SECONDS, "threads": threads}
        engine = json.loads(page.evaluate(ENGINE, json.dumps(asked)))
        page.close()
        page = chromium.new_page()
        slow_down(page, args.slower)
        page.goto(f"{address}?threads={threads}")
        until(page, "phase === 'idle'")
        page.locator("[name=seconds]").fill("2")
        first, inside = [], []
        for _ in range(args.rounds):
            page.click("#go")
            until(page, "phase === 'recording'")
            page.wait_for_timeout(1000 * PROMPT_SECONDS)
            page.click("#go")
            until(page, "phase === 'idle' && chunks > 0 && played > 0")
            first.append(int(page.text_content("#first").split()[0]))
            inside.append(int(page.text_content("#first-server").split()[0]))
        memory = resident()
        if args.pictures:
            take_pictures(page, args.pictures)
        chromium.close()
    figures = [f"{engine['load'] / 1000:.1f}", f"{min(engine['prompt'][1:]):.2f}", f"{min(engine['speech'][1:]):.2f}"]
    figures += [f"{min(engine['chunk'][1:]):.0f}", f"{min(first)} to {max(first)}", f"{min(inside)} to {max(inside)}"]
    return " | ".join([*figures, f"{memory / 1e6:.0f}"]), engine["tokens"]


def take_pictures(page: Any, folder: Path) -> None:
    """The page after the continuation of an example: wide and light, narrow and dark."""
    page.set_viewport_size({"width": 1100, "height": 1000})
    page.get_by_text("An example").click()
    page.locator("[name=seconds]").fill("6")
    page.fill("#seed", "3")
    page.click("#go")
    until(page, "phase === 'idle' && chunks > 0")
    page.wait_for_timeout(8000)  # it has been played
    page.evaluate("scrollTo(0, 0)")
    page.screenshot(path=folder / "web-desktop.png")
    page.emulate_media(color_scheme="dark")
    page.set_viewport_size({"width": 390, "height": 1250})
    page.wait_for_timeout(1000)
    page.screenshot(path=folder / "web-phone.png")


def slow_down(page: Any, rate: float) -> None:
    if rate != 1:
        page.context.new_cdp_session(page).send("Emulation.setCPUThrottlingRate", {"rate": rate})


def until(page: Any, expression: str, seconds: float = 180) -> None:
    """Until an expression about the page's state is true. (The page's policy forbids `eval`.)"""
    end = time.monotonic() + seconds
    asked = f"(({{phase, chunks, played}}) => {expression})(window.focalstream ?? {{}})"
    while not page.evaluate(asked):
        assert time.monotonic() < end, f"{expression}: {page.text_content('#status')}"
        page.wait_for_timeout(20)


def resident() -> int:
    """Bytes of the largest renderer of Chromium."""
    sizes = [0]
    for status in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            if b"--type=renderer" in status.read_bytes():
                fields = (status.parent / "statm").read_text().split()
                sizes.append(4096 * int(fields[1]))
        except OSError:
            pass
    return max(sizes)


if __name__ == "__main__":
    main()
