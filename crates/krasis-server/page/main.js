// The page: its tabs, its colours, the key, and how far the server is.
import { call, key, onKeyWanted } from "./api.js";
import { chat } from "./chat.js";
import { byId, store, stored } from "./dom.js";
import { settings } from "./settings.js";
import { status } from "./status.js";

const NAMELESS = "the model";

let model = NAMELESS;
let refused = false;
const sampling = settings(byId("settings"));
const conversation = chat(sampling, () => model);
const overview = status(byId("view-status"));

// Tabs, which arrow keys move between; the address remembers which one is open.
const TABS = ["chat", "status"].map((name) => [name, byId(`tab-${name}`), byId(`view-${name}`)]);

function open(wanted) {
  for (const [name, tab, view] of TABS) {
    tab.setAttribute("aria-selected", String(name === wanted));
    tab.tabIndex = name === wanted ? 0 : -1;
    view.hidden = name !== wanted;
  }
  if (wanted === "status") overview.start();
  else overview.stop();
  if (wanted === "chat") byId("turns").scrollTop = byId("turns").scrollHeight;
}

for (const [name, tab] of TABS) {
  tab.addEventListener("click", () => (location.hash = name));
  tab.addEventListener("keydown", (event) => {
    const step = { ArrowRight: 1, ArrowLeft: -1 }[event.key];
    if (!step) return;
    const next = TABS[(TABS.findIndex(([other]) => other === name) + step + TABS.length) % TABS.length];
    location.hash = next[0];
    next[1].focus();
  });
}
const shown = () => (location.hash === "#status" ? "status" : "chat");
window.addEventListener("hashchange", () => open(shown()));

// Colours: the system's, until somebody wants others.
const THEMES = [["", "◐", "as the system"], ["light", "☀", "light"], ["dark", "☾", "dark"]];

function colour(name) {
  const [theme, sign, word] = THEMES.find(([known]) => known === name) ?? THEMES[0];
  if (theme) document.documentElement.dataset.theme = theme;
  else delete document.documentElement.dataset.theme;
  byId("theme").textContent = sign;
  byId("theme").setAttribute("aria-label", `Colours: ${word}`);
  store("localStorage", "krasis-theme", theme || null);
  overview.redraw();
}

byId("theme").addEventListener("click", () => {
  const now = document.documentElement.dataset.theme ?? "";
  const at = THEMES.findIndex(([theme]) => theme === now);
  colour(THEMES[(at + 1) % THEMES.length][0]);
});
colour(stored("localStorage", "krasis-theme") ?? "");

byId("open-settings").addEventListener("click", ({ currentTarget }) => {
  const panel = byId("settings");
  panel.hidden = !panel.hidden;
  currentTarget.setAttribute("aria-expanded", String(!panel.hidden));
  if (!panel.hidden) panel.querySelector("textarea").focus();
});

// The key. Whoever waits for one is told what became of it.
const dialog = byId("key-dialog");
let waiting = null;

function askForKey(why) {
  // Several requests may ask at once; what one of them was told stays.
  if (why || !dialog.open) {
    byId("key-why").textContent = why ?? "";
    byId("key-why").hidden = !why;
  }
  byId("key-button").hidden = false;
  if (!dialog.open) {
    byId("key").value = "";
    dialog.showModal();
  }
  if (!waiting) {
    waiting = {};
    waiting.promise = new Promise((resolve) => (waiting.resolve = resolve));
  }
  return waiting.promise;
}

function answerKey(given) {
  dialog.close();
  waiting?.resolve(given);
  waiting = null;
  look();
}

onKeyWanted(askForKey);
byId("key-form").addEventListener("submit", (event) => {
  event.preventDefault();
  key.set(byId("key").value.trim());
  answerKey(true);
});
byId("key-cancel").addEventListener("click", () => answerKey(false));
byId("key-forget").addEventListener("click", () => {
  key.set(null);
  answerKey(false);
});
dialog.addEventListener("cancel", (event) => {
  event.preventDefault();
  answerKey(false);
});
byId("key-button").addEventListener("click", () => askForKey(null));

// How far the server is, and what its model is called.
const WORDS = {
  loading: ({ phase, percent }) => `Loading: ${phase}, ${percent} %`,
  draining: () => "The server is finishing its last answers",
  failed: () => "The engine has failed; the server's log says why",
  gone: () => "The server does not answer",
};
const LOADING_EVERY = 1000;
const READY_EVERY = 15_000;
let looks = 0;
let next = null;

async function look() {
  clearTimeout(next);
  looks += 1;
  const mine = looks;
  let state;
  try {
    state = await (await fetch("health", { cache: "no-store" })).json();
  } catch {
    state = { status: "gone" };
  }
  const ready = state.status === "ok";
  byId("model").dataset.state = state.status;
  byId("send").disabled = !ready;
  // A server that comes back may have another model.
  if (!ready) model = NAMELESS;
  const words = ready ? await modelName() : (WORDS[state.status] ?? WORDS.gone)(state);
  // Only the last look counts and goes on: a key that is given begins another.
  if (mine !== looks) return;
  byId("model-name").textContent = words;
  next = setTimeout(look, ready ? READY_EVERY : LOADING_EVERY);
}

let naming = null;

/** The model's name, for which a key may be wanted. Who has refused once is not asked again. */
async function modelName() {
  if (model !== NAMELESS) return model;
  if (refused && !key.get()) return "A key is wanted";
  // However many look, one of them asks.
  naming ??= askName().finally(() => (naming = null));
  return naming;
}

async function askName() {
  try {
    const { data } = await (await call("v1/models")).json();
    model = data[0].id;
    if (byId("turns").querySelector(".empty")) conversation.draw();
    return model;
  } catch (error) {
    refused = true;
    return error.status === 401 ? "A key is wanted" : error.message;
  }
}

open(shown());
look();
byId("message").focus();
