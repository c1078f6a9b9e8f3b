"""`focalstream roundtrip IN.wav OUT.wav`: what a codec makes of a recording, with bitrate, speed and quality."""

from __future__ import annotations

import argparse
import json
import time

from tokenizer.commands.codec_options import add_codec_arguments, load_codec


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("input", metavar="IN.wav", help="audio file of any rate and number of channels")
    parser.add_argument("output", metavar="OUT.wav", help="16-bit WAV or FLAC at the codec's output rate")
    add_codec_arguments(parser)
    parser.add_argument("--stream", action="store_true", help="go chunk by chunk, as a live stream does")
    parser.add_argument("--threads", type=int, default=1, help="CPU threads")
    parser.add_argument("--json", action="store_true", help="print one JSON object")


def run(args: argparse.Namespace) -> int:
    import soxr
    import torch

    from tokenizer.audio import audio_format, check_output, read_audio, write_audio
    from tokenizer.errors import InputError, counted
    from tokenizer.metrics import METRICS_RATE, speech_quality, why_not_measured

    if args.threads < 1:
        raise InputError(f"--threads {args.threads}: expected at least 1")
    check_output(args.output, args.input)
    audio_format(args.output)  # before any work
    torch.set_num_threads(args.threads)
    codec = load_codec(args)
    wave = read_audio(args.input, codec.sample_rate_in)
    codec.check_length(len(wave), args.input)
    samples = torch.from_numpy(wave)[None].to(args.device)
    if args.stream:
        codec.check_causal()
    codec.decode(codec.encode(samples[:, : codec.hop_samples]))  # the first call pays for set-up
    began = time.perf_counter()
    if args.stream:
        tokens, decoded = stream(codec, samples)
    else:
        tokens = codec.encode(samples)
        decoded = codec.decode(tokens)
    elapsed = time.perf_counter() - began
    out = decoded[0].cpu().numpy()
    write_audio(args.output, out, codec.sample_rate_out)
    seconds = len(wave) / codec.sample_rate_in
    result = {
        "codec": codec.name,
        "seconds": seconds,
        "tokens": tokens.shape[1],
        "bitrate": codec.bitrate,
        "latency_ms": codec.latency_ms if codec.causal else None,  # JSON has no infinity
        "real_time_factor": seconds / elapsed,
        "streamed": args.stream,
        "threads": args.threads,
        **speech_quality(
            soxr.resample(wave, codec.sample_rate_in, METRICS_RATE),
            soxr.resample(out, codec.sample_rate_out, METRICS_RATE),
        ),
    }
    if args.json:
        print(json.dumps(result))
        return 0
    latency = f"{codec.latency_ms:g} ms" if codec.causal else "whole utterances"
    print(f"{args.output}: {seconds:.2f} s, {counted(tokens.shape[1], 'token')}, {codec.bitrate:g} bit/s, {latency}")
    print(f"{result['real_time_factor']:.1f} x real time on {args.threads} thread(s)")
    for name, measure in (("PESQ-WB", "pesq_wb"), ("STOI", "stoi"), ("ESTOI", "estoi")):
        value = result[measure]
        print(f"{name} {value:.3f}" if value is not None else f"{name} not measured: {why_not_measured()}")
    return 0


def stream(codec, samples):
    """Encode and decode [1, S] chunk by chunk: (tokens [1, T], wave [1, T * samples_per_token])."""
    import torch

    from tokenizer.chunks import regrouped
    from tokenizer.live import LiveStream

    live, tokens, waves = LiveStream(codec), [], []
    for chunk in regrouped([samples[0]], codec.chunk_samples):
        tokens.append(live.encode(chunk))
        waves.append(live.decode(tokens[-1]))
    return torch.cat(tokens)[None], torch.cat(waves)[None]
