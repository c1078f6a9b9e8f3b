// The page: choose a prompt, send it, play and draw the answer.
import { Pictures } from "./pictures.js";
import { exampleNames, exampleSound, openSource, words } from "./source.js";

const JITTER_SECONDS = 0.08; // buffered before playing begins
const $ = (id) => document.getElementById(id);
const showText = (id, text) => ($(id).textContent = text);
const chosen = () => document.querySelector("[name=source]:checked").value;
const settingInputs = () => [...$("controls").querySelectorAll("input")];

let models; // what the server has loaded
let limits;
let pictures;
let context; // of audio; created at the first click, as browsers require
let soundMade; // a promise: context and player are there
let player;
let microphone; // while recording: { stream, nodes }
let phase = "offline"; // offline, idle, preparing (prompt and sound), waiting (for a slot), recording, sending, speaking
let attempt; // the current attempt to start, while preparing; replaced or null once it is abandoned
let prompt; // Int16Array at models.sample_rate_in to send when ready; null: record
let promptEnd; // performance.now() at the end of the prompt
let pieces = []; // of the sound so far
const state = (window.focalstream = { phase, loudest: 0, chunks: 0, underruns: 0, played: 0, hellos: 0 }); // read by tests

const connection = openSource({
  progress: ({ text }) => showText("loaded", text),
  hello,
  queued: ({ position }) => say(`All slots are in use; you are number ${position} in the queue.`),
  ready,
  sound,
  done,
  error: ({ code, message, isEnd }) => {
    if (code === "bad_token") return showUnlock(connection.token ? "Wrong token." : "");
    // These may be about a stream that has ended already: late audio, or the server's reason for ending it.
    if (code === "not_ready" && !["recording", "sending"].includes(phase)) return;
    if (code.startsWith("prompt_") && phase !== "idle") return;
    say(`${words.who}: ${message}`, true);
    if (!isEnd) return;
    stopMicrophone();
    enter("idle");
  },
  lost: ({ again }) => {
    attempt = null;
    stopMicrophone();
    enter("offline");
    if (again) say("Connection lost; reconnecting …", true);
    else showText("go", words.closed); // the error before it said why
  },
});

function say(text, bad = false) {
  showText("status", text);
  $("status").classList.toggle("bad", bad);
}

function enter(next) {
  state.phase = phase = next;
  const records = chosen() === "microphone";
  const label = { offline: words.opening, idle: records ? "Record" : "Continue", preparing: records ? "Opening the microphone …" : "Reading the file …", waiting: "Waiting for a slot …", recording: "Continue", sending: "Processing the prompt …", speaking: "Generating …" };
  showText("go", label[phase]);
  $("go").ariaDisabled = !["idle", "recording"].includes(phase);
  $("go").classList.toggle("recording", phase === "recording");
  $("cancel").ariaDisabled = ["offline", "idle"].includes(phase);
  for (const input of document.querySelectorAll("[name=source]")) input.disabled = !["offline", "idle"].includes(phase);
}

function hello(message) {
  ({ models, limits } = message);
  state.hellos++;
  if ($("unlock").contains(document.activeElement)) document.querySelector("[name=source]:checked").focus(); // else lost with the form
  $("unlock").hidden = true;
  const millions = (count) => `${(count / 1e6).toPrecision(2)} million parameters`;
  showText("loaded", `A language model of ${millions(models.lm_parameters)} (“${models.lm}”) continues your speech, ` +
      `${models.chunk_ms} ms at a time, in tokens of the codec “${models.codec}” (${models.bitrate} bit/s). ` +
      (models.lm_parameters < 50e6 ? "It is tiny: its output sounds like a voice, but has no words and no meaning. " : "") +
      `Its context is the last ${models.context_seconds.toFixed(0)} seconds.`);
  showText("fingerprint", `Codec ${models.fingerprint.slice(0, 12)}, ${models.engine} ${models.precision}.`);
  showText("bits", `${models.token_rate} a second, ${Math.log2(models.codebook_size)} bits each`);
  showText("top", models.sample_rate_out / 2000);
  pictures ??= new Pictures({ wave: $("wave"), spectrogram: $("spectrogram"), tokens: $("tokens") }, { rate: models.sample_rate_out, tokenRate: models.token_rate, bits: Math.log2(models.codebook_size) });
  const longest = document.querySelector("[name=seconds]");
  longest.max = Math.min(60, limits.speech_seconds);
  showOutputs();
  say("");
  enter("idle");
}

