// The Mersenne Twister of Matsumoto and Nishimura (1998), seeded and read as PyTorch does.
const WORDS = 624;
const SHIFT = 397;

/** Uniform numbers of one stream: those of Python's `slm.generation.sampling.RandomStream`, bit for bit. */
export class RandomStream {
  /** @param {number} seed a whole number from 0 to 2^53 - 1; its low 32 bits count */
  constructor(seed) {
    this.state = new Uint32Array(WORDS);
    this.state[0] = seed % 2 ** 32;
    for (let i = 1; i < WORDS; i++) {
      const before = this.state[i - 1] ^ (this.state[i - 1] >>> 30);
      this.state[i] = Math.imul(1812433253, before) + i;
    }
    this.next = WORDS;
  }

  /** @returns {number} the next number in [0, 1), of 53 bits */
  uniform() {
    const high = this.word() & 0x1fffff;
    return (high * 2 ** 32 + this.word()) * 2 ** -53;
  }

  /** @returns {number} the next 32 bits */
  word() {
    if (this.next === WORDS) this.twist();
    let word = this.state[this.next++];
    word ^= word >>> 11;
    word ^= (word << 7) & 0x9d2c5680;
    word ^= (word << 15) & 0xefc60000;
    return (word ^ (word >>> 18)) >>> 0;
  }

  twist() {
    const { state } = this;
    for (let i = 0; i < WORDS; i++) {
      const joined = (state[i] & 0x80000000) | (state[(i + 1) % WORDS] & 0x7fffffff);
      state[i] = state[(i + SHIFT) % WORDS] ^ (joined >>> 1) ^ (joined & 1 ? 0x9908b0df : 0);
    }
    this.next = 0;
  }
}
