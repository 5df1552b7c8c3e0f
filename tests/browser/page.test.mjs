// Drives the web page of `krasis serve` in a real Chromium, with the demo model behind it.
//
//     npm ci --prefix tests/browser
//     KRASIS=target/release/krasis node tests/browser/page.test.mjs
//
// KRASIS_SCREENSHOTS=docs also takes the pictures of the documents.
import assert from "node:assert/strict";
import { readFileSync, statSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join, resolve } from "node:path";
import test, { after, before } from "node:test";
import { browse, serve, watched } from "./browser.mjs";

const KRASIS = resolve(process.env.KRASIS ?? "target/release/krasis");
const PICTURES = process.env.KRASIS_SCREENSHOTS ?? tmpdir();
const PICTURE_BYTES_MAX = 150_000;

let server;
before(async () => (server = await serve(KRASIS)));
after(() => server.stop());

/** Runs `body` in a new browser, after which nothing may have gone wrong in the page. */
function scenario(name, body, { expected = [], url = () => server.url, ...options } = {}) {
  test(name, async () => {
    const { context, close } = await browse(options);
    try {
      const { page, complaints } = await watched(context, url(), expected);
      await body(page, context);
      assert.deepEqual(complaints, []);
    } finally {
      await close();
    }
  });
}

const answers = (page) => page.locator(".turn.assistant");
const greedy = (page) => set(page, "temperature", "0");

async function set(page, name, value) {
  const panel = page.locator("#settings");
  if (!(await panel.isVisible())) await page.click("#open-settings");
  const field = page.locator(`#set-${name}`);
  if ((await field.evaluate((field) => field.tagName)) === "SELECT") await field.selectOption(value);
  else await field.fill(value);
}

/** Sends a message and waits for the whole answer, which it returns. */
async function ask(page, text) {
  const turns = await answers(page).count();
  await page.fill("#message", text);
  await page.press("#message", "Enter");
  await page.waitForFunction((turns) => document.querySelectorAll(".turn.assistant").length === turns + 1, turns);
  return finished(page);
}

/** Waits until no answer comes in; the last one's text. */
async function finished(page) {
  await page.locator("#send:not([hidden])").waitFor();
  return answers(page).last().locator(".text").innerText();
}

/** The bodies of requests for answers, as they are sent. */
function asked(page) {
  const bodies = [];
  page.on("request", (request) => {
    if (request.url().endsWith("/v1/chat/completions")) bodies.push(request.postDataJSON());
  });
  return bodies;
}

async function load(page, conversation) {
  const file = { name: "talk.json", mimeType: "application/json", buffer: Buffer.from(JSON.stringify(conversation)) };
  await page.evaluate(() => {
    document.querySelector("#notice").hidden = true;
    window.before = document.querySelector("#turns").firstChild;
  });
  await page.setInputFiles("#import-file", file);
  await page.waitForFunction(() => {
    const [turns, notice] = [document.querySelector("#turns"), document.querySelector("#notice")];
    return turns.firstChild !== window.before || !notice.hidden;
  });
}

/** Waits for what the bar says of the model. */
const named = (page, text) => page.locator("#model-name", { hasText: text }).waitFor();

async function onlyFits(page, where) {
  const wide = await page.evaluate(() => [document.documentElement.scrollWidth, window.innerWidth]);
  assert(wide[0] <= wide[1], `${where} is ${wide[0]} wide on a screen of ${wide[1]}`);
}

scenario("an answer streams in, with its figures", async (page) => {
  await named(page, "krasis-demo");
  await greedy(page);
  const bodies = asked(page);
  await page.evaluate(() => {
    window.lengths = new Set();
    const note = () => window.lengths.add(document.querySelector(".turn.assistant .text")?.textContent.length ?? 0);
    new MutationObserver(note).observe(document.querySelector("#turns"), { childList: true, subtree: true, characterData: true });
  });
  const story = await ask(page, "Tell me a story.");
  assert(story.split(" ").length > 30, story);
  const lengths = await page.evaluate(() => [...window.lengths]);
  assert(lengths.length > 5, `it came in ${lengths.length} pieces`);
  const figures = await answers(page).locator(".figures").innerText();
  assert.match(figures, /^first token [\d.]+ m?s · [\d.]+ tok\/s · \d+ tokens · prompt \d+/);
  assert.deepEqual(bodies, [{
    temperature: 0,
    messages: [{ role: "user", content: "Tell me a story." }],
    stream: true,
    stream_options: { include_usage: true, continuous_usage_stats: true },
  }]);
  assert.equal(await page.locator("#spoken").innerText(), "The answer is complete");
  // A reload keeps the conversation, a new one begins empty.
  await page.reload();
  assert.equal(await answers(page).locator(".text").innerText(), story);
  await page.click("#new");
  assert.equal(await page.locator(".turn").count(), 0);
});

