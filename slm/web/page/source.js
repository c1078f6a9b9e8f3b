// Where the page's continuations come from: models in this browser, in a worker. The server's page has another module of
// this name (slm/serve/page/source.js) with the same exports, and everything else in common.
const HOME = new URL("../", import.meta.url);

export const words = {
  kicker: "focalstream in your browser",
  opening: "Loading …",
  closed: "Not available",
  who: "Here",
  inside: "of which in the models",
  insecure: "This page came by http from another machine, so the browser allows it neither microphone nor live sound. Host it by https.",
  slow: "this device is too slow",
  same: "The same prompt, settings and seed give the same speech.",
  privacy: "Everything is computed on this device, and no sound leaves it. After the first visit the page works without a network.",
};

export const exampleNames = async () => (await fetch(new URL("examples/examples.json", HOME))).json();
export const exampleSound = (name) => fetch(new URL(`examples/${name}.wav`, HOME));
export const openSource = (on) => new LocalSource(on);

// Keeps the page for visits without a network; the models' files go to the same cache when they are loaded.
navigator.serviceWorker?.register(new URL("service_worker.js", HOME)).catch(() => {});

// As Connection of the server's page: the same methods, and the same messages to `on`.
class LocalSource {
  constructor(on) {
    this.on = on;
    this.stream = 0; // the number of the latest stream; messages of earlier ones are ignored
    this.streaming = false;
  }

  open() {
    this.worker = new Worker(new URL("worker.js", import.meta.url), { type: "module" });
    this.worker.onmessage = ({ data }) => this.hear(data);
    this.worker.onerror = (event) => this.fail(event.message || "its worker cannot be loaded; load the page again");
    const threads = Number(new URLSearchParams(location.search).get("threads"));
    this.worker.postMessage({ type: "load", address: new URL("focalstream.json", HOME).href, threads });
  }

  hear({ stream, ...message }) {
    if (message.type === "failed") return this.fail(message.message);
    if (stream !== undefined && (stream !== this.stream || !this.streaming)) return;
    const isEnd = ["done", "error"].includes(message.type);
    if (isEnd) this.streaming = false;
    this.on[message.type]?.({ ...message, isEnd });
  }

  // Nothing can be loaded or computed: what is wrong stays on the page.
  fail(message) {
    this.worker.terminate();
    this.on.error({ code: "failed", message, isEnd: false });
    this.on.lost({ again: false });
  }

  start(settings) {
    this.streaming = true;
    this.stream++;
    this.tell({ type: "start", ...settings });
  }

  cancel() {
    if (this.streaming) this.tell({ type: "cancel" });
    this.streaming = false;
  }

  tell(message) {
    this.worker.postMessage({ ...message, stream: this.stream });
  }

  send(samples) {
    this.tell({ type: "audio", samples });
  }
}
