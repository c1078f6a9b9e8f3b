// The protocol of docs/serving.md: one WebSocket, reconnected when it is lost.
import { OpusDecoder, OpusEncoder } from "./opus.js";

const VERSION = 1;
const AGAIN_MS = [500, 1000, 2000, 4000, 8000]; // waits between attempts; the last one repeats
const FATAL = new Set([4401, 4429]); // close codes after which reconnecting would not help
const REFUSALS = new Set(["bad_request", "busy", "stopping", "too_many_starts"]); // of a start: this error replaces the done
const OF_A_STREAM = new Set([...REFUSALS, "not_ready", "prompt_too_long", "prompt_timeout"]); // errors after which the connection goes on
const FRAME_SAMPLES = 16000; // of a prompt in one message

export class Connection {
  // on: { hello, queued, ready, sound, done, error, lost }, each a function of one message.
  // opusOf(rate): { sound, prompt }, whether the next stream's sound, and its prompt of that rate, are Opus.
  constructor(url, on, opusOf) {
    this.url = url;
    this.on = on;
    this.opusOf = opusOf;
    this.attempts = 0;
  }

  open(token) {
    this.token = token;
    this.endOpus();
    this.streaming = false; // a stream has started and has neither ended nor been cancelled
    this.cancelled = 0; // cancelled streams whose end has not arrived yet
    const socket = (this.socket = new WebSocket(this.url));
    const current = () => socket === this.socket; // an old socket may close after the next has opened
    socket.binaryType = "arraybuffer";
    socket.onopen = () => this.tell({ type: "hello", version: VERSION, ...(token ? { token } : {}) });
    socket.onmessage = ({ data }) => current() && (typeof data === "string" ? this.hear(JSON.parse(data)) : this.hearSound(data));
    socket.onclose = ({ code, reason }) => {
      if (!current()) return;
      const again = !FATAL.has(code);
      this.on.lost({ code, reason, again });
      if (again) setTimeout(() => current() && this.open(this.token), AGAIN_MS[Math.min(this.attempts++, AGAIN_MS.length - 1)]);
    };
  }

  start(settings) {
    this.streaming = true;
    this.endOpus();
    const opus = this.opusOf(settings.rate);
    if (opus.sound) this.decoder = new OpusDecoder(this.models.sample_rate_out, ({ message }) => this.on.error({ code: "opus", message, isEnd: false }));
    if (opus.prompt) this.encoder = new OpusEncoder(settings.rate, (message) => this.isOpen && this.socket.send(message));
    const formats = { sound_format: opus.sound ? "opus" : "pcm", prompt_format: opus.prompt ? "opus" : "pcm" };
    this.tell({ type: "start", ...settings, ...formats });
  }

  endOpus() {
    this.encoder?.close();
    this.decoder?.close();
    this.encoder = this.decoder = null;
  }

  cancel() {
    this.endOpus();
    if (!this.streaming) return;
    this.streaming = false;
    this.cancelled++;
    this.tell({ type: "cancel" });
  }

  // The server answers every start with one end: a done, or an error that refuses it. Messages arrive in order, so until the
  // end of a cancelled stream arrives, all messages belong to that stream and are ignored, even if the next has started.
  // (Counting cancels is not enough: the server does not answer a cancel that crosses the end of its stream.)
  hear(message) {
    const { type, code } = message;
    if (type === "hello") {
      this.attempts = 0;
      this.models = message.models;
    }
    const isEnd = type === "done" || (type === "error" && REFUSALS.has(code));
    if (this.cancelled && (type !== "error" || OF_A_STREAM.has(code))) {
      if (isEnd) this.cancelled--;
      return;
    }
    if (isEnd) this.streaming = false;
    const act = () => this.on[type]?.({ ...message, isEnd });
    if (isEnd && this.decoder) this.decoder.after(act);
    else act();
  }

  hearSound(data) {
    if (this.cancelled) return;
    const { isNew, isOpus, codes, sound } = unpack(data);
    if (!isOpus) return this.on.sound({ isNew, codes, samples: new Int16Array(sound.buffer, sound.byteOffset) });
    this.decoder?.take(sound, codes.length * this.models.samples_per_token, (samples) => this.on.sound({ isNew, codes, samples }));
  }

  get isOpen() {
    return this.socket?.readyState === WebSocket.OPEN;
  }

  tell(message) {
    const { encoder } = this;
    if (message.type === "continue" && encoder) encoder.end().then(() => encoder === this.encoder && this.write(message), () => {});
    else this.write(message);
  }

  write(message) {
    if (this.isOpen) this.socket.send(JSON.stringify(message));
  }

  send(samples) {
    if (this.encoder) return this.encoder.take(samples);
    for (let at = 0; this.isOpen && at < samples.length; at += FRAME_SAMPLES) this.socket.send(samples.slice(at, at + FRAME_SAMPLES));
  }
}

// Frame: kind (1 prompt, 2 speech), format (0 PCM, 1 Opus), uint16 number of codes, uint32 sequence, codes uint16, sound.
function unpack(buffer) {
  const view = new DataView(buffer);
  const count = view.getUint16(2, true);
  return { isNew: view.getUint8(0) === 2, isOpus: view.getUint8(1) === 1, codes: new Uint16Array(buffer, 8, count), sound: new Uint8Array(buffer, 8 + 2 * count) };
}
