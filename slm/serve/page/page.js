// The page: choose a prompt, send it, play and draw the answer.
import { HandsFree } from "./hands_free.js";
import { openMicrophone } from "./microphone.js";
import { Pictures } from "./pictures.js";
import { invalidSetting, settingValues, showSettings } from "./settings.js";
import { decoded, wavFile } from "./sound_file.js";
import * as source from "./source.js";
import { Turns } from "./turns.js";
import { VoiceDetector } from "./voice.js";

const { words } = source;

const ASKED_SECONDS = 5; // for the microphone before the page says where to look
const BLOCK_SECONDS = 0.04; // of the microphone, as capture.js cuts it
const JITTER_SECONDS = 0.08; // buffered before playing begins
const $ = (id) => document.getElementById(id);
const showText = (id, text) => ($(id).textContent = text);
const chosen = () => document.querySelector("[name=source]:checked").value;

let models; // what the server has loaded
let limits;
let pictures;
let context; // of audio; created at the first click, as browsers require
let soundMade; // a promise: context and player are there
let player;
let microphone; // while it is open: { rate, close }
let detector; // of push-to-talk: says when the microphone is silent
let handsFree; // during a conversation
let timer; // ends a prompt that is as long as it may be
let phase = "offline"; // offline, idle, preparing (prompt and sound), listening (hands-free), waiting (for a slot), recording, sending, speaking
let attempt; // the current attempt to start, while preparing; replaced or null once it is abandoned
let prompt; // Int16Array at models.sample_rate_in to send when ready; null: record
let promptEnd; // performance.now() at the end of the prompt
let pieces = []; // of the sound so far
let promptSamples = 0; // in the pieces
let turns;
let [isPlaying, isReplay] = [false, false]; // the page is heard; with an earlier turn
const state = (window.focalstream = { phase, loudest: 0, chunks: 0, underruns: 0, played: 0, hellos: 0, turns: 0, interrupted: 0 }); // read by tests

const connection = source.openSource({
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
    if (handsFree) return listenAgain();
    stopMicrophone();
    enter("idle");
  },
  lost: async ({ again }) => {
    attempt = null;
    stopMicrophone();
    enter("offline");
    if (!again) return showText("go", words.closed); // the error before it said why
    say("Connection lost; reconnecting …", true);
    const why = await source.whyRefused?.();
    if (why && phase === "offline") say(why, true);
  },
});

function say(text, bad = false) {
  showText("status", text);
  $("status").classList.toggle("bad", bad);
}

function enter(next) {
  state.phase = phase = next;
  const name = { microphone: "Record", "hands-free": "Start" }[chosen()];
  const label = { offline: words.opening, idle: name ?? "Continue", preparing: name ? "Opening the microphone …" : "Reading the file …", waiting: "Waiting for a slot …", recording: "Continue", sending: "Processing the prompt …", speaking: "Generating …" };
  showText("go", handsFree ? "Stop" : label[phase]);
  $("go").ariaDisabled = !handsFree && !(phase === "idle" ? isSecureContext : phase === "recording");
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
  longest.max = Math.floor(limits.speech_seconds);
  turns ??= new Turns($("turns"), models.sample_rate_out, replay);
  remember(connection.token);
  showSettings();
  say(isSecureContext ? "" : words.insecure, true);
  enter("idle");
}

// For this tab, until it is closed.
function remember(token) {
  if (token) sessionStorage.setItem("token", token);
  else sessionStorage.removeItem("token");
}

// Opening the microphone waits for the user's permission, and the attempt may be cancelled meanwhile.
async function begin() {
  const from = chosen();
  const speaks = ["microphone", "hands-free"].includes(from);
  const wrong = invalidSetting();
  if (wrong) return demand(wrong);
  if (from === "file" && !$("file").files.length) return say("Choose a sound file first.", true);
  const mine = (attempt = {});
  const asked = speaks && setTimeout(() => say("Waiting for the microphone: the browser asks for it, usually beside the address."), 1000 * ASKED_SECONDS);
  enter("preparing");
  say("");
  try {
    await (soundMade ??= makeSound());
    await context.resume();
    const found = speaks ? await openMicrophone(takeBlock, () => attempt === mine) : await decoded(await readSound(from), models.sample_rate_in, limits.prompt_seconds);
    if (attempt !== mine) return;
    prompt = speaks ? null : found;
    if (speaks) hear(found, from === "hands-free");
  } catch (error) {
    if (attempt !== mine) return;
    stopMicrophone();
    enter("idle");
    return say(speaks ? `The microphone cannot be used (${error.message}).` : `This file cannot be read as audio (${error.message}).`, true);
  } finally {
    clearTimeout(asked);
  }
  if (handsFree) return enter("listening");
  start();
}

