// Keeps the page for visits without a network, and lets it have threads.
const CONTENT = ""; // the next two lines are written by the export
const FILES = [];

const NAME = `focalstream-${CONTENT}`;
// With these, browsers let a page share memory between threads. Static hosts rarely send them.
const ISOLATION = {
  "Cross-Origin-Opener-Policy": "same-origin",
  "Cross-Origin-Embedder-Policy": "require-corp",
  "Cross-Origin-Resource-Policy": "same-origin",
};

self.addEventListener("install", (event) => event.waitUntil(install()));
self.addEventListener("activate", (event) => event.waitUntil(activate()));
self.addEventListener("fetch", (event) => {
  const { method, url } = event.request;
  if (method === "GET" && url.startsWith(self.registration.scope)) event.respondWith(answer(event.request));
});

async function install() {
  const cache = await caches.open(NAME);
  await cache.addAll(FILES.map((name) => new Request(name, { cache: "no-cache" })));
  await self.skipWaiting();
}

// Caches of other exports of this folder go; other folders of the same origin keep theirs.
async function activate() {
  await self.clients.claim();
  const kept = await (await caches.open("focalstream")).match(self.registration.scope);
  const before = kept && (await kept.text());
  if (before && before !== NAME) await caches.delete(before);
  await (await caches.open("focalstream")).put(self.registration.scope, new Response(NAME));
}

async function answer(request) {
  const cache = await caches.open(NAME);
  const found = (await cache.match(request, { ignoreSearch: true })) ?? (await fetch(request));
  if (found.type === "opaque" || found.status === 0) return found;
  const headers = new Headers(found.headers);
  for (const [name, value] of Object.entries(ISOLATION)) headers.set(name, value);
  return new Response(found.body, { status: found.status, statusText: found.statusText, headers });
}