scenario("an answer is stopped, and asked for again", async (page) => {
  await greedy(page);
  const bodies = asked(page);
  await page.evaluate(() => {
    const observer = new MutationObserver(() => {
      if (!document.querySelector(".turn.assistant .text")?.textContent) return;
      observer.disconnect();
      document.querySelector("#stop").click();
    });
    observer.observe(document.querySelector("#turns"), { childList: true, subtree: true });
  });
  const begun = await ask(page, "Tell me a story.");
  assert.equal(await answers(page).locator(".problem").innerText(), "Stopped.");
  await page.getByRole("button", { name: "Try again" }).click();
  await answers(page).locator(".problem").waitFor({ state: "hidden" });
  const whole = await finished(page);
  assert(whole.startsWith(begun) && whole.length > begun.length, `${begun} of ${whole}`);
  await page.getByRole("button", { name: "Regenerate" }).click();
  assert.equal(await finished(page), whole);
  assert.equal(await page.locator(".turn").count(), 2);
  assert.deepEqual(bodies[2], bodies[1]);
  assert.deepEqual(bodies[1], bodies[0]);
  const { requests } = await (await page.request.get(`${server.url}/v1/status`)).json();
  assert.equal(requests.running, 0);
});

scenario("a message is edited, and what came after it is left out", async (page) => {
  await greedy(page);
  assert.match(await ask(page, "What is 2 + 3?"), /\b5\b/);
  await ask(page, "Who are you?");
  const bodies = asked(page);
  await page.locator(".turn.user").first().getByRole("button", { name: "Edit" }).click();
  const editor = page.getByLabel("Edit message");
  assert.equal(await editor.inputValue(), "What is 2 + 3?");
  await page.keyboard.press("Escape");
  assert.equal(await page.locator(".turn").count(), 4);
  await page.locator(".turn.user").first().getByRole("button", { name: "Edit" }).click();
  await editor.fill("What is 2 + 6?");
  await editor.press("Enter");
  await page.waitForFunction(() => document.querySelectorAll(".turn").length === 2);
  assert.match(await finished(page), /\b8\b/);
  assert.deepEqual(bodies.map(({ messages }) => messages), [[{ role: "user", content: "What is 2 + 6?" }]]);
});

scenario("reasoning folds", async (page) => {
  await greedy(page);
  await set(page, "thinking", "true");
  const text = await ask(page, "What is 27 + 48?");
  assert.match(text, /\b75\b/);
  const fold = answers(page).locator("details.reasoning");
  const inner = fold.locator(".reasoning-text");
  assert(!(await inner.isVisible()));
  await fold.locator("summary").click();
  assert(await inner.isVisible());
  assert((await inner.innerText()).length > 10 && !text.includes(await inner.innerText()));
});

scenario("settings are sent, kept and refused", async (page) => {
  await set(page, "system", "You say yes.");
  await set(page, "seed", "7");
  await set(page, "max_tokens", "3");
  await set(page, "stop", "xyz\nabc");
  await set(page, "thinking", "false");
  const bodies = asked(page);
  await ask(page, "Tell me a story.");
  const { messages, ...sent } = bodies[0];
  assert.deepEqual(messages[0], { role: "system", content: "You say yes." });
  const { stream, stream_options: _, ...wishes } = sent;
  assert(stream);
  assert.deepEqual(wishes, {
    seed: 7,
    max_tokens: 3,
    stop: ["xyz", "abc"],
    chat_template_kwargs: { enable_thinking: false },
  });
  assert.match(await answers(page).locator(".problem").innerText(), /may not be longer/);
  await page.reload();
  await page.click("#open-settings");
  assert.equal(await page.inputValue("#set-seed"), "7");
  await set(page, "top_p", "2");
  await page.fill("#message", "Hello");
  await page.press("#message", "Enter");
  assert.match(await page.getByRole("alert").innerText(), /Top p is not between 0 and 1/);
  assert.equal(bodies.length, 1);
  await page.getByRole("button", { name: "Back to defaults" }).click();
  assert.equal(await page.inputValue("#set-top_p"), "");
});

