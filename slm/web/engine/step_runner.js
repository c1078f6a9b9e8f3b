/**
 * One state of a step, as `tokenizer.onnx_engine.manifest.StateSpec` describes it: input `name`, output `next.<name>`.
 *
 * @typedef {object} StateSpec
 * @property {string} name
 * @property {number[]} shape without the batch; a history has `past` + `rate` slots of time, and may have more
 * @property {number} axis where time runs, counted with the batch
 * @property {number} past frames that are looked back on
 * @property {number} rate frames a chunk
 * @property {boolean} history whether a step writes its frames behind the past, in the same array
 */

/**
 * The state of one stream: chunks it has had, and an array for each of the graph's states. Steps leave it as it was.
 * @typedef {{ position: number, arrays: Float32Array[] }} StepState
 */

/** One step of a codec over one stream. */
export class StepRunner {
  /**
   * @param {import("./graph.js").Graph} graph
   * @param {StateSpec[]} specs
   * @param {string} result name of the output beside the states
   */
  constructor(graph, specs, result) {
    this.graph = graph;
    this.specs = specs;
    this.result = result;
  }

  /** @returns {StepState} of a stream that has not begun */
  initState() {
    return { position: 0, arrays: this.specs.map((spec) => new Float32Array(size(windowOf(spec)))) };
  }

  /**
   * @param {Record<string, any>} data the data input
   * @param {number} chunks that it is long
   * @param {StepState} state
   * @returns {Promise<[any, StepState]>} the result's tensor, and the next state
   */
  async step(data, chunks, state) {
    /** @type {Record<string, any>} */
    const inputs = { ...data, position: this.graph.integers([state.position]) };
    if (this.specs.some((spec) => spec.history)) inputs.slot = this.graph.integers([0]);
    this.specs.forEach((spec, index) => {
      const shape = spec.history ? withTime(spec, spec.past + spec.rate * chunks) : spec.shape;
      const array = spec.history ? moved(state.arrays[index], spec, spec.past, 0, shape[spec.axis - 1]) : state.arrays[index];
      inputs[spec.name] = this.graph.floats(array, [1, ...shape]);
    });
    const outputs = await this.graph.run(inputs);
    const arrays = this.specs.map((spec) => {
      const { data: next } = outputs[`next.${spec.name}`];
      return spec.history ? moved(next, spec, spec.past + spec.rate * chunks, spec.rate * chunks, spec.past) : next;
    });
    return [outputs[this.result], { position: state.position + chunks, arrays }];
  }
}

const size = (/** @type {number[]} */ shape) => shape.reduce((product, side) => product * side, 1);
const windowOf = (/** @type {StateSpec} */ spec) => (spec.history ? withTime(spec, spec.past) : spec.shape);
const withTime = (/** @type {StateSpec} */ spec, /** @type {number} */ slots) => spec.shape.map((side, axis) => (axis === spec.axis - 1 ? slots : side));

/**
 * An array with `slots` slots of time, filled with those from `first` on of one that has `had`.
 * @param {Float32Array} array
 * @param {StateSpec} spec
 * @param {number} had
 * @param {number} first
 * @param {number} slots
 */
function moved(array, spec, had, first, slots) {
  const inner = size(spec.shape.slice(spec.axis));
  const outer = size(spec.shape.slice(0, spec.axis - 1));
  const result = new Float32Array(outer * slots * inner);
  for (let row = 0; row < outer; row++) {
    const begin = (row * had + first) * inner;
    const count = Math.min(slots, had - first) * inner;
    result.set(array.subarray(begin, begin + count), row * slots * inner);
  }
  return result;
}
