// The conversation: what was said, how it is shown, and how an answer comes in.
import { call, events } from "./api.js";
import { byId, copyButton, el, store, stored } from "./dom.js";
import { show } from "./markdown.js";

const KEPT = "krasis-conversation";

/** Answers whose reasoning the user has unfolded. */
const unfolded = new WeakSet();

/** Starts the view; `sampling` is the panel's reader, `modelName` says who answers. */
export function chat(sampling, modelName) {
  const turns = byId("turns");
  const message = byId("message");
  const [send, stop] = [byId("send"), byId("stop")];
  /** `{role, content}`, of answers also `reasoning`, `figures` and `problem`. */
  let said = checked(stored("sessionStorage", KEPT)) ?? [];
  /** What stops the answer that is coming in. */
  let running = null;

  // Only whoever is at the end is taken along by what comes.
  let following = true;
  turns.addEventListener("scroll", () => {
    following = turns.scrollHeight - turns.scrollTop - turns.clientHeight < 48;
  });
  const follow = () => following && (turns.scrollTop = turns.scrollHeight);

  function keep() {
    store("sessionStorage", KEPT, said.length > 0 ? said : null);
  }

  function draw() {
    turns.replaceChildren(...said.map((turn, index) => (turn.role === "user" ? asked : answered)(turn, index)));
    if (said.length === 0) turns.append(el("p", { class: "empty" }, `Ask ${modelName()} something.`));
    follow();
  }

  function asked(turn, index) {
    const edit = el("button", { type: "button", class: "quiet small" }, "Edit");
    const text = el("div", { class: "text" }, turn.content);
    const tools = el("div", { class: "tools" }, copyButton("Copy message", () => turn.content), edit);
    const article = el("article", { class: "turn user", "aria-label": "You" }, text, tools);
    edit.addEventListener("click", () => {
      if (!running) article.replaceWith(editor(turn, index));
      byId("edit")?.focus();
    });
    return article;
  }

  function editor(turn, index) {
    const area = el("textarea", { id: "edit", "aria-label": "Edit message" });
    area.value = turn.content;
    area.rows = Math.min(12, turn.content.split("\n").length + 1);
    const form = el(
      "form",
      { class: "turn user editing" },
      area,
      el("p", { class: "hint" }, "What came after it is left out."),
      el("div", { class: "row" }, el("span", { class: "space" }),
        el("button", { type: "button", class: "quiet", onclick: draw }, "Cancel"),
        el("button", { type: "submit", class: "main" }, "Send")),
    );
    area.addEventListener("keydown", (event) => {
      if (event.key === "Escape") draw(), message.focus();
      if (submits(event)) form.requestSubmit();
    });
    form.addEventListener("submit", (event) => {
      event.preventDefault();
      const content = area.value.trim();
      if (content && !running && ready()) {
        said = [...said.slice(0, index), { role: "user", content }];
        answer();
      }
    });
    return form;
  }

  function answered(turn, index) {
    const view = answerView(turn);
    view.update();
    const last = index === said.length - 1;
    const tools = el("div", { class: "tools" }, copyButton("Copy answer", () => turn.content));
    if (last) {
      const word = turn.problem ? "Try again" : "Regenerate";
      const again = el("button", { type: "button", class: "quiet small", onclick: regenerate }, word);
      tools.append(again);
    }
    tools.append(el("span", { class: "figures" }, figures(turn.figures)));
    view.article.append(tools);
    return view.article;
  }

  function regenerate() {
    if (running || !ready()) return;
    while (said.at(-1)?.role === "assistant") said.pop();
    answer();
  }

  /** Whether the settings can be sent; shows those that cannot. */
  function ready() {
    const wrong = sampling.wrong();
    if (wrong) {
      byId("settings").hidden || wrong.focus();
      tell(`${wrong.labels[0].textContent} is not between ${wrong.min} and ${wrong.max}`);
    }
    return !wrong;
  }

  /** Has the model answer what was said. */
  async function answer() {
    const turn = { role: "assistant", content: "", reasoning: "" };
    // An answer that was stopped before it began says nothing.
    const messages = said.filter(({ content }) => content).map(({ role, content }) => ({ role, content }));
    if (sampling.system()) messages.unshift({ role: "system", content: sampling.system() });
    const options = { include_usage: true, continuous_usage_stats: true };
    const request = { ...sampling.request(), messages, stream: true, stream_options: options };
    said.push(turn);
    keep();
    tell(null);
    following = true;
    draw();
    const view = answerView(turn);
    view.article.setAttribute("aria-busy", "true");
    turns.lastChild.replaceWith(view.article);
    const line = el("p", { class: "tools figures" }, "Waiting for the first token");
    view.article.append(line);
    follow();
    running = new AbortController();
    busy(true);
    byId("spoken").textContent = "Answering";
    const clock = { asked: performance.now() };
    const tick = setInterval(() => {
      const seconds = Math.round((performance.now() - clock.asked) / 1000);
      if (!turn.figures) line.textContent = `Waiting for the first token, ${seconds} s`;
    }, 1000);
    let frame = 0;
    const paint = () => {
      frame = 0;
      view.update();
      line.textContent = figures(turn.figures) || line.textContent;
      follow();
    };
    try {
      const response = await call("v1/chat/completions", { body: request, signal: running.signal });
      for await (const chunk of events(response)) {
        hear(turn, chunk, clock);
        frame ||= requestAnimationFrame(paint);
      }
    } catch (error) {
      turn.problem = error.name === "AbortError" ? "Stopped." : error.message;
    }
    cancelAnimationFrame(frame);
    clearInterval(tick);
    running = null;
    busy(false);
    keep();
    draw();
    byId("spoken").textContent = turn.problem ?? "The answer is complete";
  }

  function busy(is) {
    [send.hidden, stop.hidden] = [is, !is];
    // Focus that was on the hidden one of the two goes to where the next word is written.
    if (document.activeElement === document.body) message.focus();
  }

  function tell(problem) {
    byId("notice").hidden = !problem;
    byId("notice").textContent = problem ?? "";
  }

  byId("composer").addEventListener("submit", (event) => {
    event.preventDefault();
    const content = message.value.trim();
    if (!content || running || send.disabled || !ready()) return;
    message.value = "";
    grow();
    said.push({ role: "user", content });
    answer();
  });
  message.addEventListener("keydown", (event) => {
    if (!submits(event)) return;
    event.preventDefault();
    byId("composer").requestSubmit();
  });
  const grow = () => {
    message.rows = 1;
    message.rows = Math.min(8, Math.max(1, Math.floor(message.scrollHeight / 24)));
  };
  message.addEventListener("input", grow);
  stop.addEventListener("click", () => running?.abort());
  document.addEventListener("keydown", (event) => {
    if (event.key === "Escape" && !document.querySelector("dialog[open]")) running?.abort();
  });
  byId("new").addEventListener("click", () => {
    running?.abort();
    said = [];
    keep();
    tell(null);
    draw();
    message.focus();
  });
  byId("export").addEventListener("click", () => download(exported(said, sampling, modelName())));
  byId("import").addEventListener("click", () => byId("import-file").click());
  byId("import-file").addEventListener("change", async ({ target }) => {
    const file = target.files[0];
    target.value = "";
    if (!file) return;
    if (running) return tell("Stop the answer first; then it can be replaced");
    try {
      const { turns, system, values } = imported(await file.text());
      said = turns;
      if (values) sampling.write(values);
      if (system !== null) sampling.write({ ...sampling.read(), system });
      tell(null);
      keep();
      draw();
    } catch (error) {
      tell(`${file.name} is no conversation: ${error.message}`);
    }
  });
  draw();
  return { draw, tell };
}

