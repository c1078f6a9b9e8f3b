// Where the page's continuations come from: here, a server. The page without a server has another module of this name
// (slm/web/page/source.js) with the same exports, and everything else in common.
import { Connection } from "./connection.js";

export const words = {
  kicker: "focalstream live",
  opening: "Connecting …",
  closed: "Not connected",
  who: "Server",
  inside: "of which in the server",
  slow: "the server is overloaded or too slow",
  same: "The same prompt, settings and seed give the same speech, however many clients the server has.",
  privacy: "Audio is processed in the server’s memory and not stored.",
};

// on: as for Connection.
export const openSource = (on) => new Connection(`${location.protocol === "https:" ? "wss" : "ws"}://${location.host}/v1/stream`, on);

// { name: the start of its sentence }
export const exampleNames = async () => (await fetch("/examples")).json();

// The Response with an example's sound file.
export const exampleSound = (name) => fetch(`/examples/${name}.wav`);