const MARKDOWN = `# Title

Some **bold**, *slanted*, \`code\`, ~~gone~~, 2 * 3 * 4, snake_case_name and [a link](https://example.com/a_(b)).

- one
- two
  1. deep
  2. deeper

      still two

> quoted
> > twice

| left | right |
|:-----|------:|
| a \\| b | 12 |

\`\`\`python
def f(x):
    return "<b>" + x
\`\`\`
1986 was a year.`;

scenario("Markdown becomes elements, and code is copied", async (page, context) => {
  await context.grantPermissions(["clipboard-read", "clipboard-write"]);
  await load(page, [{ role: "user", content: "**not** bold" }, { role: "assistant", content: MARKDOWN }]);
  const prose = answers(page).locator(".prose");
  const texts = (selector) => prose.locator(selector).allInnerTexts();
  assert.deepEqual(await texts("h3"), ["Title"]);
  assert.deepEqual(await texts("strong"), ["bold"]);
  assert.deepEqual(await texts("em"), ["slanted"]);
  assert.deepEqual(await texts("del"), ["gone"]);
  assert.deepEqual(await texts(":not(pre) > code"), ["code"]);
  assert.deepEqual(await texts("ol > li"), ["deep", "deeper\n\nstill two"]);
  assert.equal(await prose.locator("ul > li").count(), 2);
  assert.deepEqual(await texts("blockquote blockquote"), ["twice"]);
  assert.deepEqual(await texts("td"), ["a | b", "12"]);
  assert.equal(await prose.locator("td.right").count(), 1);
  assert.equal(await prose.locator("a").getAttribute("href"), "https://example.com/a_(b)");
  assert.match((await texts("p")).join(), /2 \* 3 \* 4, snake_case_name/);
  assert.match((await texts("p")).at(-1), /1986 was a year/);
  assert.equal(await page.locator(".turn.user .text").innerText(), "**not** bold");
  const clipboard = () => page.evaluate(() => navigator.clipboard.readText());
  await page.getByRole("button", { name: "Copy python code" }).click();
  assert.equal(await clipboard(), 'def f(x):\n    return "<b>" + x');
  await page.getByRole("button", { name: "Copy answer" }).click();
  assert.equal(await clipboard(), MARKDOWN);
  await page.getByRole("button", { name: "Copy message" }).click();
  assert.equal(await clipboard(), "**not** bold");
});

scenario("a stream shows what the whole text shows, wherever it is cut", async (page) => {
  const differing = await page.evaluate(async (text) => {
    const { show } = await import("/page/markdown.js");
    const [grown, whole] = [document.createElement("div"), document.createElement("div")];
    const differing = [];
    for (let end = 0; end <= text.length; end += 1) {
      show(grown, text.slice(0, end));
      whole.replaceChildren();
      whole.blocks = undefined;
      show(whole, text.slice(0, end));
      if (!grown.isEqualNode(whole)) differing.push(text.slice(0, end));
    }
    return differing;
  }, MARKDOWN);
  assert.deepEqual(differing, []);
});