/** Enter sends, with Shift it begins a line; where letters are composed, Enter chooses one. */
function submits(event) {
  return event.key === "Enter" && !event.shiftKey && !event.isComposing;
}

/** The elements of an answer, which a stream updates. */
function answerView(turn) {
  const reasoning = el("div", { class: "reasoning-text" });
  const summary = el("summary", {}, "Reasoning");
  const attributes = { class: "reasoning", hidden: true, open: unfolded.has(turn) };
  const fold = el("details", attributes, summary, reasoning);
  fold.addEventListener("toggle", () => (fold.open ? unfolded.add(turn) : unfolded.delete(turn)));
  const text = el("div", { class: "text prose" });
  const problem = el("p", { class: "problem", hidden: true });
  const article = el("article", { class: "turn assistant", "aria-label": "Answer" }, fold, text, problem);
  const update = () => {
    fold.hidden = !turn.reasoning;
    if (turn.reasoning && reasoning.textContent !== turn.reasoning) reasoning.textContent = turn.reasoning;
    summary.textContent = turn.content || turn.figures?.over ? "Reasoning" : "Reasoning …";
    show(text, turn.content);
    problem.hidden = !turn.problem;
    problem.textContent = turn.problem ?? "";
  };
  return { article, update };
}

/** Takes in a chunk of a stream. Times are the browser's: what a user waits for. */
function hear(turn, chunk, clock) {
  const delta = chunk.choices?.[0]?.delta ?? {};
  const reasoning = delta.reasoning_content ?? delta.reasoning ?? "";
  turn.reasoning += reasoning;
  turn.content += delta.content ?? "";
  for (const { function: named } of delta.tool_calls ?? []) {
    // This page offers no tools; a model may call one all the same.
    turn.content += (named.name ? `\n\nIt calls \`${named.name}\` ` : "") + (named.arguments ?? "");
  }
  const now = performance.now();
  const tokens = chunk.usage?.completion_tokens ?? 0;
  if (tokens > 0 && clock.first === undefined) Object.assign(clock, { first: now, before: tokens });
  if (tokens > (turn.figures?.tokens ?? 0)) clock.last = now;
  if (chunk.usage && clock.first !== undefined) {
    const { prompt_tokens: prompt, prompt_tokens_details: details } = chunk.usage;
    const seconds = (clock.last - clock.first) / 1000;
    turn.figures = {
      first: (clock.first - clock.asked) / 1000,
      rate: seconds > 0 ? (tokens - clock.before) / seconds : null,
      tokens,
      prompt,
      cached: details?.cached_tokens ?? 0,
      over: chunk.choices?.length === 0 || turn.figures?.over,
    };
  }
  const finish = chunk.choices?.[0]?.finish_reason;
  if (finish === "length") turn.problem = "It ends here because it may not be longer.";
}

