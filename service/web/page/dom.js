// Elements from calls, and numbers as words. Text is always set as text: nothing here reads HTML.

/** A task's name, as an input's pattern. */
export const NAME = "[a-z0-9][a-z0-9._\\-]{0,63}";

const SVG = "http://www.w3.org/2000/svg";

function fill(node, inside) {
  const props = inside[0]?.constructor === Object ? inside.shift() : {};
  for (const [name, value] of Object.entries(props)) {
    if (value === undefined || value === null || value === false) continue;
    if (name.startsWith("on")) node.addEventListener(name.slice(2), value);
    else if (name === "value" || name === "checked" || name === "srcObject") node[name] = value;
    else node.setAttribute(name, value === true ? "" : String(value));
  }
  node.append(...inside.flat(Infinity).filter((child) => child !== null && child !== undefined && child !== false));
  return node;
}

/** `h("p.note.warn", { title }, "text", more)`: classes with the tag, attributes or none, then what is inside. */
export function h(tag, ...inside) {
  const [name, ...classes] = tag.split(".");
  const node = document.createElement(name);
  if (classes.length) node.className = classes.join(" ");
  if (inside[0]?.onclick && name === "button") node.type = "button"; // which does not send a form
  return fill(node, inside);
}
export const svg = (tag, ...inside) => fill(document.createElementNS(SVG, tag), inside);

/** A part of a view under its heading. */
export const section = (title, ...inside) => h("section.stack.tight", h("h2", title), inside);

/** Where a view begins. */
export const heading = (title, ...lead) => h("div", h("h1", { tabindex: -1 }, title), h("p.lead", lead));

/** Terms and what they are, without those that are null or false. */
export const facts = (rows) => h("dl.facts", rows.filter(Boolean).map(([term, value]) => h("div", h("dt", term), h("dd", value))));

/** A table that can be wound; a head is its words, `>` before those of numbers. */
export function table(label, heads, rows) {
  return h("div.scroll", { tabindex: 0, role: "group", "aria-label": label }, h("table",
    h("thead", h("tr", heads.map((text) => h(text[0] === ">" ? "th.num" : "th", { scope: "col" }, text.replace(">", ""))))), rows.tagName ? rows : h("tbody", rows)));
}

/** An element whose width is a share of its track; the policy lets scripts set styles, and markup not. */
export function sized(node, share) {
  node.style.width = `${Math.max(0, Math.min(1, share)) * 100}%`;
  return node;
}

/** Say it to a screen reader. */
export function say(text) {
  const place = document.getElementById("said");
  place.textContent = "";
  requestAnimationFrame(() => { place.textContent = text; });
}

export const percent = (share, digits = 0) =>
  share === null || share === undefined ? "–" : `${(100 * share).toFixed(digits)} %`;

/** A score: 100 % only where it is, so that 0.998 is not taken for certainty. */
export function score(value) {
  if (value > 0.995 && value < 1) return `${(Math.floor(value * 1000) / 10).toFixed(1)} %`;
  return value > 0 && value < 0.005 ? "< 1 %" : percent(value);
}

export const count = (number) => (number === null || number === undefined ? "–" : number.toLocaleString("en"));
export const plural = (number, one, many = `${one}s`) => `${count(number)} ${number === 1 ? one : many}`;

export function compact(number) {
  if (number === null || number === undefined) return "–";
  for (const [unit, size] of [["M", 1e6], ["k", 1e3]]) {
    if (number >= size) return `${(number / size).toFixed(number < 10 * size ? 1 : 0)} ${unit}`;
  }
  return String(number);
}

export function bytes(number) {
  for (const [unit, size] of [["GB", 1e9], ["MB", 1e6], ["kB", 1e3]]) {
    if (number >= size) return `${(number / size).toFixed(number < 10 * size ? 1 : 0)} ${unit}`;
  }
  return `${number} B`;
}

export function ms(value) {
  if (!Number.isFinite(value)) return "–";
  if (value === 0) return "0 ms";
  if (value >= 10_000) return `${(value / 1000).toFixed(0)} s`;
  return value >= 1000 ? `${(value / 1000).toFixed(1)} s` : `${value < 10 ? value.toFixed(1) : value.toFixed(0)} ms`;
}

export function when(text) {
  const date = new Date(text);
  return h("time", { datetime: text, title: date.toString() },
    date.toLocaleString("en", { day: "numeric", month: "short", hour: "2-digit", minute: "2-digit", hour12: false }));
}

/** A failure where the thing was done; the sentence is the server's. */
export function failure(error) {
  return h("div.failure", { role: "alert" },
    h("p", error.message || String(error)),
    error.requestId && h("p.small", "Request ", h("code", error.requestId)));
}

/** A button that asks once more before it does what cannot be undone. */
export function twice(label, question, act) {
  let timer = 0;
  const button = h("button.danger.quiet", label);
  button.type = "button";
  const calm = () => { clearTimeout(timer); button.classList.remove("armed"); button.textContent = label; };
  button.addEventListener("click", async () => {
    if (!button.classList.contains("armed")) {
      button.classList.add("armed");
      button.textContent = question;
      say(question);
      timer = setTimeout(calm, 6000);
      return;
    }
    calm();
    button.disabled = true;
    try { await act(); } finally { button.disabled = false; }
  });
  button.addEventListener("blur", calm);
  return button;
}