scenario("what a model says runs nothing, loads nothing and stops nothing", async (page) => {
  const spaces = " ".repeat(20_000);
  const hostile = [
    '<img src=x onerror="window.hit = 1"><script>window.hit = 1</script>',
    "[a](javascript:window.hit=1) [b](data:text/html,x) [c]( JaVaScRiPt:x) [d](//evil.example) [e](vbscript:x)",
    "![picture](https://evil.example/x.png) <https://evil.example/y>",
    "[x](https://ok.example \"><img src=x>\")",
    "```<img>\n</code><script>window.hit = 1</script>\n```",
    ">".repeat(5000) + "deep",
    "- ".repeat(3000) + "deep",
    "*".repeat(20_000), "_a*b".repeat(5000), "[".repeat(20_000), "`a".repeat(9000),
    `# ${spaces}x`, `|a|b|\n|-${spaces}-x|`, "```" + spaces + "`", `-${spaces}x`, `[a](b${spaces}x`,
    `1. ${spaces}x`, "http://".repeat(3000), "|".repeat(20_000) + "\n" + "|-".repeat(10_000),
  ];
  await load(page, { messages: hostile.map((content) => ({ role: "assistant", content })) });
  assert.equal(await answers(page).count(), hostile.length);
  assert.equal(await page.evaluate(() => window.hit), undefined);
  assert.equal(await page.locator(".turn :is(img, script, iframe, style, object, form)").count(), 0);
  const links = await page.locator(".turn a").evaluateAll((links) => links.map((link) => [link.href, link.rel]));
  assert(links.length >= 3, "pictures and plain addresses are links");
  for (const [href, rel] of links) {
    assert.match(href, /^https?:/);
    assert.equal(rel, "noopener noreferrer");
  }
  // The policy itself would stop what got past the renderer.
  const refused = await page.evaluate(() => {
    try {
      document.createElement("div").innerHTML = "<b>x</b>";
      return false;
    } catch {
      return true;
    }
  });
  assert(refused, "texts may not become HTML");
}, { expected: ["require-trusted-types-for", "This document requires 'TrustedHTML'"] });

scenario("a conversation is exported and imported", async (page, context) => {
  await greedy(page);
  await set(page, "system", "You are brief.");
  const answer = await ask(page, "What is 2 + 3?");
  const [download] = await Promise.all([page.waitForEvent("download"), page.click("#export")]);
  assert.match(download.suggestedFilename(), /^krasis-\d{4}-\d\d-\d\d\.json$/);
  const saved = JSON.parse(readFileSync(await download.path(), "utf8"));
  assert.equal(saved.model, "krasis-demo");
  assert.deepEqual(saved.sampling, { temperature: "0" });
  assert.deepEqual(saved.messages.map(({ role, content }) => [role, content]),
    [["system", "You are brief."], ["user", "What is 2 + 3?"], ["assistant", answer]]);
  const { page: other, complaints } = await watched(context, server.url);
  await load(other, saved);
  assert.equal(await answers(other).locator(".text").innerText(), answer);
  assert.match(await answers(other).locator(".figures").innerText(), /tokens/);
  assert.equal(await other.inputValue("#set-system"), "You are brief.");
  for (const wrong of [{ messages: 7 }, [{ role: "robot", content: "x" }], null, [{ role: "user", content: 7 }]]) {
    await load(other, wrong);
    assert.match(await other.getByRole("alert").innerText(), /^talk.json is no conversation/);
    assert.equal(await answers(other).count(), 1, "nothing is lost");
  }
  assert.deepEqual(complaints, []);
});

scenario("the status tab tells how the server is", async (page) => {
  await ask(page, "Tell me a story.");
  await page.getByRole("tab", { name: "Status" }).click();
  const view = page.locator("#view-status");
  await view.getByText("krasis-demo").waitFor();
  const text = await view.innerText();
  for (const part of ["ready", "cpu", "4,096 tokens", "none wanted", "RAM: ", "weights 4.60 MiB", "experts 18.0 MiB", "KV cache", "of at most 64 waiting", "All experts lie on the device."]) {
    assert(text.includes(part), `${part} in ${text}`);
  }
  // Numbers come by themselves, from the server.
  const generated = page.request.post(`${server.url}/v1/chat/completions`, {
    data: { messages: [{ role: "user", content: "Tell me a story." }], temperature: 0 },
  });
  await page.waitForFunction(() => /^\d/.test(document.querySelector(".card strong").textContent));
  await generated;
  const { experts, pace } = await (await page.request.get(`${server.url}/v1/status`)).json();
  assert(experts.counted && pace.decodes.tokens > 50 && pace.prompts.tokens > 10);
  const { layers } = await (await page.request.get(`${server.url}/v1/status/experts`)).json();
  assert.deepEqual(layers.map(({ layer, asked }) => [layer, asked.length]), [0, 1, 2, 3, 4, 5].map((layer) => [layer, 16]));
  const sums = layers.map(({ asked }) => asked.reduce((sum, count) => sum + count));
  assert.equal(new Set(sums).size, 1, "each layer routes every token");
  const colours = await page.locator("#heat-map").evaluate((canvas) => {
    const { data } = canvas.getContext("2d").getImageData(0, 0, canvas.width, canvas.height);
    const seen = new Set();
    for (let i = 0; i < data.length; i += 4) seen.add(data.slice(i, i + 4).join());
    return seen.size;
  });
  assert(colours > 10, `the heat map has ${colours} colours`);
  const caption = page.locator("#heat-caption");
  assert.match(await caption.innerText(), /^Hottest: layer \d, expert \d+: \d/);
  await page.hover("#heat-map", { position: { x: 3, y: 3 } });
  assert.match(await caption.innerText(), /^layer 0, expert 0: /);
  await page.mouse.move(1, 1);
  await page.focus("#heat-map");
  await page.keyboard.press("ArrowRight");
  await page.keyboard.press("ArrowRight");
  await page.keyboard.press("ArrowDown");
  assert.match(await caption.innerText(), /^layer 1, expert 1: /);
  await page.getByLabel("The last minute").check();
  assert.match(await caption.innerText(), /lately/);
  await page.getByText("Limits").click();
  assert.match(await view.innerText(), /body_bytes\s+33,554,432/);
});

