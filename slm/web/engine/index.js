/**
 * Speech in, tokens, a language model, speech out: in a browser, on onnxruntime-web.
 *
 *     const { codec, model } = await loadModels(new URL("focalstream.json", document.baseURI));
 *     const continuation = new Continuation(codec, model, { temperature: 0.9, topP: 0.95 }, { seed: 1, maxSeconds: 6 });
 *     await continuation.feed(samples);                        // Float32Array at codec.sampleRateIn, as it is spoken
 *     for await (const { codes, audio } of continuation.chunks()) play(audio);
 *
 * Legend of the whole folder: S samples, T tokens, n chunks, V vocabulary.
 */
export { Codec } from "./codec.js";
export { Continuation } from "./continuation.js";
export { InputError } from "./input_error.js";
export { LanguageModel } from "./language_model.js";
export { loadModels } from "./load.js";
export { RandomStream } from "./random_stream.js";
export { Resampler } from "./resampler.js";
export { draw, Sampling } from "./sampling.js";
