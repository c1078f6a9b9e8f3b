/** What is wrong with what the caller gave, and how to mend it. */
export class InputError extends Error {
  name = "InputError";
}

/**
 * What a caught error says; onnxruntime-web throws numbers, too.
 * @param {any} error
 */
export const reason = (error) => String(error?.message ?? error);
