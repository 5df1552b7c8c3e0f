// What the model is to do with what it is asked: the panel beside the conversation. Empty fields are
// not sent, so that the server's and the model's own defaults hold.
import { el, store, stored } from "./dom.js";

const KEPT = "krasis-sampling";

const NUMBERS = [
  ["temperature", "Temperature", 0, 2, 0.05, "0 takes the most likely token"],
  ["top_p", "Top p", 0, 1, 0.01, "Keeps the likeliest tokens up to this probability"],
  ["top_k", "Top k", 0, 100000, 1, "Keeps so many tokens; 0 keeps all"],
  ["min_p", "Min p", 0, 1, 0.01, "Drops tokens less likely than this part of the best"],
  ["repetition_penalty", "Repetition penalty", 0.01, 10, 0.01, "Divides what was said before"],
  ["presence_penalty", "Presence penalty", -2, 2, 0.1, "Against tokens that were said"],
  ["frequency_penalty", "Frequency penalty", -2, 2, 0.1, "The same, per occurrence"],
  ["max_tokens", "Tokens at most", 1, 1000000, 1, "Of one answer"],
  ["seed", "Seed", -9007199254740991, 9007199254740991, 1, "Same seed, same question, same answer"],
];

/** Fills the panel; the result reads it. */
export function settings(panel) {
  const fields = new Map();
  const field = (name, label, input, hint) => {
    input.id = `set-${name}`;
    if (hint) input.setAttribute("aria-describedby", `hint-${name}`);
    fields.set(name, input);
    const about = hint ? [el("span", { class: "hint", id: `hint-${name}` }, hint)] : [];
    return el("div", { class: "field" }, el("label", { for: input.id }, label), input, ...about);
  };
  const choice = (...options) =>
    el("select", {}, ...options.map(([value, label]) => el("option", { value }, label)));
  const system = el("textarea", { rows: 4, placeholder: "None" });
  const thinking = choice(["", "As the model likes"], ["true", "On"], ["false", "Off"]);
  const stop = el("textarea", { rows: 2, placeholder: "One a line" });
  const form = el(
    "form",
    { novalidate: true, onsubmit: (event) => event.preventDefault() },
    field("system", "System prompt", system),
    field("thinking", "Reasoning", thinking, "Where the model's template can turn it on and off"),
    ...NUMBERS.map(([name, label, min, max, step, hint]) => {
      const input = el("input", { type: "number", min, max, step, inputmode: "decimal", placeholder: "Default" });
      // Steps are for the arrows; any number between the bounds may be typed.
      if (step < 1) input.addEventListener("focusout", () => (input.step = "any"));
      if (step < 1) input.addEventListener("focusin", () => (input.step = step));
      return field(name, label, input, hint);
    }),
    field("stop", "Stop at", stop),
  );
  const reset = el("button", { type: "button", class: "quiet" }, "Back to defaults");
  reset.addEventListener("click", () => write({}));
  panel.replaceChildren(el("h2", {}, "Sampling"), form, reset);

  const read = () => {
    const values = [...fields].map(([name, input]) => [name, input.value]);
    return Object.fromEntries(values.filter(([, value]) => value.trim() !== ""));
  };
  const write = (values) => {
    for (const [name, input] of fields) input.value = values[name] ?? "";
    store("localStorage", KEPT, read());
  };
  write(stored("localStorage", KEPT) ?? {});
  form.addEventListener("input", () => store("localStorage", KEPT, read()));

  return {
    read,
    write,
    system: () => system.value.trim(),
    /** The first field that holds what cannot be sent. */
    wrong: () => [...fields.values()].find((input) => input.type === "number" && beyond(input)),
    /** Fields of a request. */
    request() {
      const request = {};
      const values = read();
      for (const [name] of NUMBERS) {
        if (values[name] !== undefined) request[name] = Number(values[name]);
      }
      const stops = stop.value.split("\n").filter((line) => line !== "");
      if (stops.length > 0) request.stop = stops;
      if (values.thinking) request.chat_template_kwargs = { enable_thinking: values.thinking === "true" };
      return request;
    },
  };
}

function beyond(input) {
  const { badInput, rangeUnderflow, rangeOverflow } = input.validity;
  return badInput || rangeUnderflow || rangeOverflow;
}
