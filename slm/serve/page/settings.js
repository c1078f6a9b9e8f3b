// The sliders and numbers of the sampling, with their names as the protocol has them.
const controls = document.getElementById("controls");
const inputs = () => [...controls.querySelectorAll("input")];

export const settingValues = () => Object.fromEntries(inputs().map((input) => [input.name, Number(input.value)]));

export const invalidSetting = () => inputs().find((input) => !input.checkValidity());

// Writes each slider's value beside it.
export function showSettings() {
  for (const input of inputs()) if (input.type === "range") input.previousElementSibling.textContent = input.value;
}
controls.addEventListener("input", showSettings);
