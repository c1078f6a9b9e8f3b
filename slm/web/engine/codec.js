import { InputError } from "./input_error.js";
import { StepRunner } from "./step_runner.js";

const PIECE = 16; // chunks of one step when a whole utterance is processed
export const NO_TOKEN = -1;

/**
 * The state of a live stream; the two directions advance separately.
 * @typedef {{ encoder: import("./step_runner.js").StepState, decoder: import("./step_runner.js").StepState }} CodecState
 */

/**
 * What the manifest says of a codec: names, rates (Hz, tokens a second, bits a second) and sizes (samples, tokens).
 * @typedef {object} CodecManifest
 * @property {string} name
 * @property {string} fingerprint
 * @property {string} precision
 * @property {number} sample_rate_in
 * @property {number} sample_rate_out
 * @property {number} chunk_samples
 * @property {number} tokens_per_chunk
 * @property {number} samples_per_token
 * @property {number} hop_samples
 * @property {number} token_rate
 * @property {number} codebook_size
 * @property {number} bitrate
 * @property {import("./step_runner.js").StateSpec[]} encode_states
 * @property {import("./step_runner.js").StateSpec[]} decode_states
 */

/** A streaming speech codec: audio to tokens and back, chunk by chunk. */
export class Codec {
  /**
   * @param {CodecManifest} manifest
   * @param {import("./graph.js").Graph} encoder
   * @param {import("./graph.js").Graph} decoder
   */
  constructor(manifest, encoder, decoder) {
    this.manifest = manifest;
    this.sampleRateIn = manifest.sample_rate_in; // Hz
    this.sampleRateOut = manifest.sample_rate_out; // Hz
    this.chunkSamples = manifest.chunk_samples; // input samples of a chunk, the unit of streaming
    this.tokensPerChunk = manifest.tokens_per_chunk;
    this.samplesPerToken = manifest.samples_per_token; // output samples
    this.tokenRate = manifest.token_rate; // tokens a second
    this.codebookSize = manifest.codebook_size;
    this.encoder = new StepRunner(encoder, manifest.encode_states, "tokens");
    this.decoder = new StepRunner(decoder, manifest.decode_states, "wave");
  }

  /** @returns {CodecState} of a stream that has not begun */
  initState() {
    return { encoder: this.encoder.initState(), decoder: this.decoder.initState() };
  }

  /**
   * The next chunks of a stream to tokens.
   *
   * @param {Float32Array} samples [n * chunkSamples] in [-1, 1] at sampleRateIn
   * @param {CodecState} state stays as it is
   * @returns {Promise<{ tokens: Int32Array, state: CodecState }>} tokens [n * tokensPerChunk]
   * @throws {InputError} for samples that are not whole chunks
   */
  async encodeStep(samples, state) {
    const chunks = wholeChunks(samples.length, this.chunkSamples, "encodeStep", "samples");
    const wave = this.encoder.graph.floats(samples, [1, samples.length]);
    const [tokens, encoder] = await this.encoder.step({ wave }, chunks, state.encoder);
    return { tokens: Int32Array.from(tokens.data, Number), state: { ...state, encoder } };
  }

  /**
   * The next tokens of a stream to samples.
   *
   * @param {ArrayLike<number>} tokens [n * tokensPerChunk]; -1 stands for none, at the end
   * @param {CodecState} state stays as it is
   * @returns {Promise<{ samples: Float32Array, state: CodecState }>} [tokens * samplesPerToken] at sampleRateOut
   * @throws {InputError} for tokens that are not whole chunks or that the codebook does not have
   */
  async decodeStep(tokens, state) {
    const chunks = wholeChunks(tokens.length, this.tokensPerChunk, "decodeStep", "tokens");
    const wrong = Array.prototype.find.call(tokens, (token) => !(token >= NO_TOKEN && token < this.codebookSize));
    if (wrong !== undefined) throw new InputError(`decodeStep: token ${wrong}; expected 0 to ${this.codebookSize - 1}`);
    const given = this.decoder.graph.integers(tokens, [1, tokens.length]);
    const [wave, decoder] = await this.decoder.step({ tokens: given }, chunks, state.decoder);
    return { samples: wave.data, state: { ...state, decoder } };
  }

  /**
   * A whole utterance to tokens.
   *
   * @param {Float32Array} wave [S] at sampleRateIn
   * @returns {Promise<Int32Array>} one token for each hop of which a sample is there, at least one
   */
  async encode(wave) {
    const padded = new Float32Array(Math.max(1, Math.ceil(wave.length / this.chunkSamples)) * this.chunkSamples);
    padded.set(wave);
    const found = [];
    const size = PIECE * this.chunkSamples;
    for (let at = 0, state = this.initState(); at < padded.length; at += size) {
      const step = await this.encodeStep(padded.slice(at, at + size), state);
      found.push(...step.tokens);
      state = step.state;
    }
    return Int32Array.from(found.slice(0, Math.max(1, Math.ceil(wave.length / this.manifest.hop_samples))));
  }

  /**
   * Tokens of a whole utterance to samples.
   *
   * @param {ArrayLike<number>} tokens [T]
   * @returns {Promise<Float32Array>} [T * samplesPerToken] at sampleRateOut
   */
  async decode(tokens) {
    const padded = this.wholeTokens(tokens);
    const wave = new Float32Array(padded.length * this.samplesPerToken);
    const size = PIECE * this.tokensPerChunk;
    for (let at = 0, state = this.initState(); at < padded.length; at += size) {
      const step = await this.decodeStep(padded.slice(at, at + size), state);
      wave.set(step.samples, at * this.samplesPerToken);
      state = step.state;
    }
    return wave.slice(0, tokens.length * this.samplesPerToken);
  }

  /**
   * Tokens of at least `seconds` of audio: a whole number of chunks, rounded up.
   * @param {number} seconds
   */
  tokensFor(seconds) {
    // The small offset absorbs rounding of the division: 0.8 s are ten chunks of 80 ms.
    return Math.ceil((seconds * this.tokenRate) / this.tokensPerChunk - 1e-9) * this.tokensPerChunk;
  }

  /**
   * Tokens filled up with -1 to whole chunks.
   * @param {ArrayLike<number>} tokens
   */
  wholeTokens(tokens) {
    const padded = new Int32Array(Math.ceil(tokens.length / this.tokensPerChunk) * this.tokensPerChunk).fill(NO_TOKEN);
    padded.set(tokens);
    return padded;
  }
}

/** @param {number} length @param {number} chunk @param {string} method @param {string} what */
function wholeChunks(length, chunk, method, what) {
  if (length > 0 && length % chunk === 0) return length / chunk;
  throw new InputError(`${method}: ${length} ${what}; expected a multiple of ${chunk}, a chunk`);
}
