// Where the page's continuations come from: here, a server. The page without a server has another module of this name
// (slm/web/page/source.js) with the same exports, and everything else in common.
import { Connection } from "./connection.js";
import { opusAbilities } from "./opus.js";

const HOME = new URL("../", import.meta.url); // the server, at whatever path

export const words = {
  kicker: "focalstream live",
  opening: "Connecting …",
  closed: "Not connected",
  who: "Server",
  inside: "of which in the server",
  insecure:
    "This page came by http from another machine, so the browser allows it neither microphone nor live sound. Open it by https " +
    "(start the server with --certfile and --keyfile, or put a TLS proxy in front), or at http://localhost on the server’s own machine.",
  slow: "the server is overloaded or too slow",
  same: "The same prompt, settings and seed give the same speech, however many clients the server has.",
  privacy: "Audio is processed in the server’s memory and not stored.",
};

const abilities = await opusAbilities();
const wanted = document.getElementById("opus"); // a box to tick, hidden unless browser and server can
wanted.checked = !["localhost", "127.0.0.1", "[::1]"].includes(location.hostname);

// on: as for Connection.
export function openSource(on) {
  const address = new URL("v1/stream", HOME);
  address.protocol = location.protocol === "https:" ? "wss:" : "ws:";
  const hello = (message) => {
    wanted.closest("p").hidden = !(abilities.decodes && message.formats.includes("opus"));
    on.hello(message);
  };
  return new Connection(address, { ...on, hello }, (rate) => {
    const sound = wanted.checked && !wanted.closest("p").hidden;
    return { sound, prompt: sound && abilities.encodes.includes(rate) };
  });
}

// Why a connection was refused, and what to do; browsers do not tell their pages.
export async function whyRefused() {
  try {
    const { refused } = await (await fetch(new URL(`v1/status?origin=${encodeURIComponent(location.origin)}`, HOME))).json();
    const own = location.origin;
    return {
      bad_origin: `This server accepts no page of ${own}. Start it with --origin ${own} or with a token, or open it by its IP address.`,
      too_many_connections: "The server has as many clients as it allows; trying again …",
      stopping: "The server is stopping; trying again …",
      model_died: "The server’s model process has died; start the server again.",
    }[refused];
  } catch {
    return "The server does not answer; trying again …";
  }
}

// { name: the start of its sentence }
export const exampleNames = async () => (await fetch(new URL("examples", HOME))).json();

// The Response with an example's sound file.
export const exampleSound = (name) => fetch(new URL(`examples/${name}.wav`, HOME));
