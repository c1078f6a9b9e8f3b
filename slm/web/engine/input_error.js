/** What is wrong with what the caller gave, and how to mend it. */
export class InputError extends Error {
  name = "InputError";
}
