// The microphone: opened with a time limit, in its own sound context at its own rate.
const WAIT_SECONDS = 60; // for the answer to the browser's question; Firefox never says that it was closed unanswered

// onBlock: called with every block of about 40 ms of int16 samples. Throws where there is no microphone.
export async function openMicrophone(onBlock, isWanted) {
  if (!navigator.mediaDevices) throw new Error("browsers allow it only on https pages and on localhost");
  const asked = navigator.mediaDevices.getUserMedia({ audio: { echoCancellation: true, noiseSuppression: false, autoGainControl: true } });
  let timer;
  const late = new Promise((_, fail) => (timer = setTimeout(() => fail(new Error("the browser’s question was not answered")), 1000 * WAIT_SECONDS)));
  let stream;
  try {
    stream = await Promise.race([asked, late]);
  } catch (error) {
    asked.then(stopTracks, () => {});
    throw new Error(MEANING[error.name] ?? error.message);
  } finally {
    clearTimeout(timer);
  }
  if (!isWanted()) {
    stopTracks(stream);
    return null;
  }
  // Firefox connects a microphone only to a context of the microphone's own rate.
  const context = new AudioContext();
  try {
    await Promise.all([context.resume(), context.audioWorklet.addModule(new URL("capture.js", import.meta.url))]);
    const input = context.createMediaStreamSource(stream);
    const capture = new AudioWorkletNode(context, "capture", { numberOfOutputs: 0 });
    capture.port.onmessage = ({ data }) => onBlock(data);
    input.connect(capture);
  } catch (error) {
    stopTracks(stream);
    context.close();
    throw error;
  }
  return {
    rate: context.sampleRate,
    close() {
      stopTracks(stream);
      context.close();
    },
  };
}

const MEANING = {
  NotAllowedError: "not allowed: allow it for this page in the address bar, and in the system’s settings",
  NotFoundError: "there is none: connect one",
  NotReadableError: "another program uses it: close that one",
};

function stopTracks(stream) {
  for (const track of stream.getTracks()) track.stop();
}
