"""The metrics of one server for /metrics: Prometheus counters, gauges and histograms."""

from __future__ import annotations

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

from slm.serve.messages import Done, Sound

SECONDS = (0.01, 0.02, 0.04, 0.06, 0.08, 0.1, 0.15, 0.2, 0.3, 0.5, 1.0, 2.0, 5.0)


class ServerMetrics:
    """The figures; each server has a registry of its own."""

    def __init__(self) -> None:
        self._registry = registry = CollectorRegistry()
        self.connections = Gauge("focalstream_connections", "WebSockets that are open", registry=registry)
        self.streams = Gauge("focalstream_streams", "streams and jobs open, queued ones too", registry=registry)
        self.refused = Counter("focalstream_refused", "what was refused", ["reason"], registry=registry)
        self._done = Counter("focalstream_streams_done", "streams and jobs that ended", ["reason"], registry=registry)
        self._chunks = Counter("focalstream_chunks", "chunks of new speech", registry=registry)
        self._missed = Counter("focalstream_chunks_late", "of them, those after their deadline", registry=registry)
        self._step = Histogram(
            "focalstream_step_seconds", "computing time of a chunk's step", buckets=SECONDS, registry=registry
        )
        self._first_audio = Histogram(
            "focalstream_first_audio_seconds", "prompt's end to first chunk", buckets=SECONDS, registry=registry
        )

    def speech(self, sound: Sound) -> None:
        """Count a chunk of new speech."""
        self._chunks.inc()
        self._step.observe(sound.step_ms / 1000)
        if sound.late_ms > 0:
            self._missed.inc()

    def done(self, done: Done) -> None:
        """Count a stream or job that ended."""
        self._done.labels(done.reason).inc()
        if done.first_audio_ms is not None:
            self._first_audio.observe(done.first_audio_ms / 1000)

    def text(self) -> bytes:
        """All metrics in Prometheus' text format."""
        return generate_latest(self._registry)
