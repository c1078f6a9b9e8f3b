// Sound files in and out.

// A sound file (ArrayBuffer) as mono int16 at a rate, cut to so many seconds.
export async function decoded(file, rate, seconds) {
  const buffer = await new OfflineAudioContext(1, 1, rate).decodeAudioData(file);
  const channels = Array.from({ length: buffer.numberOfChannels }, (_, c) => buffer.getChannelData(c));
  const length = Math.min(buffer.length, Math.floor(seconds * rate));
  return Int16Array.from({ length }, (_, i) => {
    const mean = channels.reduce((sum, channel) => sum + channel[i], 0) / channels.length;
    return Math.round(32767 * Math.max(-1, Math.min(1, mean)));
  });
}

// Int16Arrays as the blob of a WAV file, mono.
export function wavFile(pieces, rate) {
  const length = pieces.reduce((sum, piece) => sum + piece.length, 0);
  const header = new DataView(new ArrayBuffer(44));
  [[0, "RIFF"], [8, "WAVEfmt "], [36, "data"]].forEach(([at, text]) => [...text].forEach((letter, i) => header.setUint8(at + i, letter.charCodeAt(0))));
  [[4, 36 + 2 * length], [16, 16], [24, rate], [28, 2 * rate], [40, 2 * length]].forEach(([at, value]) => header.setUint32(at, value, true));
  [[20, 1], [22, 1], [32, 2], [34, 16]].forEach(([at, value]) => header.setUint16(at, value, true));
  return new Blob([header, ...pieces], { type: "audio/wav" });
}
