// A conversation without buttons: a turn begins when the speaker begins, and continues when they pause. When they speak
// again, the continuation stops, and the next turn begins with what they say.
import { VoiceDetector } from "./voice.js";

const BEFORE_SECONDS = 0.4; // of sound before speech was noticed, which belong to the turn
const AFTER_SECONDS = 0.12; // of the pause that belong to it; a long silence would be continued with silence

export class HandsFree {
  // on: { begin, send, end }: a turn begins, more of its prompt, its end. pageIsHeard(): whether the page plays something.
  constructor(rate, blockSamples, on, pageIsHeard) {
    this.blockSeconds = blockSamples / rate;
    this.detector = new VoiceDetector(this.blockSeconds);
    Object.assign(this, { on, pageIsHeard });
    this.before = []; // the latest blocks, while nobody speaks
    this.waiting = null; // blocks of a turn until it may send
    this.pause = []; // blocks since the last speech, sent if speech follows
    this.taking = false; // a turn takes its prompt
    this.over = false; // its prompt ended before it could be sent
  }

  take(block) {
    const { loud, started, ended, level } = this.detector.take(block, this.pageIsHeard());
    if (started) this.begin();
    else if (!this.taking) this.before = [...this.before, block].slice(-Math.ceil(BEFORE_SECONDS / this.blockSeconds));
    if (this.taking) {
      if (loud) this.pass([...this.pause.splice(0), block]);
      else this.pause.push(block);
      if (ended) this.end();
    }
    return level;
  }

  begin() {
    this.taking = true;
    this.over = false;
    this.waiting = this.before.splice(0);
    this.pause = [];
    this.on.begin();
  }

  pass(blocks) {
    if (this.waiting) this.waiting.push(...blocks);
    else blocks.forEach(this.on.send);
  }

  end() {
    if (!this.taking) return;
    this.pass(this.pause.splice(0).slice(0, Math.ceil(AFTER_SECONDS / this.blockSeconds)));
    this.taking = false;
    if (this.waiting) this.over = true;
    else this.on.end();
  }

  // The turn may send its prompt.
  ready() {
    const blocks = this.waiting ?? [];
    this.waiting = null;
    blocks.forEach(this.on.send);
    if (this.over) this.on.end();
    this.over = false;
  }

  // The turn was refused, or has ended: listen for the next one.
  forget() {
    this.taking = this.over = false;
    this.waiting = null;
    this.detector.speaking = false;
    this.detector.run = 0;
  }
}