function figures(figures) {
  if (!figures) return "";
  const { first, rate, tokens, prompt, cached } = figures;
  const parts = [`first token ${first < 1 ? `${Math.round(first * 1000)} ms` : `${first.toFixed(1)} s`}`];
  if (rate) parts.push(`${rate < 10 ? rate.toFixed(1) : Math.round(rate)} tok/s`);
  parts.push(`${tokens} ${tokens === 1 ? "token" : "tokens"}`);
  parts.push(`prompt ${prompt}${cached > 0 ? `, ${cached} reused` : ""}`);
  return parts.join(" · ");
}

function exported(said, sampling, model) {
  const system = sampling.system();
  const first = system ? [{ role: "system", content: system }] : [];
  const messages = said.map(({ role, content, reasoning, figures, problem }) => ({
    role,
    content,
    ...(reasoning && { reasoning_content: reasoning }),
    ...(figures && { figures }),
    ...(problem && { problem }),
  }));
  const { system: _, ...values } = sampling.read();
  return { model, saved: new Date().toISOString(), sampling: values, messages: [...first, ...messages] };
}

function download(value) {
  const url = URL.createObjectURL(new Blob([JSON.stringify(value, null, 2)], { type: "application/json" }));
  el("a", { href: url, download: `krasis-${value.saved.slice(0, 10)}.json` }).click();
  setTimeout(() => URL.revokeObjectURL(url), 10_000);
}

/** A conversation in this page's form, or any list of messages as OpenAI's API has them. */
function imported(text) {
  const value = JSON.parse(text);
  const messages = Array.isArray(value) ? value : value?.messages;
  if (!Array.isArray(messages)) throw new Error("it has no list of messages");
  const whole = messages.map(({ role, content, reasoning_content, reasoning, figures, problem }) => {
    const parts = Array.isArray(content) ? content.map((part) => part.text ?? "").join("") : content;
    return { role, content: parts ?? "", reasoning: reasoning_content ?? reasoning, figures, problem };
  });
  const system = whole.find(({ role }) => role === "system")?.content ?? null;
  const turns = checked(whole.filter(({ role }) => role !== "system"));
  if (!turns) throw new Error("its messages are not texts of users and assistants");
  const values = typeof value.sampling === "object" ? value.sampling : null;
  return { turns, system, values };
}

/** Turns that have the form that the page relies on, or null. */
function checked(turns) {
  if (!Array.isArray(turns)) return null;
  const text = (value) => (typeof value === "string" ? value : undefined);
  const numbers = (value) => {
    const names = ["first", "tokens", "prompt", "cached"];
    return names.every((name) => Number.isFinite(value?.[name])) ? value : undefined;
  };
  const known = ["user", "assistant"];
  if (!turns.every((turn) => known.includes(turn?.role) && text(turn.content) !== undefined)) return null;
  return turns.map(({ role, content, reasoning, figures, problem }) => {
    if (role === "user") return { role, content };
    const rest = { figures: numbers(figures), problem: text(problem) };
    return { role, content, reasoning: text(reasoning) ?? "", ...rest };
  });
}
