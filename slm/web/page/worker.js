// The models, off the page's thread: one stream at a time, its prompt processed while it is spoken.
import { Continuation, loadModels, Resampler } from "../engine/index.js";

const LEAD_SECONDS = 1; // how far speech is computed ahead of a listener who began to play at its first chunk
const LIMITS = { prompt_seconds: 30, speech_seconds: 120 };
const WARM_UP_CHUNKS = 8; // of silence, in one piece and one by one: WebAssembly gets fast once it has run a while
const WARM_UP_SECONDS = 0.5; // of speech after them
const PIECE_CHUNKS = 8; // of a prompt at once
const turn = new MessageChannel(); // a message to ourselves: those of the page come before the next step
const pause = () => new Promise((go) => ((turn.port1.onmessage = go), turn.port2.postMessage(0)));

let loaded; // { codec, model, manifest, threads }
let stream = null; // the current one, { number, continuation, resampler, waiting, ended, wake }

self.onmessage = ({ data }) => ({ load, start, audio, continue: endPrompt, cancel })[data.type](data);

async function load({ address, threads }) {
  try {
    const onProgress = (done, all) => tell("progress", { text: `Loading … ${(done / 1e6).toFixed(1)} of ${(all / 1e6).toFixed(1)} MB` });
    loaded = await loadModels(address, { threads, cache: await cacheName(address), onProgress });
    await warmUp();
    tell("hello", { models: described(), limits: LIMITS });
  } catch (error) {
    self.postMessage({ type: "failed", message: error.message });
  }
}

// As the service worker calls it; none where the browser has no such cache.
async function cacheName(address) {
  const { content } = await fetch(address).then((answer) => answer.json()).catch(() => ({})); // loading says what is wrong
  return self.caches && content ? `focalstream-${content}` : undefined;
}

async function warmUp() {
  const trial = new Continuation(loaded.codec, loaded.model, {}, { maxSeconds: WARM_UP_SECONDS, minSeconds: WARM_UP_SECONDS });
  const { chunkSamples } = loaded.codec;
  await trial.feed(new Float32Array(WARM_UP_CHUNKS * chunkSamples));
  for (let i = 0; i < WARM_UP_CHUNKS; i++) await trial.feed(new Float32Array(chunkSamples));
  for await (const _ of trial.chunks());
}

function described() {
  const { codec, lm } = loaded.manifest;
  const threads = loaded.threads === 1 ? "one thread" : `${loaded.threads} threads`;
  return {
    ...codec,
    codec: codec.name,
    chunk_ms: (1000 * codec.chunk_samples) / codec.sample_rate_in,
    engine: `onnxruntime-web ${loaded.manifest.runtime.version} with ${threads},`,
    lm: lm.name,
    lm_parameters: lm.parameters,
    context_seconds: lm.context / codec.token_rate,
  };
}

function start({ stream: number, rate, seed, seconds, min_seconds, ...sampling }) {
  cancel();
  const { codec, model } = loaded;
  try {
    const { temperature, top_p: topP, top_k: topK, min_p: minP, repetition_penalty: repetitionPenalty, silence_limit: silenceLimit } = sampling;
    const continuation = new Continuation(codec, model, { temperature, topP, topK, minP, repetitionPenalty, silenceLimit }, { seed, minSeconds: min_seconds, maxSeconds: seconds });
    stream = { number, continuation, resampler: new Resampler(rate, codec.sampleRateIn), waiting: [], ended: 0 };
  } catch (error) {
    return self.postMessage({ type: "error", code: "bad_request", message: error.message, stream: number });
  }
  tell("ready");
  run(stream);
}

function audio({ stream: number, samples }) {
  if (stream?.number !== number || stream.ended) return;
  stream.waiting.push(stream.resampler.next(Float32Array.from(samples, (sample) => sample / 32768)));
  stream.wake?.();
}

function endPrompt({ stream: number }) {
  if (stream?.number !== number || stream.ended) return;
  stream.waiting.push(stream.resampler.flush());
  stream.ended = performance.now();
  stream.wake?.();
}

function cancel() {
  stream?.wake?.();
  stream = null;
}

// The whole of one stream; ends early when another has taken its place.
async function run(mine) {
  try {
    await hearPrompt(mine);
    if (mine === stream) await speak(mine);
  } catch (error) {
    if (mine !== stream) return;
    tell("error", { code: "failed", message: error.message });
    stream = null;
  }
}

async function hearPrompt(mine) {
  while (mine === stream && !(mine.ended && !mine.waiting.length)) {
    if (!mine.waiting.length) await new Promise((wake) => (mine.wake = wake));
    else await hearPiece(mine);
  }
}

// A few chunks at a time, so that a cancel is not kept waiting by a long file.
async function hearPiece(mine) {
  const piece = mine.waiting.shift();
  const size = PIECE_CHUNKS * loaded.codec.chunkSamples;
  if (piece.length > size) mine.waiting.unshift(piece.subarray(size));
  const { codes, audio: sound } = await mine.continuation.feed(piece.subarray(0, size));
  if (mine === stream && codes.length) tell("sound", { isNew: false, codes, samples: pcm(sound) });
  await pause();
}

async function speak(mine) {
  const { codec } = loaded;
  if (!mine.continuation.promptChunks) return done(mine, { reason: "no prompt" });
  let [began, first, codes, late] = [0, null, 0, 0];
  for await (const { codes: fresh, audio: sound } of mine.continuation.chunks()) {
    if (mine !== stream) return;
    tell("sound", { isNew: true, codes: fresh, samples: pcm(sound) });
    const now = performance.now();
    began ||= now;
    first ??= now - mine.ended;
    if (now > began + (1000 * codes) / codec.tokenRate) late++;
    codes += fresh.length;
    const ahead = began / 1000 + codes / codec.tokenRate - performance.now() / 1000;
    if (ahead > LEAD_SECONDS) await new Promise((go) => setTimeout(go, 1000 * (ahead - LEAD_SECONDS)));
    else await pause();
    if (mine !== stream) return;
  }
  done(mine, { reason: mine.continuation.endedByModel ? "ended" : "length", first_audio_ms: first, late_chunks: late });
}

function done(mine, values) {
  if (mine === stream) tell("done", values);
  stream = null;
}

function tell(type, values = {}) {
  self.postMessage({ type, ...values, ...(stream ? { stream: stream.number } : {}) });
}

function pcm(wave) {
  return Int16Array.from(wave, (value) => Math.round(32767 * Math.max(-1, Math.min(1, value))));
}
