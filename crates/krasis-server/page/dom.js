// Elements of the page. Texts become text nodes: nothing that a model says is ever parsed as HTML,
// which the page's policy (require-trusted-types-for) would not allow anyway.

/** The element with an id. */
export const byId = (id) => document.getElementById(id);

/** A new element. Attributes that begin with "on" are listeners; true and false set or leave out. */
export function el(tag, attributes = {}, ...children) {
  const element = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) {
    if (name.startsWith("on")) element.addEventListener(name.slice(2), value);
    else if (value !== false && value != null) element.setAttribute(name, value === true ? "" : value);
  }
  element.append(...children);
  return element;
}

/** A button that copies what `text` returns, and says for a moment that it has. */
export function copyButton(label, text) {
  const button = el("button", { type: "button", class: "quiet small", "aria-label": label }, "Copy");
  const say = (word) => {
    button.textContent = word;
    setTimeout(() => (button.textContent = "Copy"), 1500);
  };
  button.addEventListener("click", async () => {
    try {
      // Only offered to pages over HTTPS or from this machine.
      if (navigator.clipboard) await navigator.clipboard.writeText(text());
      else copySelected(text());
      say("Copied");
    } catch {
      say("Not allowed");
    }
  });
  return button;
}

function copySelected(text) {
  const area = el("textarea", { class: "unseen", readonly: true });
  area.value = text;
  document.body.append(area);
  area.select();
  const copied = document.execCommand("copy");
  area.remove();
  if (!copied) throw new Error("the browser does not copy");
}

/** What storage holds under a name; storage may be forbidden, full, or hold something else. */
export function stored(storage, name) {
  try {
    return JSON.parse(window[storage].getItem(name));
  } catch {
    return null;
  }
}

/** Keeps a value, or forgets it if it is null. */
export function store(storage, name, value) {
  try {
    if (value === null) window[storage].removeItem(name);
    else window[storage].setItem(name, JSON.stringify(value));
  } catch {
    // Then it is gone when the page is.
  }
}
