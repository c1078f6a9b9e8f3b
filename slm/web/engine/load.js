import { Codec } from "./codec.js";
import { Graph } from "./graph.js";
import { InputError, reason } from "./input_error.js";
import { LanguageModel } from "./language_model.js";

const VERSION = 1; // of the manifest
const MOST_THREADS = 4; // more do not help steps as small as these

/**
 * @typedef {object} LoadOptions
 * @property {number} [threads] of WebAssembly; 0 or none: as many as are free, and 1 where the page is not cross-origin isolated
 * @property {string} [cache] name of a cache of the browser that keeps the large files; none: fetched each time
 * @property {(done: number, all: number) => void} [onProgress] told the bytes that have arrived
 */

/**
 * A codec and a language model from a folder that `focalstream export-web` wrote.
 *
 * @param {URL | string} address of the folder's focalstream.json
 * @param {LoadOptions} [options]
 * @returns {Promise<{ codec: Codec, model: LanguageModel, manifest: any, threads: number }>}
 * @throws {InputError} a file is missing or is not the one that was exported
 */
export async function loadModels(address, options = {}) {
  const base = new URL(".", new URL(address, globalThis.location?.href));
  const manifest = await readManifest(new URL(address, base));
  const files = new Files(base, manifest.files, options);
  await files.load([manifest.runtime.binary, ...Object.values(manifest.graphs).flat()]);
  const runtime = await import(new URL(manifest.runtime.module, base).href);
  const threads = freeThreads(options.threads);
  runtime.env.wasm.numThreads = threads;
  runtime.env.wasm.wasmPaths = { mjs: new URL(manifest.runtime.loader, base).href };
  runtime.env.wasm.wasmBinary = files.take(manifest.runtime.binary);
  const open = (/** @type {string} */ step) => {
    const [graph, weights] = manifest.graphs[step];
    return Graph.open(runtime, step, files.take(graph), files.take(weights));
  };
  const codec = new Codec(manifest.codec, await open("encode_step"), await open("decode_step"));
  const model = new LanguageModel(manifest.lm, await open("step"));
  return { codec, model, manifest, threads };
}

/** @param {URL} address */
async function readManifest(address) {
  let manifest;
  try {
    const answer = await fetch(address);
    if (!answer.ok) throw new Error(`HTTP ${answer.status}`);
    manifest = await answer.json();
  } catch (error) {
    throw new InputError(`${address}: cannot be read (${reason(error)}); expected a folder of focalstream export-web`);
  }
  if (manifest.version !== VERSION) throw new InputError(`${address}: of version ${manifest.version}; this engine reads ${VERSION}. Export the folder again`);
  return manifest;
}

/** @param {number} [wanted] */
function freeThreads(wanted) {
  if (!globalThis.crossOriginIsolated) return 1; // no shared memory
  return wanted || Math.max(1, Math.min(MOST_THREADS, Math.floor((navigator.hardwareConcurrency ?? 2) / 2)));
}

/** The large files: fetched all at once, checked, unpacked. */
class Files {
  /**
   * @param {URL} base
   * @param {Record<string, { bytes: number, sha256: string }>} known of the manifest
   * @param {LoadOptions} options
   */
  constructor(base, known, { cache, onProgress = () => {} }) {
    this.base = base;
    this.known = known;
    this.cacheName = cache;
    this.onProgress = onProgress;
    /** @type {Map<string, Uint8Array>} */
    this.found = new Map();
  }

  /** @param {string[]} names */
  async load(names) {
    const all = names.reduce((sum, name) => sum + this.known[name].bytes, 0);
    let done = 0;
    const arrived = (/** @type {number} */ bytes) => this.onProgress((done += bytes), all);
    const cache = this.cacheName && globalThis.caches ? await caches.open(this.cacheName) : null;
    await Promise.all(names.map(async (name) => this.found.set(name, await this.read(name, cache, arrived))));
  }

  /** A file's bytes, unpacked. They are given once, so that nobody else holds them. @param {string} name */
  take(name) {
    const bytes = this.found.get(name) ?? new Uint8Array(0);
    this.found.delete(name);
    return bytes;
  }

  /** @param {string} name @param {Cache | null} cache @param {(bytes: number) => void} arrived */
  async read(name, cache, arrived) {
    const address = new URL(name, this.base);
    const kept = await cache?.match(address);
    let packed = await received(name, kept ?? (await fetched(address)), arrived);
    if (!kept) {
      await check(name, packed, this.known[name]);
      await cache?.put(address, new Response(packed)).catch(() => {}); // a full disk: fetched again next time
    }
    const isPacked = packed[0] === 0x1f && packed[1] === 0x8b;
    if (!isPacked) return packed;
    const stream = new Blob([packed]).stream().pipeThrough(new DecompressionStream("gzip"));
    return new Uint8Array(await new Response(stream).arrayBuffer());
  }
}

/** @param {URL} address */
async function fetched(address) {
  const answer = await fetch(address).catch((error) => ({ ok: false, status: reason(error), body: null }));
  if (!answer.ok) throw new InputError(`${address}: cannot be fetched (${answer.status})`);
  return answer;
}

/** @param {string} name @param {any} answer @param {(bytes: number) => void} arrived */
async function received(name, answer, arrived) {
  const pieces = [];
  try {
    for (const reader = answer.body.getReader(); ; ) {
      const { done, value } = await reader.read();
      if (done) break;
      pieces.push(value);
      arrived(value.length);
    }
  } catch (error) {
    throw new InputError(`${name}: the connection broke (${reason(error)}); load the page again`);
  }
  return new Uint8Array(await new Blob(pieces).arrayBuffer());
}

/**
 * Raise InputError unless these are the bytes that were exported.
 * @param {string} name
 * @param {any} packed
 * @param {{ bytes: number, sha256: string }} known
 */
async function check(name, packed, { bytes, sha256 }) {
  const wrong = `${name}: is not the file that was exported; copy the whole folder again`;
  if (packed.length !== bytes) throw new InputError(`${wrong} (it has ${packed.length} bytes of ${bytes})`);
  if (!globalThis.crypto?.subtle) return; // only on https pages and localhost
  const digest = new Uint8Array(await crypto.subtle.digest("SHA-256", packed));
  if ([...digest].map((byte) => byte.toString(16).padStart(2, "0")).join("") !== sha256) throw new InputError(wrong);
}
