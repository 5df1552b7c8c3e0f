// The second tab: how the server is, read again and again while somebody looks.
import { call } from "./api.js";
import { el } from "./dom.js";
import { heatMap, line } from "./draw.js";

const EVERY = 2000;
/** Numbers that a line shows. */
const HISTORY = 60;
/** Time after which a token counts half in the picture of the last minute. */
const HALF_LIFE = 20_000;

const number = new Intl.NumberFormat("en");

/** Fills the view; the result starts and stops reading. */
export function status(view) {
  const parts = build();
  view.replaceChildren(parts.whole);
  let timer = null;
  let reads = 0;
  let before = null;
  let map = null;
  let selected = null;
  const paces = { prompts: [], decodes: [] };
  const heat = { counts: null, recent: null, at: 0 };

  async function read() {
    const mine = (reads += 1);
    clearTimeout(timer);
    try {
      const state = await (await call("v1/status", { quiet: mine > 1 })).json();
      const experts = state.experts?.counted
        ? await (await call("v1/status/experts", { quiet: true })).json()
        : null;
      // Meanwhile the view may have been left and opened again.
      if (mine !== reads) return;
      parts.problem.hidden = true;
      parts.body.hidden = false;
      showState(state);
      showExperts(state, experts);
    } catch (error) {
      if (mine !== reads) return;
      parts.problem.hidden = false;
      parts.problem.textContent = `The status cannot be read: ${error.message}`;
    }
    timer = setTimeout(read, EVERY);
  }

  function showState(state) {
    const { server, model, requests, kv_pages: pages, pace } = state;
    const loading = server.status === "loading" ? `loading: ${server.phase}, ${server.percent} %` : null;
    parts.server.textContent = loading ?? { ok: "ready" }[server.status] ?? server.status;
    facts(parts.facts, [
      ["Model", model.names.join(", ")],
      ["Device", model.device],
      ["Context", model.context_max && `${number.format(model.context_max)} tokens`],
      ["Version", state.version],
      ["Up", duration(state.uptime_seconds)],
      ["Keys", state.keys ? "wanted" : "none wanted"],
    ]);
    for (const name of ["prompts", "decodes"]) {
      paces[name].push(rate(pace?.[name], before?.pace?.[name]));
      paces[name].splice(0, paces[name].length - HISTORY);
      const last = paces[name].findLast((value) => value !== null);
      const shown = last ?? rate(pace?.[name], { tokens: 0, seconds: 0 });
      const when = last === undefined ? " since the start" : paces[name].at(-1) === null ? ", last" : "";
      parts[name].value.textContent = shown === null ? "–" : number.format(Math.round(shown));
      parts[name].unit.textContent = shown === null ? "no tokens yet" : `tok/s${when}`;
      line(parts[name].canvas, paces[name], HISTORY);
    }
    parts.running.value.textContent = requests.running ?? 0;
    parts.running.unit.textContent = `${requests.waiting ?? 0} of at most ${requests.queue_max ?? 0} waiting`;
    const [asked, found] = [pages?.prefix_tokens_looked_for ?? 0, pages?.prefix_tokens_found ?? 0];
    parts.prefix.value.textContent = asked > 0 ? percent(found / asked) : "–";
    parts.prefix.unit.textContent = `${number.format(found)} of ${number.format(asked)} prompt tokens`;
    const used = pages ? pages.total - pages.available : 0;
    parts.pages.value.textContent = pages ? percent(used / Math.max(1, pages.total)) : "–";
    parts.pages.unit.textContent = pages ? `${number.format(used)} of ${number.format(pages.total)} pages in use` : "";
    regions(parts.memory, model);
    facts(parts.limits, Object.entries(state.limits).map(([name, value]) => [name, number.format(value)]));
    before = state;
  }

  function showExperts(state, counts) {
    const { experts } = state;
    const away = experts?.strategies;
    parts.strategy.textContent = !experts
      ? ""
      : away
        ? `Experts lie in host memory, ${number.format(experts.slots)} have a place on the device. Prompts: ${away.prefill}; tokens: ${away.decode}.`
        : "All experts lie on the device.";
    const pairs = away ? experts.computed_on_the_device + experts.computed_on_the_cpu : 0;
    parts.traffic.hidden = !away;
    if (away) {
      const here = pairs > 0 ? percent(experts.computed_on_the_device / pairs) : "none";
      parts.traffic.textContent =
        `${here} of ${number.format(pairs)} pairs of token and expert were computed on the device, the others on ` +
        `the CPU; ${number.format(experts.brought)} experts were copied to it.`;
    }
    parts.unseen.hidden = !experts || experts.counted;
    parts.picture.hidden = !counts;
    if (counts) {
      note(counts.layers);
      paint();
    }
  }

  /** What has been asked for since the last look joins the heat, which cools. */
  function note(layers) {
    const now = performance.now();
    const kept = 0.5 ** ((now - heat.at) / HALF_LIFE);
    const known = heat.counts?.length === layers.length ? heat : { counts: layers, recent: null };
    heat.recent = layers.map(({ layer, asked }, y) => ({
      layer,
      heat: asked.map((count, x) => {
        const since = Math.max(0, count - known.counts[y].asked[x]);
        return (known.recent?.[y].heat[x] ?? 0) * kept + since;
      }),
    }));
    [heat.counts, heat.at] = [layers, now];
  }

  function paint() {
    if (!heat.counts || view.hidden) return;
    const lately = parts.lately.checked;
    const whole = heat.counts.map(({ layer, asked }) => ({ layer, heat: asked }));
    const layers = lately ? heat.recent : whole;
    map = heatMap(parts.canvas, layers, selected);
    const best = hottest(map.shares);
    const [x, y] = selected ? [selected.x, selected.y] : best;
    const { layer, asked } = heat.counts[y];
    const share = map.shares[y][x] ?? 0;
    const when = lately ? "lately" : "since the start";
    parts.caption.textContent =
      `${selected ? "" : "Hottest: "}layer ${layer}, expert ${x}: ${percent(share)} of what its layer ` +
      `was asked for ${when}, ${number.format(asked[x] ?? 0)} tokens in all`;
    parts.canvas.setAttribute("aria-label",
      `Heat of ${layers.length} layers with experts ${when}; the hottest is expert ${best[0]} of layer ` +
      `${heat.counts[best[1]].layer} with ${percent(map.shares[best[1]][best[0]])} of its layer's tokens`);
  }

  const select = (cell) => {
    const row = cell && heat.counts?.[cell.y];
    selected = row && cell.x >= 0 && cell.y >= 0 && cell.x < row.asked.length ? cell : cell ? selected : null;
    paint();
  };
  parts.canvas.addEventListener("pointermove", ({ offsetX, offsetY }) => map && select(map.at(offsetX, offsetY)));
  parts.canvas.addEventListener("pointerleave", () => select(null));
  parts.canvas.addEventListener("blur", () => select(null));
  parts.canvas.addEventListener("keydown", (event) => {
    const step = { ArrowRight: [1, 0], ArrowLeft: [-1, 0], ArrowDown: [0, 1], ArrowUp: [0, -1] }[event.key];
    if (!step) return;
    event.preventDefault();
    const { x, y } = selected ?? { x: -step[0], y: -step[1] };
    select({ x: Math.max(0, x + step[0]), y: Math.max(0, y + step[1]) });
  });
  parts.choice.addEventListener("change", paint);
  new ResizeObserver(paint).observe(parts.picture);

  function start() {
    if (timer === null) read();
  }
  function stop() {
    clearTimeout(timer);
    [timer, reads] = [null, reads + 1];
  }
  // Nobody looks at a page in the background.
  document.addEventListener("visibilitychange", () => {
    if (document.hidden) stop();
    else if (!view.hidden) start();
  });
  return { start, stop, redraw: paint };
}

