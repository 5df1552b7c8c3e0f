// A server, a browser, and pages that must not complain.
import assert from "node:assert/strict";
import { spawn } from "node:child_process";
import { existsSync, mkdtempSync, readFileSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { setTimeout as sleep } from "node:timers/promises";
import { chromium } from "playwright-core";

const ARGUMENTS = [
  "--headless",
  "--no-sandbox",
  "--disable-gpu",
  "--disable-quic",
  "--no-first-run",
  "--disable-background-networking",
  "--disable-component-update",
  "--disable-sync",
  "--force-color-profile=srgb",
];

/** Two cores may be shared with a build. */
const PATIENCE = 120_000;

/** Starts `krasis serve` with the demo model; the result has its URL and ends it. */
export async function serve(krasis, options = [], environment = {}) {
  const folder = mkdtempSync(join(tmpdir(), "krasis-server-"));
  const ready = join(folder, "ready");
  const all = ["serve", "--port", "0", "--no-cache", "--device", "cpu", "--ready-file", ready, ...options];
  const server = spawn(krasis, all, { stdio: ["ignore", "ignore", "pipe"], env: { ...process.env, ...environment } });
  let log = "";
  server.stderr.on("data", (text) => (log += text));
  const ended = new Promise((resolve) => server.once("exit", resolve));
  for (let waited = 0; !existsSync(ready) || !readFileSync(ready, "utf8").endsWith("\n"); waited += 100) {
    assert(server.exitCode === null && waited < PATIENCE, `krasis serve is not ready:\n${log}`);
    await sleep(100);
  }
  const url = readFileSync(ready, "utf8").trim();
  const stop = async () => {
    server.kill("SIGTERM");
    await ended;
    rmSync(folder, { recursive: true });
  };
  return { url, stop };
}

/** A browser with a profile of its own. */
export async function browse(options = {}) {
  const profile = mkdtempSync(join(tmpdir(), "krasis-browser-"));
  const context = await chromium.launchPersistentContext(profile, {
    executablePath: process.env.KRASIS_CHROMIUM ?? "/usr/bin/chromium",
    args: ARGUMENTS,
    ignoreDefaultArgs: ["--enable-unsafe-swiftshader"],
    viewport: { width: 1180, height: 760 },
    colorScheme: "light",
    acceptDownloads: true,
    ...options,
  });
  context.setDefaultTimeout(PATIENCE);
  const close = async () => {
    await context.close();
    rmSync(profile, { recursive: true, force: true });
  };
  return { context, close };
}

/**
 * Opens a page and collects what the browser has to complain about: errors, and violations of the
 * page's policy. `expected` are parts of complaints that a test provokes.
 */
export async function watched(context, url, expected = []) {
  const page = await context.newPage();
  const complaints = [];
  const complain = (text) => {
    if (!expected.some((part) => text.includes(part))) complaints.push(text);
  };
  page.on("console", (message) => {
    if (["error", "warning"].includes(message.type())) complain(message.text());
  });
  page.on("pageerror", (error) => complain(String(error)));
  page.on("requestfailed", (request) => {
    const why = request.failure()?.errorText;
    // A page may end its own requests, and does when it is left.
    if (why !== "net::ERR_ABORTED") complain(`${request.url()}: ${why}`);
  });
  page.on("request", (request) => {
    const local = [new URL(url).origin, "blob:"].some((begin) => request.url().startsWith(begin));
    if (!local) complain(`it asks for ${request.url()}`);
  });
  await page.exposeBinding("reportViolation", (_, text) => complain(text));
  await page.addInitScript(() => {
    document.addEventListener("securitypolicyviolation", (event) => {
      window.reportViolation(`${event.violatedDirective} forbids ${event.blockedURI}`);
    });
  });
  await page.goto(url);
  return { page, complaints };
}
