import { InputError } from "./input_error.js";
import { RandomStream } from "./random_stream.js";
import { draw, Sampling } from "./sampling.js";

const PIECE = 8; // chunks of a prompt at once

/**
 * @typedef {object} Limits
 * @property {number} [seed] the same seed gives the same continuation
 * @property {number} [minSeconds] shortest new speech; the model may not end it earlier
 * @property {number} [maxSeconds] longest new speech; without it: until the model ends it. Both are rounded up to chunks
 */

/**
 * Speech: codes, and their audio at codec.sampleRateOut.
 * @typedef {{ codes: Int32Array, audio: Float32Array }} Sound
 */

/**
 * One continuation of one prompt, as `slm.generation.continuation` makes it.
 *
 * The prompt is processed while it is spoken: when it ends, the model has already read it. The decoder has processed
 * the prompt before the first new codes, so the transition has no seam. A partial chunk at the prompt's end is dropped.
 */
export class Continuation {
  /**
   * @param {import("./codec.js").Codec} codec
   * @param {import("./language_model.js").LanguageModel} model
   * @param {import("./sampling.js").SamplingOptions} [sampling]
   * @param {Limits} [limits]
   * @throws {InputError} the codec is not the model's, or a value is out of range
   */
  constructor(codec, model, sampling = {}, limits = {}) {
    const { seed = 0, minSeconds = 0, maxSeconds = Infinity } = limits;
    if (!Number.isSafeInteger(seed) || seed < 0) throw new InputError(`seed is ${seed}; expected a whole number from 0 on`);
    if (!(minSeconds >= 0 && maxSeconds > 0)) throw new InputError(`from ${minSeconds} to ${maxSeconds} s of speech; expected more`);
    if (codec.manifest.fingerprint !== model.manifest.codec_fingerprint) {
      throw new InputError("the language model was trained on codes of another codec than this one");
    }
    this.codec = codec;
    this.model = model;
    this.sampling = new Sampling(sampling);
    this.random = new RandomStream(seed);
    this.least = codec.tokensFor(minSeconds);
    this.most = maxSeconds === Infinity ? Infinity : codec.tokensFor(maxSeconds);
    this.state = codec.initState();
    this.cache = model.makeCache();
    /** @type {Float32Array} */
    this.waiting = new Float32Array(0); // samples of the prompt that are not a whole chunk yet
    this.promptChunks = 0;
    this.endedByModel = false;
    /** @type {Float32Array} */
    this.logits = new Float32Array(0); // of what follows the prompt and the codes so far
  }

  /**
   * More of the prompt.
   *
   * @param {Float32Array} samples at codec.sampleRateIn, any number
   * @returns {Promise<Sound>} the prompt's next codes, and the prompt decoded from them; empty before a chunk is full
   */
  async feed(samples) {
    const { codec, model } = this;
    const joined = new Float32Array(this.waiting.length + samples.length);
    joined.set(this.waiting);
    joined.set(samples, this.waiting.length);
    const whole = joined.length - (joined.length % codec.chunkSamples);
    this.waiting = joined.slice(whole);
    const codes = [];
    const audio = [];
    for (let at = 0; at < whole; at += PIECE * codec.chunkSamples) {
      const encoded = await codec.encodeStep(joined.slice(at, Math.min(whole, at + PIECE * codec.chunkSamples)), this.state);
      const decoded = await codec.decodeStep(encoded.tokens, encoded.state);
      const begin = this.promptChunks ? [] : [model.manifest.ids.bos];
      this.logits = await model.step([...begin, ...encoded.tokens].map((code, i) => (i < begin.length ? code : this.id(code))), this.cache);
      this.state = decoded.state;
      this.promptChunks += encoded.tokens.length / codec.tokensPerChunk;
      codes.push(...encoded.tokens);
      audio.push(...decoded.samples);
    }
    return { codes: Int32Array.from(codes), audio: Float32Array.from(audio) };
  }

  /**
   * The new speech, chunk by chunk; can be iterated once. The last chunk may be shorter.
   *
   * @returns {AsyncGenerator<Sound>}
   * @throws {InputError} the prompt is shorter than a chunk
   */
  async *chunks() {
    const { codec } = this;
    if (!this.promptChunks) throw new InputError(`the prompt is shorter than a chunk of ${codec.chunkSamples} samples; better a few seconds`);
    let codes = [];
    for await (const code of this.codes()) {
      codes.push(code);
      if (codes.length < codec.tokensPerChunk) continue;
      yield this.decoded(codes);
      codes = [];
    }
    if (codes.length) yield this.decoded(codes);
  }

  /** The new codes, one by one. @returns {AsyncGenerator<number>} */
  async *codes() {
    const { ids, codebook_size: size } = this.model.manifest;
    const recent = new Array(this.sampling.repetitionWindow).fill(ids.pad);
    const silent = new Set(this.codec.manifest.silent_codes);
    let silences = 0; // silent codes up to here
    for (let step = 0; step < this.most; step++) {
      const scores = Float64Array.from(this.logits.subarray(0, ids.first_code + size));
      const end = scores[ids.eos];
      scores.fill(-Infinity, 0, ids.first_code);
      if (step >= this.least) scores[ids.eos] = end;
      if (this.sampling.silenceLimit && silences >= this.sampling.silenceLimit) for (const code of silent) scores[this.id(code)] = -Infinity;
      const id = draw(scores, this.sampling, recent, this.random);
      if (id === ids.eos) {
        this.endedByModel = true;
        return;
      }
      silences = silent.has(id - ids.first_code) ? silences + 1 : 0;
      yield id - ids.first_code;
      recent[(step + 1) % recent.length] = id;
      if (step + 1 < this.most) this.logits = await this.model.step([id], this.cache);
    }
  }

  /** @param {number[]} codes @returns {Promise<Sound>} */
  async decoded(codes) {
    const { samples, state } = await this.codec.decodeStep(this.codec.wholeTokens(codes), this.state);
    this.state = state;
    return { codes: Int32Array.from(codes), audio: samples.slice(0, codes.length * this.codec.samplesPerToken) };
  }

  /** @param {number} code */
  id(code) {
    return code + this.model.manifest.ids.first_code;
  }
}