scenario("the keyboard is enough", async (page) => {
  await page.locator("#model[data-state=ok]").waitFor();
  const focused = () => page.evaluate(() => document.activeElement.id);
  assert.equal(await focused(), "message", "one may type at once");
  await page.keyboard.type("What is");
  await page.keyboard.press("Shift+Enter");
  await page.keyboard.type("2 + 2?");
  assert.equal(await page.inputValue("#message"), "What is\n2 + 2?");
  const order = [];
  for (let i = 0; i < 5; i += 1) {
    await page.keyboard.press("Tab");
    order.push(await focused());
  }
  assert.deepEqual(order, ["new", "export", "import", "open-settings", "send"]);
  const outline = await page.evaluate(() => getComputedStyle(document.activeElement).outlineStyle);
  assert.equal(outline, "solid", "focus is seen");
  await page.keyboard.press("Enter");
  await finished(page);
  assert.equal(await answers(page).count(), 1);
  // Escape stops, from wherever one is.
  await page.fill("#message", "Tell me a story.");
  await page.keyboard.press("Enter");
  await page.waitForFunction(() => document.querySelectorAll(".turn.assistant")[1]?.querySelector(".text").textContent);
  await page.keyboard.press("Escape");
  await finished(page);
  assert.equal(await focused(), "message");
  await page.focus("#tab-chat");
  await page.keyboard.press("ArrowRight");
  assert.equal(await focused(), "tab-status");
  await page.locator("#view-status").waitFor();
  assert.equal(new URL(page.url()).hash, "#status");
  await page.keyboard.press("ArrowRight");
  await page.locator("#view-chat").waitFor();
});

const WIDE = `\`\`\`\n${"x".repeat(400)}\n\`\`\`\n\n|${"column|".repeat(30)}\n|${"---|".repeat(30)}\n\n${"y".repeat(300)}`;

scenario("a narrow screen shows all of it", async (page) => {
  await load(page, [{ role: "user", content: "z".repeat(300) }, { role: "assistant", content: WIDE }]);
  await onlyFits(page, "a conversation");
  await named(page, "krasis-demo");
  assert(await page.locator("#send").isVisible());
  await page.click("#open-settings");
  await onlyFits(page, "the panel");
  assert(await page.locator("#message").isVisible());
  await page.click("#open-settings");
  await ask(page, "What is 2 + 2?");
  await page.click("#tab-status");
  await page.locator("#heat-map").waitFor();
  await onlyFits(page, "the status");
}, { viewport: { width: 340, height: 620 } });

