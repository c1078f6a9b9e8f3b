// A version's button loads its sound into the clip's player and keeps the position.
for (const clip of document.querySelectorAll("article")) {
  const audio = clip.querySelector("audio");
  const buttons = clip.querySelectorAll("button");
  for (const button of buttons) {
    button.addEventListener("click", () => {
      const place = audio.ended ? 0 : audio.currentTime;
      for (const other of buttons) other.setAttribute("aria-pressed", String(other === button));
      audio.src = button.dataset.src;
      audio.addEventListener("loadedmetadata", () => { audio.currentTime = Math.min(place, audio.duration); }, { once: true });
      audio.play();
    });
  }
}