function hear(opened, isHandsFree) {
  microphone = opened;
  detector = new VoiceDetector(BLOCK_SECONDS);
  if (isHandsFree) {
    const block = Math.round(BLOCK_SECONDS * opened.rate);
    handsFree = new HandsFree(opened.rate, block, { begin: beginTurn, send: (samples) => connection.send(samples), end }, () => isPlaying);
    say("Listening. Speak, then pause.");
  }
  $("hearing").classList.add("open");
}

// A block of the microphone.
function takeBlock(samples) {
  if (!microphone) return;
  const { level } = detector.take(samples);
  $("level").value = level;
  if (handsFree) handsFree.take(samples);
  else if (phase === "recording") connection.send(samples);
  if (detector.isSilent && ["recording", "listening"].includes(phase)) {
    say("The microphone is silent. It may be muted, or another one may be chosen in the system’s settings.", true);
  }
}

function start() {
  pieces = [];
  promptSamples = 0;
  Object.assign(state, { loudest: 0, chunks: 0, underruns: 0, played: 0 });
  pictures.clear();
  silence();
  $("download").hidden = true;
  for (const id of ["first", "first-server", "underruns", "ahead", "length"]) showText(id, "–");
  const rate = prompt ? models.sample_rate_in : microphone.rate;
  const settings = settingValues();
  enter("waiting");
  connection.start({ rate, ...settings, min_seconds: Math.min(2, settings.seconds) });
}

// The speaker begins, perhaps while the answer to the turn before is still heard.
function beginTurn() {
  const isAnswered = ["sending", "speaking"].includes(phase);
  if (isAnswered) keepTurn(true);
  if (isAnswered || isPlaying) state.interrupted++;
  connection.cancel(); // also a turn that still waits for a slot
  start();
  limitPrompt(() => handsFree.end());
}

// After a turn of a conversation that was refused or has ended.
function listenAgain() {
  handsFree.forget();
  clearTimeout(timer);
  enter("listening");
}

// Nothing of what was sent to the loudspeaker is heard any longer.
function silence() {
  player?.port.postMessage("reset");
  isPlaying = isReplay = false;
}

function replay(samples) {
  if (!["idle", "listening"].includes(phase)) return say("Replay is possible when nothing is being generated.");
  silence();
  isPlaying = isReplay = true;
  state.loudest = 0;
  for (const piece of samples) player.port.postMessage(piece);
  player.port.postMessage("end");
}

function keepTurn(interrupted) {
  if (pieces.length) state.turns++;
  turns.add({ pieces, promptSamples, interrupted });
  if (!pieces.length) return;
  URL.revokeObjectURL($("download").href);
  $("download").href = URL.createObjectURL(wavFile(pieces, models.sample_rate_out));
  $("download").hidden = false;
}

// Names the invalid setting and focuses it.
function demand(input) {
  say(`${input.labels[0].textContent} must be a whole number from ${input.min} to ${input.max}.`, true);
  input.reportValidity();
}

function ready() {
  if (prompt) {
    connection.send(prompt);
    return end();
  }
  enter("recording");
  say(handsFree ? "Listening to you …" : "Recording. Speak, then press Continue.");
  if (handsFree) handsFree.ready();
  else limitPrompt(end);
}

function limitPrompt(act) {
  clearTimeout(timer);
  timer = setTimeout(act, 1000 * (limits.prompt_seconds - 0.5));
}

function end() {
  clearTimeout(timer);
  if (!handsFree) stopMicrophone();
  connection.tell({ type: "continue" });
  promptEnd = performance.now();
  enter("sending");
  say("");
}