/** Tokens per second of engine time between two looks; null if there were none. */
function rate(now, before) {
  if (!now || !before) return null;
  const [tokens, seconds] = [now.tokens - before.tokens, now.seconds - before.seconds];
  return tokens > 0 && seconds > 0 ? tokens / seconds : null;
}

function hottest(shares) {
  let best = [0, 0];
  shares.forEach((layer, y) =>
    layer.forEach((share, x) => {
      if (share > shares[best[1]][best[0]]) best = [x, y];
    }));
  return best;
}

/** Words and values, the values changed in place. */
function facts(list, pairs) {
  const whole = pairs.filter(([, value]) => value !== undefined && value !== null);
  if (list.childElementCount !== whole.length) {
    list.replaceChildren(...whole.map(([name]) => el("div", {}, el("dt", {}, name), el("dd"))));
  }
  whole.forEach(([, value], i) => (list.children[i].lastChild.textContent = value));
}

const HOST = "experts in host memory";

/** A bar for each memory, of its regions; they do not change. */
function regions(parent, model) {
  const all = Object.entries(model.region_bytes ?? {});
  const sign = JSON.stringify(all);
  if (parent.dataset.sign === sign) return;
  parent.dataset.sign = sign;
  const where = model.device === "cpu" || model.device === "reference" ? "RAM" : "GPU memory";
  const groups = [[where, all.filter(([name]) => name !== HOST)], ["Host memory", all.filter(([name]) => name === HOST)]];
  parent.replaceChildren();
  for (const [title, of] of groups.filter(([, of]) => of.length > 0)) {
    const sum = of.reduce((sum, [, bytes]) => sum + bytes, 0);
    const bar = el("div", { class: "memory-bar", "aria-hidden": "true" });
    const legend = el("ul", { class: "legend" });
    of.forEach(([name, bytes], i) => {
      const piece = el("span", { class: `region r${i % 5}` });
      piece.style.flexGrow = String(bytes / sum);
      bar.append(piece);
      legend.append(el("li", {}, el("span", { class: `swatch r${i % 5}`, "aria-hidden": "true" }), `${name} ${size(bytes)}`));
    });
    parent.append(el("p", { class: "memory-name" }, `${title}: ${size(sum)}`), bar, legend);
  }
}

