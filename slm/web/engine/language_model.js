import { InputError } from "./input_error.js";

/**
 * What the manifest says of a language model; sizes as in `slm.onnx_engine.manifest`, ids as in `slm.vocabulary`.
 * @typedef {object} ModelManifest
 * @property {string} name
 * @property {string} precision
 * @property {number} parameters
 * @property {number} context tokens that a token sees, itself included
 * @property {number} layers
 * @property {number} heads
 * @property {number} kv_heads
 * @property {number} head_width
 * @property {number} rope_theta
 * @property {number} vocabulary_size
 * @property {{ pad: number, bos: number, eos: number, first_code: number }} ids
 * @property {number} codebook_size
 * @property {string} codec_fingerprint
 */

const FIRST_SLOTS = 64;

/**
 * The state of one generating stream, written by each step: a ring of the latest keys and values. It begins small, because
 * each step copies all of it, and is a ring once it has its full size.
 */
class Cache {
  /** @param {ModelManifest} shape @param {number} longestWrite tokens that are taken in at once */
  constructor(shape, longestWrite) {
    this.shape = shape;
    this.longestWrite = longestWrite;
    this.position = 0; // tokens taken in
    this.capacity = 0; // slots that can be read; one more is for padding, which is unused here
    /** @type {Float32Array[]} keys [G, K, C + 1] and values [G, C + 1, K] of each layer, by turns */
    this.arrays = Array.from({ length: 2 * shape.layers }, () => new Float32Array(shape.kv_heads * shape.head_width));
    this.grow(FIRST_SLOTS);
  }

  /**
   * Make room for the first `slots` tokens, if it is less than the full size; what is held stays in its slots.
   * @param {number} slots
   */
  grow(slots) {
    const { head_width: width, kv_heads: groups, context } = this.shape;
    const full = context + this.longestWrite;
    if (this.capacity === full || slots <= this.capacity) return;
    const before = this.capacity + 1;
    this.capacity = Math.min(full, Math.max(slots, 2 * this.capacity));
    const after = this.capacity + 1;
    this.arrays = this.arrays.map((array, i) => {
      const [rows, size] = i % 2 ? [groups, width] : [groups * width, 1];
      const grown = new Float32Array(rows * after * size);
      for (let row = 0; row < rows; row++) {
        grown.set(array.subarray(row * before * size, (row + 1) * before * size), row * after * size);
      }
      return grown;
    });
  }
}

/** A language model over a codec's tokens, one stream at a time. */
export class LanguageModel {
  /**
   * @param {ModelManifest} manifest
   * @param {import("./graph.js").Graph} graph
   */
  constructor(manifest, graph) {
    this.manifest = manifest;
    this.graph = graph;
    this.context = manifest.context;
    const { head_width: width, rope_theta: theta, layers } = manifest;
    this.frequencies = Float64Array.from({ length: width / 2 }, (_, i) => theta ** ((-2 * i) / width));
    this.states = Array.from({ length: layers }, (_, layer) => [`keys.${layer}`, `values.${layer}`]).flat();
  }

  /**
   * An empty cache.
   * @param {number} [longestWrite] tokens that a step takes in at once; longer ones are divided
   */
  makeCache(longestWrite = 32) {
    return new Cache(this.manifest, longestWrite);
  }

  /**
   * Take in the next ids of a stream.
   *
   * @param {ArrayLike<number>} ids [T], at least one
   * @param {Cache} cache written
   * @returns {Promise<Float32Array>} logits [V] of the id that follows
   * @throws {InputError} for an id that the vocabulary does not have
   */
  async step(ids, cache) {
    const { vocabulary_size: size } = this.manifest;
    const wrong = Array.prototype.find.call(ids, (id) => !(id >= 0 && id < size));
    if (wrong !== undefined || !ids.length) throw new InputError(`step: id ${wrong}; expected ids from 0 to ${size - 1}`);
    const block = cache.longestWrite + 1;
    let logits = new Float32Array(0);
    for (let begin = 0; begin < ids.length; begin += block) {
      logits = await this.write(Array.prototype.slice.call(ids, begin, begin + block), cache);
    }
    return logits;
  }

  /** One run of the graph. @param {number[]} ids @param {Cache} cache */
  async write(ids, cache) {
    const { heads, kv_heads: groups, head_width: width } = this.manifest;
    const { graph, context } = this;
    const count = ids.length;
    cache.grow(cache.position + count);
    const { capacity, position } = cache;
    const half = width / 2;
    const [cosine, sine] = [new Float32Array(count * half), new Float32Array(count * half)];
    // Angles in float64: after a day at 50 tokens a second a float32 angle would be wrong by a quarter of a radian.
    for (let t = 0; t < count; t++) {
      for (let k = 0; k < half; k++) {
        const angle = (position + t) * this.frequencies[k];
        [cosine[t * half + k], sine[t * half + k]] = [Math.cos(angle), Math.sin(angle)];
      }
    }
    const target = new BigInt64Array(groups * count * width);
    for (let t = 0; t < count; t++) {
      const slot = BigInt((position + t) % capacity);
      for (let g = 0; g < groups; g++) target.fill(slot, (g * count + t) * width, (g * count + t + 1) * width);
    }
    const repeats = count > 1 ? heads / groups : 1;
    const seen = new Float32Array(count * repeats * (capacity + 1)).fill(-Infinity);
    const newest = position + count - 1;
    for (let slot = 0; slot < capacity; slot++) {
      const held = newest - ((((newest - slot) % capacity) + capacity) % capacity); // the position in this slot
      if (held < 0) continue;
      for (let row = 0; row < count * repeats; row++) {
        const behind = position + Math.floor(row / repeats) - held;
        if (behind >= 0 && behind < context) seen[row * (capacity + 1) + slot] = 0;
      }
    }
    /** @type {Record<string, any>} */
    const inputs = {
      ids: graph.integers(ids, [1, count]),
      angles: graph.integers(Int32Array.from(ids.keys()), [1, count]),
      cosine: graph.floats(cosine, [count, half]),
      sine: graph.floats(sine, [count, half]),
      target: new graph.runtime.Tensor("int64", target, [1, groups, count, width]),
      seen: graph.floats(seen, [1, 1, count * repeats, capacity + 1]),
      last: graph.integers([count - 1]),
    };
    this.states.forEach((name, i) => {
      const shape = i % 2 ? [1, groups, capacity + 1, width] : [1, groups, width, capacity + 1];
      inputs[name] = graph.floats(cache.arrays[i], shape);
    });
    const outputs = await graph.run(inputs);
    cache.arrays = this.states.map((name) => outputs[`next.${name}`].data);
    cache.position += count;
    return outputs.logits.data;
  }
}
