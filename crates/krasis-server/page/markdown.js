// Markdown as models write it, to elements. What is not understood stays as it was written; nothing
// is loaded, and links lead only where a reader can see: pictures become links as well.
import { copyButton, el } from "./dom.js";

/** Quotes and lists inside each other, beyond which a text is somebody's attack. */
const DEPTH_MAX = 12;

// No pattern may try one part of a line in many ways: a model, or who wrote into its context, could
// stop the page with a long line.
const FENCE = /^ {0,3}(`{3,}|~{3,})([^`]*)$/;
const HEADING = /^ {0,3}(#{1,6})\s+(\S.*)$/;
const RULE = /^ {0,3}([-*_])(?:\s*\1){2,}\s*$/;
const QUOTE = /^ {0,3}> ?/;
const ITEM = /^( *)([-*+]|\d{1,9}[.)])( +|$)/;

/**
 * Shows `text` in `parent`. Called again with a longer text, it keeps the elements of blocks that
 * have not changed: a stream costs what its last block costs, and a selection above stays.
 */
export function show(parent, text) {
  const blocks = split(text.split("\n"));
  const known = parent.blocks ?? [];
  const signs = blocks.map(({ kind, name, lines }) => [kind, name, ...lines].join("\n"));
  let same = 0;
  while (same < signs.length && signs[same] === known[same]) same += 1;
  while (parent.childNodes.length > same) parent.lastChild.remove();
  parent.append(...blocks.slice(same).map((block) => build(block, 0)));
  parent.blocks = signs;
}

/** Blocks of lines: `{kind, lines}`, of fences also `name`. */
function split(lines) {
  const blocks = [];
  let at = 0;
  while (at < lines.length) {
    const line = lines[at];
    const start = at;
    const take = (kind, while_) => {
      at += 1;
      while (at < lines.length && while_(lines[at], at)) at += 1;
      const block = { kind, lines: lines.slice(start, at) };
      blocks.push(block);
      return block;
    };
    const fence = FENCE.exec(line);
    if (!line.trim()) {
      at += 1;
    } else if (fence) {
      const end = new RegExp(`^ {0,3}\\${fence[1][0]}{${fence[1].length},}\\s*$`);
      let open = true;
      const block = take("code", (next) => open && ((open = !end.test(next)), true));
      block.name = fence[2].trim().split(/\s/)[0].slice(0, 30);
      block.lines = block.lines.slice(1, open ? undefined : -1);
    } else if (HEADING.test(line)) {
      take("heading", () => false);
    } else if (RULE.test(line)) {
      take("rule", () => false);
    } else if (QUOTE.test(line)) {
      take("quote", (next) => QUOTE.test(next));
    } else if (ITEM.test(line)) {
      const digits = /\d/.test(ITEM.exec(line)[2]);
      const deep = ITEM.exec(line)[1].length;
      // Blank lines belong to a list that goes on after them.
      take(digits ? "ordered" : "bullets", (next, i) => {
        const item = ITEM.exec(next);
        if (item && item[1].length <= deep + 1) return /\d/.test(item[2]) === digits && !RULE.test(next);
        if (next.trim()) return next.startsWith(" ") || (lines[i - 1].trim() && !starts(lines, i));
        const after = lines.slice(i, i + 3).find((later) => later.trim());
        return after !== undefined && (after.startsWith("  ") || sameList(after, digits));
      });
    } else if (tableAt(lines, at)) {
      take("table", (next, i) => i === start + 1 || (next.includes("|") && next.trim()));
    } else {
      take("text", (next, i) => next.trim() && !starts(lines, i));
    }
  }
  return blocks;
}

function sameList(line, digits) {
  const item = ITEM.exec(line);
  return item !== null && /\d/.test(item[2]) === digits;
}

/** Whether a line ends the paragraph above it. A number that begins a line may just be one. */
function starts(lines, at) {
  const line = lines[at];
  const item = ITEM.exec(line);
  if (item) return !/\d/.test(item[2]) || parseInt(item[2], 10) === 1;
  return tableAt(lines, at) || [FENCE, HEADING, RULE, QUOTE].some((pattern) => pattern.test(line));
}

