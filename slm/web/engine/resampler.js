import { InputError } from "./input_error.js";

const REACH = 40; // zero crossings of the sinc on each side
const BETA = 9; // of the Kaiser window: what folds back is 90 dB down
const PASSED = 0.92; // of the lower rate's band

/** Audio from one sample rate to another, block by block, by a windowed sinc; the blocks may have any length. */
export class Resampler {
  /**
   * @param {number} from Hz
   * @param {number} to Hz
   * @throws {InputError} for rates that are no whole numbers of Hz
   */
  constructor(from, to) {
    if (![from, to].every((rate) => Number.isInteger(rate) && rate > 0)) throw new InputError(`from ${from} to ${to} Hz; expected whole numbers`);
    const shared = divisor(from, to);
    this.step = from / shared; // an output sample is step / phases input samples after the one before
    this.phases = to / shared;
    const cutoff = PASSED * Math.min(1, to / from); // of half the input's rate
    this.reach = Math.ceil(REACH / cutoff);
    /** @type {Map<number, Float64Array>} weights of the samples around an output sample, by its phase */
    this.weights = new Map();
    this.weightsOf = (/** @type {number} */ phase) => {
      const made = this.weights.get(phase) ?? taps(phase / this.phases, this.reach, cutoff);
      this.weights.set(phase, made);
      return made;
    };
    this.held = new Float32Array(this.reach); // input samples that are still needed, from `first` on
    this.first = -this.reach;
    this.made = 0; // output samples
  }

  /**
   * @param {Float32Array} samples the next
   * @returns {Float32Array} what they complete; an output sample waits for the half width of the filter
   */
  next(samples) {
    if (this.step === this.phases) return samples;
    const held = new Float32Array(this.held.length + samples.length);
    held.set(this.held);
    held.set(samples, this.held.length);
    const end = this.first + held.length;
    const found = [];
    for (;;) {
      const place = this.made * this.step;
      const whole = Math.floor(place / this.phases);
      if (whole + this.reach >= end) break;
      const weights = this.weightsOf(place % this.phases);
      const begin = whole - this.reach + 1 - this.first;
      let sum = 0;
      for (let i = 0; i < weights.length; i++) sum += weights[i] * held[begin + i];
      found.push(sum);
      this.made++;
    }
    const needed = Math.floor((this.made * this.step) / this.phases) - this.reach + 1;
    this.held = held.slice(Math.max(0, needed - this.first));
    this.first = Math.max(this.first, needed);
    return Float32Array.from(found);
  }

  /** What is left at the end. */
  flush() {
    return this.step === this.phases ? new Float32Array(0) : this.next(new Float32Array(this.reach));
  }
}

/** @param {number} a @param {number} b @returns {number} the largest that divides both */
function divisor(a, b) {
  return b ? divisor(b, a % b) : a;
}

/**
 * Weights of the samples -reach + 1 .. reach around a place `fraction` after sample 0; they add up to 1.
 * @param {number} fraction
 * @param {number} reach
 * @param {number} cutoff
 */
function taps(fraction, reach, cutoff) {
  const weights = Float64Array.from({ length: 2 * reach }, (_, i) => {
    const x = i - reach + 1 - fraction;
    const inside = 1 - (x / reach) ** 2;
    return inside <= 0 ? 0 : sinc(cutoff * x) * bessel(BETA * Math.sqrt(inside));
  });
  const sum = weights.reduce((total, weight) => total + weight, 0);
  return weights.map((weight) => weight / sum);
}

const sinc = (/** @type {number} */ x) => (x === 0 ? 1 : Math.sin(Math.PI * x) / (Math.PI * x));

/** The modified Bessel function of the first kind, order 0. @param {number} x */
function bessel(x) {
  let [sum, term] = [1, 1];
  for (let k = 1; term > 1e-12 * sum; k++) sum += term *= (x / (2 * k)) ** 2;
  return sum;
}
