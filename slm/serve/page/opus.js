// Opus on the wire, by WebCodecs: packets of 20 ms, each after its length as a uint16 (docs/serving.md).
const DECODED_RATE = 48000;
const SKIP = 312; // samples at 48 kHz by which decoded sound lags
const PACKET_US = 20000;
const MESSAGE_PACKETS = 25; // in a message, at most
const GATHER_MS = 40; // packets wait for each other so long: the server counts messages
const RATES = [16000, 24000, 44100, 48000]; // Hz of prompts
const decoding = { codec: "opus", sampleRate: DECODED_RATE, numberOfChannels: 1 };
const encoding = (rate) => ({ codec: "opus", sampleRate: rate, numberOfChannels: 1, bitrate: 24000, opus: { frameDuration: PACKET_US, application: "voip" } });

const supports = async (kind, config) => {
  try {
    return (await window[kind].isConfigSupported(config)).supported;
  } catch {
    return false; // also where there is no such class
  }
};

// What this browser can: { decodes, encodes: the rates of prompts in Hz }.
export async function opusAbilities() {
  const [decodes, ...can] = await Promise.all([supports("AudioDecoder", decoding), ...RATES.map((rate) => supports("AudioEncoder", encoding(rate)))]);
  return { decodes, encodes: RATES.filter((_, i) => can[i]) };
}

// A prompt. send: called with the messages, Uint8Array each.
export class OpusEncoder {
  constructor(rate, send) {
    this.rate = rate;
    this.send = send;
    this.packets = [];
    this.taken = 0;
    this.encoder = new AudioEncoder({ output: (chunk) => this.gather(chunk), error: () => {} });
    this.encoder.configure(encoding(rate));
  }

  take(samples) {
    const timestamp = (1e6 * this.taken) / this.rate;
    this.encoder.encode(new AudioData({ format: "s16", sampleRate: this.rate, numberOfFrames: samples.length, numberOfChannels: 1, timestamp, data: samples }));
    this.taken += samples.length;
  }

  // When it resolves, everything has been sent.
  async end() {
    await this.encoder.flush();
    this.post();
    this.encoder.close();
  }

  gather(chunk) {
    const packet = new Uint8Array(2 + chunk.byteLength);
    new DataView(packet.buffer).setUint16(0, chunk.byteLength, true);
    chunk.copyTo(packet.subarray(2));
    this.packets.push(packet);
    if (this.packets.length === MESSAGE_PACKETS) this.post();
    else this.timer ??= setTimeout(() => this.post(), GATHER_MS);
  }

  post() {
    clearTimeout(this.timer);
    this.timer = undefined;
    if (this.packets.length) this.send(joined(this.packets, Uint8Array));
    this.packets = [];
  }

  close() {
    clearTimeout(this.timer);
    if (this.encoder.state !== "closed") this.encoder.close();
  }
}

// The sound of a stream at `rate` Hz. Decoding takes a moment; what is called back comes in order.
export class OpusDecoder {
  constructor(rate, onError) {
    this.rate = rate;
    this.skip = SKIP / DECODED_RATE; // seconds
    this.owed = this.count = 0; // samples of tokens that were not given yet; packets
    this.waiting = [];
    this.decoder = new AudioDecoder({ output: (sound) => this.hear(sound), error: (error) => (this.close(), onError(error)) });
    this.decoder.configure(decoding);
  }

  // A message of packets, whose tokens are of `samples` samples. then(Int16Array): they lag by 6.5 ms.
  take(message, samples, then) {
    if (this.decoder.state === "closed") return;
    const packets = split(message);
    this.waiting.push({ left: packets.length, samples, parts: [], then });
    for (const data of packets) this.decoder.decode(new EncodedAudioChunk({ type: "key", timestamp: PACKET_US * this.count++, data }));
    this.deliver();
  }

  // When all before has been given.
  after(then) {
    this.waiting.push({ left: 0, samples: 0, parts: [], then });
    this.deliver();
  }

  hear(sound) {
    const decoded = new Float32Array(sound.numberOfFrames);
    sound.copyTo(decoded, { planeIndex: 0, format: "f32-planar" });
    const step = sound.sampleRate / this.rate; // nothing was encoded above half of this.rate: no filter is needed
    const first = Math.min(Math.round(this.skip * sound.sampleRate), decoded.length);
    this.skip -= first / sound.sampleRate;
    sound.close();
    const part = new Int16Array(Math.ceil((decoded.length - first) / step));
    for (let i = 0; i < part.length; i++) part[i] = Math.round(32767 * Math.max(-1, Math.min(1, decoded[first + i * step])));
    const [message] = this.waiting;
    message.parts.push(part);
    message.left--;
    this.deliver();
  }

  deliver() {
    while (this.waiting.length && !this.waiting[0].left) {
      const { samples, parts, then } = this.waiting.shift();
      this.owed += samples;
      const given = joined(parts, Int16Array).slice(0, this.owed);
      this.owed -= given.length;
      then(given);
    }
  }

  // Nothing is called back any more.
  close() {
    this.waiting = [];
    if (this.decoder.state !== "closed") this.decoder.close();
  }
}

function split(message) {
  const view = new DataView(message.buffer, message.byteOffset, message.byteLength);
  const packets = [];
  for (let at = 0, size; at < message.length; at += 2 + size) {
    size = view.getUint16(at, true);
    packets.push(message.subarray(at + 2, at + 2 + size));
  }
  return packets;
}

function joined(parts, Kind) {
  const whole = new Kind(parts.reduce((sum, part) => sum + part.length, 0));
  let at = 0;
  for (const part of parts) {
    whole.set(part, at);
    at += part.length;
  }
  return whole;
}