// Opening the microphone waits for the user's permission, and the attempt may be cancelled meanwhile.
async function begin() {
  const source = chosen();
  const wrong = settingInputs().find((input) => !input.checkValidity());
  if (wrong) return demand(wrong);
  if (source === "file" && !$("file").files.length) return say("Choose a sound file first.", true);
  const mine = (attempt = {});
  enter("preparing");
  say("");
  try {
    await (soundMade ??= makeSound());
    await context.resume();
    const found = source === "microphone" ? await askForMicrophone() : await decoded(await readSound(source));
    if (attempt !== mine) return source === "microphone" && stopTracks(found);
    prompt = source === "microphone" ? null : found;
    if (!prompt) openMicrophone(found);
  } catch (error) {
    if (attempt !== mine) return;
    stopMicrophone();
    enter("idle");
    return say(source === "microphone" ? `The microphone cannot be used (${error.message}).` : `This file cannot be read as audio (${error.message}).`, true);
  }
  pieces = [];
  Object.assign(state, { loudest: 0, chunks: 0, underruns: 0, played: 0 });
  pictures.clear();
  player.port.postMessage("reset");
  $("download").hidden = true;
  for (const id of ["first", "first-server", "underruns", "ahead", "length"]) showText(id, "–");
  const rate = prompt ? models.sample_rate_in : context.sampleRate;
  const settings = Object.fromEntries(settingInputs().map((input) => [input.name, Number(input.value)]));
  enter("waiting");
  connection.start({ rate, ...settings, min_seconds: Math.min(2, settings.seconds) });
}

// Names the invalid setting and focuses it.
function demand(input) {
  say(`${input.labels[0].textContent} must be a whole number from ${input.min} to ${input.max}.`, true);
  input.reportValidity();
}

function ready() {
  if (prompt) {
    connection.send(prompt);
    end();
  } else {
    enter("recording");
    say("Recording. Speak, then press Continue.");
    microphone.timer = setTimeout(end, 1000 * (limits.prompt_seconds - 0.5));
  }
}

function end() {
  stopMicrophone();
  connection.tell({ type: "continue" });
  promptEnd = performance.now();
  enter("sending");
  say("");
}

function sound({ isNew, codes, samples }) {
  pieces.push(samples);
  pictures.add(samples, codes, isNew);
  showText("span", `${(pictures.count / models.sample_rate_out).toFixed(1)} s`);
  if (!isNew) return;
  if (phase !== "speaking") enter("speaking");
  state.chunks++;
  showText("length", `${((state.chunks * models.chunk_ms) / 1000).toFixed(1)} s`);
  player.port.postMessage(samples);
}

function done({ reason, first_audio_ms, late_chunks }) {
  stopMicrophone(); // the server may also end a stream that is still recording
  player.port.postMessage("end");
  if (first_audio_ms != null) showText("first-server", `${first_audio_ms.toFixed(0)} ms`);
  const why = { ended: "The model ended the speech.", length: "Done.", "no prompt": "The prompt is too short.", full: "The queue is full; try again in a moment." };
  const late = late_chunks ? ` ${late_chunks} of ${state.chunks} chunks were late: ${words.slow}.` : "";
  say((why[reason] ?? "") + late, !state.chunks);
  offerDownload();
  enter("idle");
}

function cancel() {
  attempt = null;
  connection.cancel();
  stopMicrophone();
  player?.port.postMessage("reset");
  offerDownload();
  enter("idle");
  say("Cancelled.");
}

function heard({ data }) {
  if (data.first !== undefined) return showText("first", `${(performance.now() - promptEnd).toFixed(0)} ms`);
  Object.assign(state, { played: data.played, underruns: data.underruns, loudest: Math.max(state.loudest, data.loudest) });
  showText("underruns", data.underruns);
  showText("ahead", `${((1000 * data.buffered) / models.sample_rate_out).toFixed(0)} ms`);
  pictures.playhead = data.over ? -1 : pictures.promptEnd + data.played;
  pictures.draw();
}

