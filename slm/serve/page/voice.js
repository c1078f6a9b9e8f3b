// Voice activity from the level of short blocks, against a noise floor that follows the room.
const LOUDER_DB = 9; // above the floor: speech
const LEAST_DB = -50; // re full scale; below it nothing is speech
const ECHO_DB = 6; // louder still while the page itself is heard
const RISE_DB = 2; // of the floor, a second
const LISTEN_SECONDS = 0.3; // to the room, before the first speech
const ONSET_SECONDS = 0.12; // of speech before it counts, twice as long while the page is heard
const SILENT_DB = -75; // a microphone below it for a while is muted, or not the one that is spoken into

export class VoiceDetector {
  constructor(blockSeconds, pauseSeconds = 0.7) {
    Object.assign(this, { blockSeconds, pauseSeconds });
    this.floor = -100;
    this.heard = this.run = this.quiet = this.silent = 0; // seconds
    this.speaking = false;
  }

  // One block of int16 samples: { loud, started, ended, level }.
  take(samples, pageIsHeard = false) {
    const level = levelOf(samples);
    this.heard += this.blockSeconds;
    this.silent = level < SILENT_DB ? this.silent + this.blockSeconds : 0;
    const loud = this.heard > LISTEN_SECONDS && level > Math.max(this.floor + LOUDER_DB, LEAST_DB) + (pageIsHeard ? ECHO_DB : 0);
    if (this.heard <= LISTEN_SECONDS) this.floor = Math.max(this.floor, Math.min(level, LEAST_DB));
    else if (level < this.floor) this.floor += 0.3 * (level - this.floor);
    else this.floor += Math.min(level - this.floor, RISE_DB * this.blockSeconds);
    this.run = loud ? this.run + this.blockSeconds : Math.max(0, this.run - this.blockSeconds);
    this.quiet = loud ? 0 : this.quiet + this.blockSeconds;
    const started = !this.speaking && this.run >= ONSET_SECONDS * (pageIsHeard ? 2 : 1) - 0.001;
    const ended = this.speaking && this.quiet >= this.pauseSeconds;
    if (started || ended) this.speaking = started;
    if (ended) this.run = 0;
    return { loud, started, ended, level };
  }

  get isSilent() {
    return this.silent >= 3;
  }
}

// Of int16 samples, in dB re full scale.
function levelOf(samples) {
  let power = 0;
  for (const sample of samples) power += sample * sample;
  return 10 * Math.log10(power / samples.length / 32768 ** 2 + 1e-12);
}