function tableAt(lines, at) {
  const next = lines[at + 1] ?? "";
  const divides = () => cells(next).every((cell) => /^:?-+:?$/.test(cell));
  return lines[at].includes("|") && next.includes("-") && divides();
}

/** Cells of a line of a table. */
function cells(line) {
  const inner = line.trim().replace(/^\|/, "").replace(/(?<!\\)\|$/, "");
  return inner.split(/(?<!\\)\|/).map((cell) => cell.trim().replaceAll("\\|", "|"));
}

function build({ kind, lines, name }, depth) {
  switch (kind) {
    case "code":
      return code(lines.join("\n"), name);
    case "heading": {
      const [, marks, text] = HEADING.exec(lines[0]);
      // The page has a heading of its own, so an answer's are below it.
      const tag = `h${Math.min(6, marks.length + 2)}`;
      return el(tag, {}, ...spans(text.trimEnd().replace(/\s#+$/, "")));
    }
    case "rule":
      return el("hr");
    case "quote":
      return el("blockquote", {}, ...nested(lines.map((line) => line.replace(QUOTE, "")), depth));
    case "ordered":
    case "bullets":
      return list(kind, lines, depth);
    case "table":
      return table(lines);
    default:
      return el("p", {}, ...spans(lines.map((line) => line.trimStart()).join("\n")));
  }
}

function nested(lines, depth) {
  if (depth >= DEPTH_MAX) return [el("p", {}, lines.join("\n"))];
  return split(lines).map((block) => build(block, depth + 1));
}

function code(text, name) {
  const language = name || "text";
  const head = el("div", { class: "code-head" }, el("span", {}, language));
  head.append(copyButton(`Copy ${language} code`, () => text));
  // It scrolls by itself, so the keyboard has to reach it.
  const block = el("pre", { tabindex: "0", "aria-label": `${language} code` }, el("code", {}, text));
  return el("div", { class: "code" }, head, block);
}

function list(kind, lines, depth) {
  const items = [];
  const deep = ITEM.exec(lines[0])[1].length;
  for (const line of lines) {
    const item = ITEM.exec(line);
    if (item && item[1].length <= deep + 1) {
      items.push({ inner: [line.slice(item[0].length)], width: item[0].length });
    } else {
      const { inner, width } = items.at(-1);
      // What belongs to an item is indented by its mark, or a little less.
      inner.push(line.replace(new RegExp(`^ {0,${width}}`), ""));
    }
  }
  const loose = lines.some((line) => !line.trim());
  const start = parseInt(ITEM.exec(lines[0])[2], 10);
  const attributes = kind === "ordered" && start !== 1 ? { start } : {};
  const element = el(kind === "ordered" ? "ol" : "ul", attributes);
  for (const { inner } of items) {
    const children = nested(inner, depth);
    const first = children[0];
    if (!loose && first?.tagName === "P") first.replaceWith(...children.splice(0, 1, ...first.childNodes));
    element.append(el("li", {}, ...children));
  }
  return element;
}

function table(lines) {
  const sides = cells(lines[1]).map((mark) => {
    if (!mark.endsWith(":")) return null;
    return mark.startsWith(":") ? "middle" : "right";
  });
  const row = (tag, line) =>
    el("tr", {}, ...cells(line).map((cell, i) => el(tag, { class: sides[i] }, ...spans(cell))));
  const body = el("tbody", {}, ...lines.slice(2).map((line) => row("td", line)));
  const whole = el("table", {}, el("thead", {}, row("th", lines[0])), body);
  return el("div", { class: "wide", tabindex: "0", role: "group", "aria-label": "Table" }, whole);
}

const MARKS = [["**", "strong"], ["__", "strong"], ["~~", "del"], ["*", "em"], ["_", "em"]];
const LINK = /!?\[([^[\]]{0,500})\]\(\s*<?([^\s()<>]{1,2000}(?:\([^\s()<>]{0,200}\)[^\s()<>]{0,500})?)>?(?:\s+"[^"]{0,200}")?\s*\)/y;
const BARE = /https?:\/\/[^\s<>"'`]{1,2000}[^\s<>"'`.,;:!?)\]*_]/y;
const WORD = /[\p{L}\p{N}]/u;

/** A line's text, links and marks, as nodes. Each mark without an end is looked for once. */
function spans(text) {
  const nodes = [];
  const hopeless = new Set();
  let plain = "";
  const flush = () => {
    if (plain) nodes.push(plain);
    plain = "";
  };
  const add = (node, to) => {
    flush();
    nodes.push(node);
    return to;
  };
  const find = (mark, from) => {
    const end = hopeless.has(mark) ? -1 : text.indexOf(mark, from);
    if (end < 0) hopeless.add(mark);
    return end;
  };
  const at = (pattern, from) => {
    pattern.lastIndex = from;
    return pattern.exec(text);
  };
  let i = 0;
  while (i < text.length) {
    const char = text[i];
    if (char === "\\" && /[!-/:-@[-`{-~]/.test(text[i + 1] ?? "")) {
      plain += text[i + 1];
      i += 2;
      continue;
    }
    if (char === "`") {
      const ticks = /`+/y;
      const mark = ((ticks.lastIndex = i), ticks.exec(text)[0]);
      const end = find(mark, i + mark.length);
      if (end > 0) {
        i = add(el("code", {}, text.slice(i + mark.length, end).trim()), end + mark.length);
      } else {
        plain += mark;
        i += mark.length;
      }
      continue;
    }
    const link = char === "[" || char === "!" ? at(LINK, i) : null;
    const target = link && safe(link[2]);
    if (target) {
      i = add(anchor(target, ...spans(link[1] || link[2])), i + link[0].length);
      continue;
    }
    const bare = char === "h" && !WORD.test(text[i - 1] ?? "") ? at(BARE, i) : null;
    if (bare && safe(bare[0])) {
      i = add(anchor(bare[0], bare[0]), i + bare[0].length);
      continue;
    }
    const mark = "*_~".includes(char) && MARKS.find(([mark]) => text.startsWith(mark, i));
    const end = mark ? closing(text, mark[0], i, find) : -1;
    if (end > 0) {
      const inner = text.slice(i + mark[0].length, end);
      i = add(el(mark[1], {}, ...spans(inner)), end + mark[0].length);
    } else if (mark) {
      plain += mark[0];
      i += mark[0].length;
    } else if (char === "\n") {
      i = add(el("br"), i + 1);
    } else {
      plain += char;
      i += 1;
    }
  }
  flush();
  return nodes;
}

/** Where a mark that begins at `i` ends; -1 if it begins none: `2 * 3`, `snake_case`. */
function closing(text, mark, i, find) {
  const before = text[i - 1] ?? "";
  const after = text[i + mark.length] ?? " ";
  if (/\s/.test(after) || (mark[0] === "_" && WORD.test(before))) return -1;
  for (let end = find(mark, i + mark.length + 1), tries = 0; end > 0 && tries < 8; tries += 1) {
    const next = text[end + mark.length] ?? " ";
    const open = /\s/.test(text[end - 1]) || (mark[0] === "_" && WORD.test(next));
    // The first half of a double mark is no single one.
    const doubled = mark.length === 1 && (next === mark || text[end - 1] === mark);
    if (!open && !doubled) return end;
    end = text.indexOf(mark, end + (doubled ? 2 : 1));
  }
  return -1;
}

/** A target that a page may lead to; null for scripts, files, and what is no address. */
function safe(target) {
  try {
    const { protocol } = new URL(target);
    return ["http:", "https:", "mailto:"].includes(protocol) ? target : null;
  } catch {
    return null;
  }
}

function anchor(href, ...children) {
  return el("a", { href, target: "_blank", rel: "noopener noreferrer" }, ...children);
}