function sound({ isNew, codes, samples }) {
  pieces.push(samples);
  pictures.add(samples, codes, isNew);
  showText("span", `${(pictures.count / models.sample_rate_out).toFixed(1)} s`);
  if (!isNew) return void (promptSamples += samples.length);
  if (phase !== "speaking") enter("speaking");
  if (codes.length) state.chunks++;
  showText("length", `${((state.chunks * models.chunk_ms) / 1000).toFixed(1)} s`);
  player.port.postMessage(samples);
}

function done({ reason, first_audio_ms, late_chunks }) {
  if (!handsFree) stopMicrophone(); // the server may also end a stream that is still recording
  player.port.postMessage("end");
  if (first_audio_ms != null) showText("first-server", `${first_audio_ms.toFixed(0)} ms`);
  const why = { ended: "The model ended the speech.", length: "Done.", "no prompt": "The prompt is too short.", full: "The queue is full; try again in a moment." };
  const late = late_chunks ? ` ${late_chunks} of ${state.chunks} chunks were late: ${words.slow}.` : "";
  say((why[reason] ?? "") + late, !state.chunks);
  keepTurn(false);
  if (handsFree) listenAgain();
  else enter("idle");
}

function cancel() {
  const wasHandsFree = handsFree;
  attempt = null;
  if (["sending", "speaking"].includes(phase)) keepTurn(true);
  connection.cancel();
  stopMicrophone();
  silence();
  enter("idle");
  say(wasHandsFree ? "Stopped." : "Cancelled.");
}

function heard({ data }) {
  isPlaying = !data.over;
  state.loudest = Math.max(state.loudest, data.loudest ?? 0);
  if (isReplay) return void (isReplay = isPlaying);
  if (data.first !== undefined) return showText("first", `${(performance.now() - promptEnd).toFixed(0)} ms`);
  Object.assign(state, { played: data.played, underruns: data.underruns });
  showText("underruns", data.underruns);
  showText("ahead", `${((1000 * data.buffered) / models.sample_rate_out).toFixed(0)} ms`);
  pictures.playhead = data.over ? -1 : pictures.promptEnd + data.played;
  pictures.draw();
}

async function makeSound() {
  try {
    context = new AudioContext({ sampleRate: models.sample_rate_out, latencyHint: "interactive" });
    await context.audioWorklet.addModule(new URL("playback.js", import.meta.url));
    player = new AudioWorkletNode(context, "playback", { numberOfInputs: 0, outputChannelCount: [1], processorOptions: { enough: Math.round(JITTER_SECONDS * models.sample_rate_out) } });
    player.port.onmessage = heard;
    player.connect(context.destination);
  } catch (error) {
    soundMade = null; // the next attempt creates it again
    throw error;
  }
}

function stopMicrophone() {
  clearTimeout(timer);
  microphone?.close();
  microphone = handsFree = null;
  $("hearing").classList.remove("open");
  $("level").value = $("level").min;
}

const readSound = async (from) => (from === "file" ? $("file").files[0] : await source.exampleSound($("example").value)).arrayBuffer();

function showUnlock(text) {
  remember(null);
  $("unlock").hidden = false;
  showText("loaded", "");
  say(text, true);
  $("token").focus();
}

function showSource() {
  for (const name of ["microphone", "hands-free", "example", "file"]) $(`for-${name}`).hidden = name !== chosen();
  enter(phase);
}

// Inactive buttons have aria-disabled: `disabled` would remove the focus from a button that was just pressed.
for (const [id, act] of [["go", () => (handsFree ? cancel() : phase === "recording" ? end() : begin())], ["cancel", cancel]]) {
  // A double click or a held key counts as one press: otherwise it would end the recording that it started.
  $(id).addEventListener("click", ({ detail }) => detail < 2 && $(id).ariaDisabled !== "true" && act());
  $(id).addEventListener("keydown", (event) => event.repeat && event.key === "Enter" && event.preventDefault());
}
document.querySelector(".source").addEventListener("change", showSource);
$("unlock").addEventListener("submit", (event) => {
  event.preventDefault();
  connection.open($("token").value);
});
for (const element of document.querySelectorAll("[data-word]")) element.textContent = words[element.dataset.word];
for (const [name, text] of Object.entries(await source.exampleNames())) $("example").add(new Option(text, name));
showSource();
connection.open(sessionStorage.getItem("token") ?? undefined);
