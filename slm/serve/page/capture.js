// The microphone on the audio thread: blocks of about 40 ms of 16-bit samples.
const BLOCK_SECONDS = 0.04;

class Capture extends AudioWorkletProcessor {
  constructor() {
    super();
    this.block = new Int16Array(Math.round(BLOCK_SECONDS * sampleRate));
    this.filled = 0;
  }

  process([channels]) {
    const mono = channels[0];
    if (!mono) return true;
    for (let i = 0; i < mono.length; i++) {
      let sum = 0;
      for (const channel of channels) sum += channel[i];
      this.block[this.filled++] = Math.round(32767 * Math.max(-1, Math.min(1, sum / channels.length)));
      if (this.filled === this.block.length) {
        this.port.postMessage(this.block.slice());
        this.filled = 0;
      }
    }
    return true;
  }
}
registerProcessor("capture", Capture);
