// The turns so far: what was said and what came of it, to hear again and to save.
const KEPT = 20;

export class Turns {
  // list: an <ol>; play: is given the samples of a turn.
  constructor(list, rate, play) {
    Object.assign(this, { list, rate, play });
    this.count = 0;
  }

  add({ pieces, promptSamples, interrupted }) {
    const length = pieces.reduce((sum, piece) => sum + piece.length, 0);
    if (!length) return;
    const seconds = (samples) => `${(samples / this.rate).toFixed(1)} s`;
    const item = document.createElement("li");
    const text = document.createElement("span");
    text.textContent = `${++this.count}: prompt ${seconds(promptSamples)}, continuation ${seconds(length - promptSamples)}${interrupted ? ", interrupted" : ""} `;
    const replay = document.createElement("button");
    replay.type = "button";
    replay.textContent = "Replay";
    replay.ariaLabel = `Replay turn ${this.count}`;
    replay.addEventListener("click", () => this.play(pieces));
    item.append(text, replay);
    this.list.prepend(item);
    if (this.list.children.length > KEPT) this.list.lastElementChild.remove();
    this.list.hidden = false;
  }
}