for (const colorScheme of ["light", "dark"]) {
  scenario(`texts can be read, ${colorScheme}`, async (page) => {
    await load(page, [{ role: "user", content: "Hello" }, { role: "assistant", content: MARKDOWN, reasoning_content: "Hm." }]);
    await page.click("#open-settings");
    assert.deepEqual(await tooPale(page), []);
    await page.click("#tab-status");
    await page.locator("#heat-map").waitFor();
    assert.deepEqual(await tooPale(page), []);
    const nameless = await page.locator("button, input, select, textarea, canvas[role]").evaluateAll((controls) =>
      controls.filter((control) => {
        const label = control.labels?.length > 0 || control.getAttribute("aria-label");
        return !label && !control.textContent.trim();
      }).map((control) => control.outerHTML));
    assert.deepEqual(nameless, [], "every control has a name");
    await page.click("#theme");
    const light = await page.evaluate(() => getComputedStyle(document.body).backgroundColor);
    await page.click("#theme");
    assert.notEqual(await page.evaluate(() => getComputedStyle(document.body).backgroundColor), light);
    await page.reload();
    assert.equal(await page.getAttribute("html", "data-theme"), "dark", "the choice is kept");
  }, { colorScheme });
}

/** Texts whose contrast with what is behind them is below WCAG's 4.5. */
function tooPale(page) {
  return page.evaluate(() => {
    const numbers = (colour) => colour.match(/[\d.]+/g).map(Number);
    const light = (colour) => {
      const [r, g, b] = colour.map((value) => {
        const part = value / 255;
        return part <= 0.03928 ? part / 12.92 : ((part + 0.055) / 1.055) ** 2.4;
      });
      return 0.2126 * r + 0.7152 * g + 0.0722 * b;
    };
    const behind = (element) => {
      for (let at = element; at; at = at.parentElement) {
        const colour = numbers(getComputedStyle(at).backgroundColor);
        if (colour.length === 3 || colour[3] > 0) return colour.slice(0, 3);
      }
      return [255, 255, 255];
    };
    const pale = [];
    const walker = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
    while (walker.nextNode()) {
      const element = walker.currentNode.parentElement;
      const shown = walker.currentNode.textContent.trim() && element.checkVisibility() && !element.closest("button:disabled");
      if (!shown || !element.getClientRects().length) continue;
      const [a, b] = [numbers(getComputedStyle(element).color).slice(0, 3), behind(element)].map(light);
      const contrast = (Math.max(a, b) + 0.05) / (Math.min(a, b) + 0.05);
      if (contrast < 4.5) pale.push(`${contrast.toFixed(2)}: ${element.tagName} ${walker.currentNode.textContent}`);
    }
    return pale;
  });
}

scenario("nothing moves for those who want it still", async (page) => {
  const still = await page.evaluate(() =>
    [...document.querySelectorAll("*")].every((element) => {
      const { transitionDuration, animationName } = getComputedStyle(element);
      return transitionDuration === "0s" && animationName === "none";
    }));
  assert(still);
}, { reducedMotion: "reduce" });

scenario("a server that loads, fails or cuts an answer off is told apart", async (page) => {
  const health = (status, json) => page.route("**/health", (route) => route.fulfill({ status, json }));
  await health(503, { status: "loading", phase: "quantising", percent: 42 });
  await page.reload();
  await page.getByText("Loading: quantising, 42 %").waitFor();
  assert(await page.locator("#send").isDisabled());
  await page.unroute("**/health");
  await page.locator("#model[data-state=ok]").waitFor();
  assert(await page.locator("#send").isEnabled());
  const answer = (body) => page.route("**/v1/chat/completions", (route) => route.fulfill({ contentType: "text/event-stream", body }));
  const begun = 'data: {"choices":[{"delta":{"content":"Half"}}]}\n\n';
  for (const [body, problem] of [
    [begun, "the connection ended before the answer did"],
    [`${begun}: ping\n\ndata: {"error":{"message":"the GPU is gone"}}\n\n`, "the GPU is gone"],
  ]) {
    await answer(body);
    assert.equal(await ask(page, "Hello"), "Half");
    assert.equal(await answers(page).last().locator(".problem").innerText(), problem);
    await page.unroute("**/v1/chat/completions");
  }
  await set(page, "max_tokens", "999999");
  await ask(page, "Hello");
  assert.match(await answers(page).last().locator(".problem").innerText(), /4096|context/);
}, { expected: ["503", "400"] });

