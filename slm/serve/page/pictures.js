// Waveform, spectrogram and tokens on one time axis; when the pictures are full, they show the latest seconds.
const SECONDS = 12; // across the pictures
const FFT = 512;
const [FLOOR_DB, TOP_DB] = [-80, -20]; // drawn black and brightest; 0 dB is a full-scale sine
const FULL = 8192; // the lowest peak that fills the waveform's height

export class Pictures {
  constructor(canvases, { rate, tokenRate, bits }) {
    Object.assign(this, { canvases, rate, tokenRate, bits });
    this.window = Float32Array.from({ length: FFT }, (_, i) => 0.5 - 0.5 * Math.cos((2 * Math.PI * i) / FFT));
    this.clear();
    addEventListener("resize", () => this.draw());
    matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => this.draw());
  }

  clear() {
    this.samples = new Int16Array(SECONDS * this.rate); // the latest; `count` is how many have arrived in all
    this.codes = [];
    this.count = this.codeCount = 0;
    this.promptEnd = Infinity; // in samples
    this.playhead = -1;
    this.draw();
  }

  add(samples, codes, isNew) {
    if (isNew && this.promptEnd === Infinity) this.promptEnd = this.count;
    const size = this.samples.length;
    for (let i = 0; i < samples.length; i++) this.samples[(this.count + i) % size] = samples[i];
    this.count += samples.length;
    this.codes.push(...codes);
    this.codeCount += codes.length;
    this.codes.splice(0, Math.max(0, this.codes.length - SECONDS * this.tokenRate));
    this.draw();
  }

  draw() {
    if (this.waiting) return;
    this.waiting = true;
    requestAnimationFrame(() => {
      this.waiting = false;
      this.begin = Math.max(0, this.count - this.samples.length); // the sample at the left edge
      const style = getComputedStyle(document.documentElement);
      [this.prompt, this.fresh, this.ink] = ["--accent", "--second", "--ink"].map((name) => style.getPropertyValue(name));
      this.drawWave(...this.fitted(this.canvases.wave));
      this.drawSpectrogram(...this.fitted(this.canvases.spectrogram));
      this.drawTokens(...this.fitted(this.canvases.tokens));
    });
  }

  fitted(canvas) {
    const scale = Math.min(2, devicePixelRatio);
    const height = (canvas.dataset.height ??= canvas.height);
    canvas.style.height = `${height}px`;
    canvas.width = Math.max(1, Math.round(canvas.clientWidth * scale));
    canvas.height = Math.round(height * scale);
    return [canvas.getContext("2d"), canvas.width, canvas.height];
  }

  at(sample) {
    return this.samples[sample % this.samples.length];
  }

  colour(sample) {
    return sample < this.promptEnd ? this.prompt : this.fresh;
  }

  drawWave(context, width, height) {
    const perPixel = this.samples.length / width;
    const full = this.samples.reduce((peak, sample) => Math.max(peak, Math.abs(sample)), FULL);
    for (let x = 0; x < width; x++) {
      const from = this.begin + Math.floor(x * perPixel);
      const to = Math.min(this.count, this.begin + Math.floor((x + 1) * perPixel));
      let [low, high] = [0, 0];
      for (let i = from; i < to; i++) {
        low = Math.min(low, this.at(i));
        high = Math.max(high, this.at(i));
      }
      if (to <= from) continue;
      context.fillStyle = this.colour(from);
      const top = (height / 2) * (1 - high / full);
      context.fillRect(x, top, 1, Math.max(1, (height * (high - low)) / (2 * full)));
    }
    this.drawMarks(context, width, height, this.ink);
  }

  drawSpectrogram(context, width, height) {
    const columns = Math.min(width, 600);
    const image = new ImageData(columns, FFT / 2);
    const frame = new Float32Array(FFT);
    for (let x = 0; x < columns; x++) {
      const end = this.begin + Math.floor(((x + 1) * this.samples.length) / columns);
      if (end > this.count || end - FFT < this.begin) {
        for (let k = 0; k < FFT / 2; k++) image.data.set([0, 0, 4, 255], 4 * (k * columns + x));
        continue;
      }
      for (let i = 0; i < FFT; i++) frame[i] = (this.window[i] * this.at(end - FFT + i)) / 32768;
      const power = spectrum(frame);
      for (let k = 0; k < FFT / 2; k++) {
        const level = (10 * Math.log10(power[k] * (16 / FFT / FFT) + 1e-12) - FLOOR_DB) / (TOP_DB - FLOOR_DB);
        image.data.set([...heat(level), 255], 4 * ((FFT / 2 - 1 - k) * columns + x));
      }
    }
    const plane = new OffscreenCanvas(columns, FFT / 2);
    plane.getContext("2d").putImageData(image, 0, 0);
    context.drawImage(plane, 0, 0, width, height);
    this.drawMarks(context, width, height, "#fff");
  }

  drawTokens(context, width, height) {
    const cell = width / (SECONDS * this.tokenRate);
    const first = this.codeCount - this.codes.length;
    const shift = (this.begin / this.rate) * this.tokenRate;
    this.codes.forEach((code, index) => {
      const token = first + index;
      context.fillStyle = this.colour((token * this.rate) / this.tokenRate);
      const x = Math.floor((token - shift) * cell);
      const right = Math.floor((token - shift + 1) * cell);
      for (let bit = 0; bit < this.bits; bit++) {
        if (!((code >> (this.bits - 1 - bit)) & 1)) continue;
        const y = Math.floor((bit * height) / this.bits);
        context.fillRect(x, y, Math.max(1, right - x), Math.floor(((bit + 1) * height) / this.bits) - y);
      }
    });
    this.drawMarks(context, width, height, this.ink);
  }

  drawMarks(context, width, height, colour) {
    const place = (sample) => ((sample - this.begin) * width) / this.samples.length;
    context.strokeStyle = colour;
    context.lineWidth = Math.min(2, devicePixelRatio);
    for (const [sample, dashes] of [[this.promptEnd, [6, 5]], [this.playhead, []]]) {
      if (!(sample > this.begin && sample <= this.count)) continue;
      context.setLineDash(dashes);
      context.beginPath();
      context.moveTo(place(sample), 0);
      context.lineTo(place(sample), height);
      context.stroke();
    }
  }
}