function size(bytes) {
  const units = ["B", "KiB", "MiB", "GiB", "TiB"];
  const unit = bytes > 0 ? Math.min(4, Math.floor(Math.log2(bytes) / 10)) : 0;
  const value = bytes / 1024 ** unit;
  return `${unit === 0 ? value : value.toFixed(value < 10 ? 2 : 1)} ${units[unit]}`;
}

function percent(part) {
  return `${(part * 100).toFixed(part > 0 && part < 0.0995 ? 1 : 0)} %`;
}

function duration(seconds) {
  const [hours, minutes] = [Math.floor(seconds / 3600), Math.floor(seconds / 60) % 60];
  if (hours >= 48) return `${Math.floor(hours / 24)} days`;
  if (hours > 0) return `${hours} h ${minutes} min`;
  return minutes > 0 ? `${minutes} min ${seconds % 60} s` : `${seconds} s`;
}

function build() {
  const card = (title, picture) => {
    const [value, unit] = [el("strong", {}, "–"), el("span", {})];
    const canvas = picture && el("canvas", { class: "line", "aria-hidden": "true" });
    const whole = el("section", { class: "card" }, el("h3", {}, title), el("p", {}, value, unit));
    if (canvas) whole.append(canvas);
    return { whole, value, unit, canvas };
  };
  const parts = {
    problem: el("p", { class: "notice", role: "alert", hidden: true }),
    server: el("span", {}, "asking"),
    facts: el("dl", { class: "facts" }),
    decodes: card("Writing", true),
    prompts: card("Reading prompts", true),
    running: card("Requests running"),
    prefix: card("Prefix hits"),
    pages: card("KV pages"),
    memory: el("div"),
    strategy: el("p"),
    traffic: el("p", { hidden: true }),
    unseen: el("p", { class: "hint", hidden: true },
      "Who is asked for is not counted here: routes stay on the device, and looking would keep it waiting."),
    lately: el("input", { type: "radio", name: "heat", id: "heat-lately" }),
    canvas: el("canvas", { class: "heat", id: "heat-map", role: "img", tabindex: "0", "aria-label": "Heat of the experts" }),
    caption: el("p", { class: "hint", id: "heat-caption" }),
    limits: el("dl", { class: "facts" }),
  };
  const always = el("input", { type: "radio", name: "heat", id: "heat-always", checked: true });
  parts.choice = el("fieldset", { class: "choice" }, el("legend", { class: "unseen" }, "Time"),
    el("label", {}, always, "Since the start"), el("label", {}, parts.lately, "The last minute"));
  parts.choice.append(el("span", { class: "hint" }, "A row is a layer, a column an expert."));
  parts.picture = el("div", { hidden: true }, parts.choice, parts.canvas, parts.caption);
  const cards = ["decodes", "prompts", "running", "prefix", "pages"].map((name) => parts[name].whole);
  parts.body = el("div", { hidden: true },
    parts.facts,
    el("div", { class: "cards" }, ...cards),
    el("section", { class: "panel" }, el("h3", {}, "Memory"), parts.memory),
    el("section", { class: "panel" }, el("h3", {}, "Experts"), parts.strategy, parts.traffic, parts.unseen, parts.picture),
    el("details", { class: "panel" }, el("summary", {}, "Limits"), parts.limits),
    el("p", {}, el("a", { href: "docs" }, "Routes of the API")));
  parts.whole = el("div", { class: "column" }, parts.problem, el("h2", {}, "Server: ", parts.server), parts.body);
  return parts;
}
