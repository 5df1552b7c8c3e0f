// Requests to the server that the page came from: its key, its errors, its streams.
import { store, stored } from "./dom.js";

const KEY = "krasis-key";

/** The key is kept for this tab alone. */
export const key = {
  get: () => stored("sessionStorage", KEY),
  set: (value) => store("sessionStorage", KEY, value),
};

/** What the server said instead of an answer. */
export class Refused extends Error {
  constructor(status, message) {
    super(message);
    this.status = status;
  }
}

let askForKey = null;

/** `ask(why)` shows an entry and resolves to whether a key was given. */
export function onKeyWanted(ask) {
  askForKey = ask;
}

/**
 * A request, sent again once the user has given a key where one is wanted. `quiet` requests are those
 * that nobody has asked for: they never open the entry.
 */
export async function call(path, { body, signal, quiet = false } = {}) {
  for (;;) {
    const headers = {};
    const used = key.get();
    if (used) headers.Authorization = `Bearer ${used}`;
    if (body) headers["Content-Type"] = "application/json";
    const response = await fetch(path, {
      method: body ? "POST" : "GET",
      headers,
      body: body && JSON.stringify(body),
      signal,
      cache: "no-store",
    });
    if (response.ok) return response;
    const refused = new Refused(response.status, await reason(response));
    if (response.status !== 401 || quiet) throw refused;
    // A key that does not open the server is not tried again; another may have been given meanwhile.
    if (used && key.get() === used) key.set(null);
    if (!key.get() && !(await askForKey?.(used ? refused.message : null))) throw refused;
  }
}

async function reason(response) {
  try {
    return (await response.json()).error.message;
  } catch {
    return `the server answered ${response.status}`;
  }
}

/** The documents of a stream of events. One that ends before `[DONE]` was cut off. */
export async function* events(response) {
  const reader = response.body.pipeThrough(new TextDecoderStream()).getReader();
  let rest = "";
  for (;;) {
    const { done, value } = await reader.read();
    if (done) throw new Error("the connection ended before the answer did");
    const lines = (rest + value).split("\n");
    rest = lines.pop();
    for (const line of lines) {
      if (!line.startsWith("data:")) continue;
      const data = line.slice(5).trim();
      if (data === "[DONE]") return;
      const document = JSON.parse(data);
      if (document.error) throw new Error(document.error.message);
      yield document;
    }
  }
}
