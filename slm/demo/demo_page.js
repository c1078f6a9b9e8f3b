"use strict";
// Each [data-sound] figure shows the position of its player; a click on the picture seeks.
for (const figure of document.querySelectorAll("[data-sound]")) {
  const audio = figure.querySelector("audio");
  const seconds = Number(figure.dataset.seconds);
  const heads = figure.querySelectorAll(".playhead");
  const show = () => {
    for (const head of heads) head.style.left = `${Math.min(100, (100 * audio.currentTime) / seconds)}%`;
    figure.classList.toggle("playing", audio.currentTime > 0 && !audio.ended);
  };
  const follow = () => {
    show();
    if (!audio.paused && !audio.ended) requestAnimationFrame(follow);
  };
  audio.addEventListener("play", () => {
    for (const other of document.querySelectorAll("audio")) if (other !== audio) other.pause();
    follow();
  });
  audio.addEventListener("seeked", show);
  audio.addEventListener("ended", show);
  for (const area of figure.querySelectorAll(".area")) {
    area.addEventListener("click", (event) => {
      const box = area.getBoundingClientRect();
      audio.currentTime = (seconds * (event.clientX - box.left)) / box.width;
    });
  }
}
// A token track shows the token under the pointer, or the one selected with the arrow keys.
for (const track of document.querySelectorAll(".track")) {
  const tokens = track.dataset.tokens.split(",").map(Number);
  const bits = Number(track.dataset.bits);
  const rate = Number(track.dataset.rate);
  const cursor = track.querySelector(".cursor");
  const readout = track.parentElement.querySelector(".readout");
  let at = 0;
  const select = (index) => {
    at = Math.max(0, Math.min(tokens.length - 1, index));
    cursor.style.left = `${(100 * at) / tokens.length}%`;
    cursor.style.width = `${100 / tokens.length}%`;
    const binary = tokens[at].toString(2).padStart(bits, "0");
    const text = `token ${at + 1} of ${tokens.length}, ${(at / rate).toFixed(2)} s: id ${tokens[at]}, bits ${binary}`;
    readout.textContent = text;
    track.setAttribute("aria-valuenow", String(at));
    track.setAttribute("aria-valuetext", text);
  };
  track.addEventListener("pointermove", (event) => {
    const box = track.getBoundingClientRect();
    select(Math.floor((tokens.length * (event.clientX - box.left)) / box.width));
  });
  track.addEventListener("focus", () => select(at));
  track.addEventListener("keydown", (event) => {
    const next = { ArrowRight: at + 1, ArrowLeft: at - 1, PageUp: at + rate, PageDown: at - rate, Home: 0, End: tokens.length - 1 }[event.key];
    if (next === undefined) return;
    event.preventDefault();
    select(Math.round(next));
  });
}