// Power of the lower half of a real signal's spectrum, by a radix-2 Fourier transform.
function spectrum(signal) {
  const size = signal.length;
  const real = new Float32Array(size);
  const imaginary = new Float32Array(size);
  const shift = 32 - Math.log2(size);
  for (let i = 0; i < size; i++) real[reversed(i) >>> shift] = signal[i];
  for (let half = 1; half < size; half *= 2) {
    for (let offset = 0; offset < half; offset++) {
      const angle = (-Math.PI * offset) / half;
      const [c, s] = [Math.cos(angle), Math.sin(angle)];
      for (let i = offset; i < size; i += 2 * half) {
        const j = i + half;
        const [x, y] = [real[j] * c - imaginary[j] * s, real[j] * s + imaginary[j] * c];
        [real[j], imaginary[j]] = [real[i] - x, imaginary[i] - y];
        [real[i], imaginary[i]] = [real[i] + x, imaginary[i] + y];
      }
    }
  }
  return Float32Array.from({ length: size / 2 }, (_, k) => real[k] ** 2 + imaginary[k] ** 2);
}

function reversed(bits) {
  let out = 0;
  for (let i = 0; i < 32; i++) out = (out << 1) | ((bits >>> i) & 1);
  return out >>> 0;
}

// Black over purple and orange to pale yellow, for 0 to 1.
const STOPS = [[0, 0, 4], [60, 15, 110], [150, 40, 110], [230, 92, 48], [252, 180, 40], [252, 255, 190]];
const HEAT = Array.from({ length: 256 }, (_, i) => {
  const at = (i / 255) * (STOPS.length - 1);
  const low = Math.min(STOPS.length - 2, Math.floor(at));
  return STOPS[low].map((value, c) => Math.round(value + (at - low) * (STOPS[low + 1][c] - value)));
});
const heat = (level) => HEAT[Math.round(255 * Math.max(0, Math.min(1, level)))];