test("with keys, the page asks for one", async () => {
  const keyed = await serve(KRASIS, [], { KRASIS_API_KEY: "a-secret-key" });
  const { context, close } = await browse();
  try {
    const { page, complaints } = await watched(context, keyed.url, ["401"]);
    const dialog = page.getByRole("dialog", { name: "This server wants a key" });
    await dialog.waitFor();
    await page.getByLabel("Key", { exact: true }).fill("wrong");
    await page.keyboard.press("Enter");
    await page.getByText("this key does not open this server").waitFor();
    await page.keyboard.press("Escape");
    await dialog.waitFor({ state: "hidden" });
    await named(page, "A key is wanted");
    // Whoever asks the model something is asked for the key, and then answered.
    await page.fill("#message", "What is 2 + 2?");
    await page.keyboard.press("Enter");
    await dialog.waitFor();
    await page.getByLabel("Key", { exact: true }).fill("a-secret-key");
    await page.getByRole("button", { name: "Use it" }).click();
    assert.match(await finished(page), /4/);
    const kept = await page.evaluate(() => [JSON.stringify(sessionStorage), JSON.stringify(localStorage), document.cookie]);
    assert.deepEqual(kept.map((text) => text.includes("a-secret-key")), [true, false, false]);
    await page.reload();
    await named(page, "krasis-demo");
    await page.click("#tab-status");
    await page.locator("#heat-map").waitFor();
    assert.deepEqual(complaints, []);
    // The description opens without one, with its style.
    const docs = await watched(context, `${keyed.url}/docs`);
    assert.match(await docs.page.innerText("body"), /POST \/v1\/chat\/completions/);
    assert.notEqual(await docs.page.evaluate(() => getComputedStyle(document.body).maxWidth), "none");
    assert.deepEqual(docs.complaints, []);
  } finally {
    await close();
    await keyed.stop();
  }
});

scenario("experts in host memory are told", async (page) => {
  // What a server with a GPU says, which this machine need not have.
  await page.route("**/v1/status", async (route) => {
    const json = await (await route.fetch()).json();
    json.model.device = "cuda(bf16)";
    json.model.region_bytes["experts in host memory"] = 5 * 2 ** 30;
    Object.assign(json.experts, {
      strategies: { prefill: "hcs_prefill", decode: "hcs_hybrid" },
      slots: 4096,
      brought: 12345,
      computed_on_the_device: 7500,
      computed_on_the_cpu: 2500,
    });
    await route.fulfill({ json });
  });
  await page.click("#tab-status");
  await page.getByText("Prompts: hcs_prefill; tokens: hcs_hybrid.").waitFor();
  const text = await page.locator("#view-status").innerText();
  for (const part of ["75 % of 10,000 pairs", "12,345 experts", "Host memory: 5.00 GiB", "GPU memory: ", "4,096 have a place"]) {
    assert(text.includes(part), `${part} in ${text}`);
  }
  // Everything on a GPU: nobody looks at the routes there, and that is said.
  await page.unrouteAll();
  await page.route("**/v1/status", async (route) => {
    const json = await (await route.fetch()).json();
    json.experts.counted = false;
    await route.fulfill({ json });
  });
  await page.getByText("is not counted here").waitFor();
  assert(!(await page.locator("#heat-map").isVisible()));
});

/** Takes a picture and keeps it small. */
async function picture(page, name) {
  const file = join(PICTURES, name);
  writeFileSync(file, await page.screenshot({ animations: "disabled", caret: "hide" }));
  const { size } = statSync(file);
  assert(size > 5_000 && size < PICTURE_BYTES_MAX, `${name} has ${size} bytes`);
}

scenario("pictures for the documents", async (page) => {
  await greedy(page);
  await set(page, "thinking", "true");
  await page.click("#open-settings");
  await ask(page, "What is 27 + 48?");
  await answers(page).last().locator("summary").click();
  await ask(page, "Tell me a story.");
  await page.mouse.move(1, 1);
  await picture(page, "page.png");
  await page.click("#theme");
  await page.click("#theme");
  await page.click("#tab-status");
  await page.locator("#heat-map").waitFor();
  // So that the lines have something to show.
  for (let i = 0; i < 8; i += 1) {
    const messages = [{ role: "user", content: `Tell me a story about ${i} birds.` }];
    await page.request.post(`${server.url}/v1/chat/completions`, { data: { messages } });
    await page.waitForResponse("**/v1/status");
  }
  await page.mouse.move(1, 1);
  await picture(page, "status.png");
});
