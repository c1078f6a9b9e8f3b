// From the logits of a step to the next id: `slm.generation.sampling` in JavaScript, for one stream. All of it is in
// float64, and takes the same filters in the same order, so that a seed draws the same ids as in Python.
import { InputError } from "./input_error.js";

/**
 * How the next token is sampled. Filters apply in the order of these fields.
 *
 * @typedef {object} SamplingOptions
 * @property {number} [repetitionPenalty] multiplies the log-probabilities of recent codes; 1: off
 * @property {number} [repetitionWindow] codes that count as recent
 * @property {number} [temperature] 0: always the most likely
 * @property {number} [topK] keep the k most likely; 0: off
 * @property {number} [topP] keep the most likely that together reach this probability; 1: off
 * @property {number} [minP] keep those with at least this share of the highest probability; 0: off
 * @property {number} [silenceLimit] silent codes in a row, at most; 0: off. `Continuation` keeps it
 */

/** @type {Record<string, [number, (v: number) => boolean, string]>} */
const FIELDS = {
  repetitionPenalty: [1, (v) => v >= 1 && v < Infinity, "at least 1, and finite"],
  repetitionWindow: [50, (v) => Number.isInteger(v) && v >= 1, "a whole number, at least 1"],
  temperature: [1, (v) => v >= 0 && v < Infinity, "at least 0, and finite"],
  topK: [0, (v) => Number.isInteger(v) && v >= 0, "a whole number, at least 0"],
  topP: [1, (v) => v > 0 && v <= 1, "more than 0, at most 1"],
  minP: [0, (v) => v >= 0 && v <= 1, "0 to 1"],
  silenceLimit: [0, (v) => Number.isInteger(v) && v >= 0, "a whole number, at least 0"],
};

/** The filters with their defaults filled in, and checked. */
export class Sampling {
  /**
   * @param {SamplingOptions} [options]
   * @throws {InputError} for a value out of range and for a name that is none of them
   */
  constructor(options = {}) {
    /** @type {Record<string, any>} */
    const given = options;
    const unknown = Object.keys(given).find((name) => !(name in FIELDS));
    if (unknown) throw new InputError(`sampling: unknown option ${unknown}; known are ${Object.keys(FIELDS).join(", ")}`);
    /** @type {number} */ this.repetitionPenalty;
    /** @type {number} */ this.repetitionWindow;
    /** @type {number} */ this.temperature;
    /** @type {number} */ this.topK;
    /** @type {number} */ this.topP;
    /** @type {number} */ this.minP;
    /** @type {number} */ this.silenceLimit;
    for (const [name, [usual, fits, expected]] of Object.entries(FIELDS)) {
      const value = given[name] ?? usual;
      if (!fits(value)) throw new InputError(`${name} is ${value}; expected ${expected}`);
      Object.assign(this, { [name]: value });
    }
  }
}

/**
 * Draw one of the ids whose logits these are.
 *
 * @param {Float64Array} scores [V] logits, -Infinity for what may not be drawn; overwritten
 * @param {Sampling} sampling
 * @param {Iterable<number>} recent ids that the repetition penalty is for
 * @param {import("./random_stream.js").RandomStream} random gives one number
 * @returns {number} an index in `scores`
 */
export function draw(scores, sampling, recent, random) {
  filter(scores, sampling, recent);
  // Inverse of the cumulative distribution: an id of probability 0 has an empty interval and is never drawn.
  for (let i = 1; i < scores.length; i++) scores[i] += scores[i - 1];
  const drawn = random.uniform() * scores[scores.length - 1];
  let [low, high] = [0, scores.length];
  while (low < high) {
    const middle = (low + high) >> 1;
    if (scores[middle] <= drawn) low = middle + 1;
    else high = middle;
  }
  return low;
}

/**
 * Logits to probabilities after all filters, in place; they need not sum to 1.
 * @param {Float64Array} scores
 * @param {Sampling} sampling
 * @param {Iterable<number>} recent
 */
function filter(scores, sampling, recent) {
  const highest = scores.reduce((most, score) => Math.max(most, score), -Infinity);
  const norm = Math.log(scores.reduce((sum, score) => sum + Math.exp(score - highest), 0));
  for (let i = 0; i < scores.length; i++) scores[i] = scores[i] - highest - norm;
  if (sampling.repetitionPenalty !== 1) for (const id of new Set(recent)) scores[id] *= sampling.repetitionPenalty;
  const top = scores.reduce((most, score) => Math.max(most, score), -Infinity);
  if (sampling.temperature === 0) {
    const likeliest = scores.indexOf(top);
    scores.fill(0)[likeliest] = 1;
    return;
  }
  // Relative to the highest score, so that a temperature near 0 does not make all scores minus infinity.
  let sum = 0;
  for (let i = 0; i < scores.length; i++) sum += scores[i] = Math.exp((scores[i] - top) / sampling.temperature);
  for (let i = 0; i < scores.length; i++) scores[i] /= sum;
  if (sampling.topK > 0 && sampling.topK < scores.length) dropBelow(scores, descending(scores)[sampling.topK - 1]);
  if (sampling.topP < 1) {
    const ranked = descending(scores);
    const wanted = sampling.topP * ranked.reduce((total, probability) => total + probability, 0);
    // An id is kept if the ids before it have not reached top_p, so the first always is.
    let [kept, before] = [0, 0];
    while (kept < ranked.length && before < wanted) before += ranked[kept++];
    dropBelow(scores, ranked[kept - 1]);
  }
  if (sampling.minP > 0) dropBelow(scores, sampling.minP * scores.reduce((most, score) => Math.max(most, score)));
}

/** @param {Float64Array} values */
function descending(values) {
  return values.slice().sort().reverse(); // typed arrays sort as numbers
}

/** @param {Float64Array} values @param {number} least */
function dropBelow(values, least) {
  for (let i = 0; i < values.length; i++) if (values[i] < least) values[i] = 0;
}
