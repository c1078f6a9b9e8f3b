// Playback on the audio thread: fills the jitter buffer, plays, and counts underruns.
class Playback extends AudioWorkletProcessor {
  constructor({ processorOptions }) {
    super();
    this.enough = processorOptions.enough; // samples before playback starts, and again after an underrun
    this.port.onmessage = ({ data }) => this.take(data);
    this.reset();
  }

  reset() {
    this.queue = [];
    this.at = 0; // samples of the first block already played
    this.buffered = this.played = this.underruns = 0;
    this.playing = this.ended = this.heard = false;
  }

  take(message) {
    if (message === "reset") this.reset();
    else if (message === "end") this.ended = true;
    else {
      this.queue.push(message);
      this.buffered += message.length;
    }
  }

  process(_, [[out]]) {
    if (!this.playing && this.buffered > 0 && (this.buffered >= this.enough || this.ended)) {
      this.playing = true;
      if (!this.heard) this.port.postMessage({ first: currentTime });
      this.heard = true;
    }
    let loudest = 0;
    for (let i = 0; this.playing && i < out.length; i++) {
      if (!this.queue.length) {
        this.playing = false;
        if (!this.ended) this.underruns++;
        break;
      }
      out[i] = this.queue[0][this.at++] / 32768;
      loudest = Math.max(loudest, Math.abs(out[i]));
      this.played++;
      this.buffered--;
      if (this.at === this.queue[0].length) {
        this.queue.shift();
        this.at = 0;
      }
    }
    if (this.heard) {
      const { played, buffered, underruns } = this;
      this.port.postMessage({ played, buffered, underruns, loudest, over: this.ended && !buffered });
      if (this.ended && !buffered) this.heard = false;
    }
    return true;
  }
}
registerProcessor("playback", Playback);
