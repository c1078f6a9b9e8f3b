import { InputError, reason } from "./input_error.js";

/**
 * What the engine needs of onnxruntime-web: the module `onnxruntime-web/wasm`.
 * @typedef {{ InferenceSession: any, Tensor: any, env: any }} Runtime
 */

/** A graph, ready to run. */
export class Graph {
  /**
   * @param {Runtime} runtime
   * @param {any} session
   */
  constructor(runtime, session) {
    this.runtime = runtime;
    this.session = session;
  }

  /**
   * @param {Runtime} runtime
   * @param {string} name of the graph, and of its weights in it
   * @param {Uint8Array} graph
   * @param {Uint8Array} weights
   * @returns {Promise<Graph>}
   * @throws {InputError} where onnxruntime-web cannot load it
   */
  static async open(runtime, name, graph, weights) {
    const options = {
      executionProviders: ["wasm"],
      externalData: [{ path: `${name}.weights`, data: weights }],
      enableCpuMemArena: false, // its arena keeps twice what a step needs
    };
    try {
      return new Graph(runtime, await runtime.InferenceSession.create(graph, options));
    } catch (error) {
      throw new InputError(`${name}: onnxruntime-web cannot load it (${reason(error)}); export the folder again`);
    }
  }

  /** @param {Float32Array} data @param {number[]} shape */
  floats(data, shape) {
    return new this.runtime.Tensor("float32", data, shape);
  }

  /** @param {ArrayLike<number>} values @param {number[]} [shape] */
  integers(values, shape = [values.length]) {
    return new this.runtime.Tensor("int64", BigInt64Array.from(values, BigInt), shape);
  }

  /**
   * @param {Record<string, any>} inputs tensors by name
   * @returns {Promise<Record<string, any>>} likewise
   */
  run(inputs) {
    return this.session.run(inputs);
  }

  /** Give back what it holds. */
  release() {
    return this.session.release();
  }
}