async function makeSound() {
  try {
    context = new AudioContext({ sampleRate: models.sample_rate_out, latencyHint: "interactive" });
    await Promise.all(["capture", "playback"].map((name) => context.audioWorklet.addModule(new URL(`${name}.js`, import.meta.url))));
    player = new AudioWorkletNode(context, "playback", { numberOfInputs: 0, outputChannelCount: [1], processorOptions: { enough: Math.round(JITTER_SECONDS * models.sample_rate_out) } });
    player.port.onmessage = heard;
    player.connect(context.destination);
  } catch (error) {
    soundMade = null; // the next attempt creates it again
    throw error;
  }
}

async function askForMicrophone() {
  if (!navigator.mediaDevices) throw new Error("browsers allow it only on https pages and on localhost");
  return navigator.mediaDevices.getUserMedia({ audio: { echoCancellation: true, noiseSuppression: false, autoGainControl: true } });
}

function openMicrophone(stream) {
  microphone = { stream, nodes: [] };
  const input = context.createMediaStreamSource(stream);
  const capture = new AudioWorkletNode(context, "capture", { numberOfOutputs: 0 });
  capture.port.onmessage = ({ data }) => phase === "recording" && connection.send(data);
  input.connect(capture);
  microphone.nodes = [input, capture];
}

function stopMicrophone() {
  if (!microphone) return;
  clearTimeout(microphone.timer);
  for (const node of microphone.nodes) node.disconnect();
  stopTracks(microphone.stream);
  microphone = null;
}

function stopTracks(stream) {
  for (const track of stream.getTracks()) track.stop();
}

const readSound = async (source) => (source === "file" ? $("file").files[0] : await exampleSound($("example").value)).arrayBuffer();

// A sound file as mono int16 at the codec's rate, cut to the longest prompt.
async function decoded(file) {
  const buffer = await new OfflineAudioContext(1, 1, models.sample_rate_in).decodeAudioData(file);
  const channels = Array.from({ length: buffer.numberOfChannels }, (_, c) => buffer.getChannelData(c));
  const length = Math.min(buffer.length, Math.floor(limits.prompt_seconds * models.sample_rate_in));
  return Int16Array.from({ length }, (_, i) => {
    const mean = channels.reduce((sum, channel) => sum + channel[i], 0) / channels.length;
    return Math.round(32767 * Math.max(-1, Math.min(1, mean)));
  });
}

function offerDownload() {
  if (!pieces.length) return;
  const length = pieces.reduce((sum, piece) => sum + piece.length, 0);
  const header = new DataView(new ArrayBuffer(44));
  const rate = models.sample_rate_out;
  [[0, "RIFF"], [8, "WAVEfmt "], [36, "data"]].forEach(([at, text]) => [...text].forEach((letter, i) => header.setUint8(at + i, letter.charCodeAt(0))));
  [[4, 36 + 2 * length], [16, 16], [24, rate], [28, 2 * rate], [40, 2 * length]].forEach(([at, value]) => header.setUint32(at, value, true));
  [[20, 1], [22, 1], [32, 2], [34, 16]].forEach(([at, value]) => header.setUint16(at, value, true));
  URL.revokeObjectURL($("download").href);
  $("download").href = URL.createObjectURL(new Blob([header, ...pieces], { type: "audio/wav" }));
  $("download").hidden = false;
}

function showUnlock(text) {
  $("unlock").hidden = false;
  showText("loaded", "");
  say(text, true);
  $("token").focus();
}

function showOutputs() {
  for (const input of settingInputs()) if (input.type === "range") input.previousElementSibling.textContent = input.value;
}

function showSource() {
  for (const name of ["microphone", "example", "file"]) $(`for-${name}`).hidden = name !== chosen();
  enter(phase);
}

// Inactive buttons have aria-disabled: `disabled` would remove the focus from a button that was just pressed.
for (const [id, act] of [["go", () => (phase === "recording" ? end() : begin())], ["cancel", cancel]]) {
  // A double click or a held key counts as one press: otherwise it would end the recording that it started.
  $(id).addEventListener("click", ({ detail }) => detail < 2 && $(id).ariaDisabled !== "true" && act());
  $(id).addEventListener("keydown", (event) => event.repeat && event.key === "Enter" && event.preventDefault());
}
$("controls").addEventListener("input", showOutputs);
document.querySelector(".source").addEventListener("change", showSource);
$("unlock").addEventListener("submit", (event) => {
  event.preventDefault();
  connection.open($("token").value);
});
for (const element of document.querySelectorAll("[data-word]")) element.textContent = words[element.dataset.word];
for (const [name, text] of Object.entries(await exampleNames())) $("example").add(new Option(text, name));
showSource();
connection.open();
