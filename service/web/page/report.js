// Reports of trainings, inside the page: the server's HTML, rebuilt from a list of harmless elements.

import { fetchText, get, given } from "./api.js";
import { failure, h, percent, section, when } from "./dom.js";

const ELEMENTS = new Set([
  "H1", "H2", "H3", "P", "B", "DIV", "SPAN", "TABLE", "THEAD", "TBODY", "TR", "TD", "TH", "FIGURE", "FIGCAPTION", "IMG", "UL", "OL", "LI", "CODE", "PRE",
  "DETAILS", "SUMMARY", "BR", "EM", "STRONG", "DL", "DT", "DD", "A",
  "svg", "g", "line", "polyline", "path", "rect", "circle", "text", "tspan", "title",
]);
const ATTRIBUTES = new Set([
  "class", "colspan", "rowspan", "scope", "alt", "width", "height", "viewBox", "x", "y", "x1", "x2", "y1", "y2", "cx", "cy", "r", "rx", "d", "points",
  "fill", "stroke", "stroke-width", "stroke-dasharray", "text-anchor", "role", "aria-label", "transform", "id",
]);

/** The published versions of a task's jobs, each with its report to open. */
export async function reports(task) {
  const found = await get("/v1/jobs", [["task", task]]).catch(() => null);
  const published = (found?.jobs ?? []).flatMap((job) => job.published.map((one) => ({ ...one, when: job.ended ?? job.started ?? job.created })));
  if (published.length === 0) return null;
  return section("Training reports", published.map((one) => reported(one)));
}

/** One report, fetched when it is opened. */
export function reported(one, title = `v${one.version} · ${one.method} · ${percent(one.accuracy, 1)} held out${one.active ? " · active" : ""}`) {
  const inside = h("div.report");
  const node = h("details", h("summary", title), h("p.note", one.verdict ?? "", " ", one.when && when(one.when)), inside);
  node.addEventListener("toggle", async () => {
    if (!node.open || inside.childElementCount) return;
    try { inside.append(...rebuilt(await fetchText(given(one.report)))); } catch (error) { inside.replaceChildren(failure(error)); }
  });
  return node;
}

/** The body of a document as elements of this page: no script, no style, no address but pictures within it. */
export function rebuilt(text) {
  // The policy complains of inline styles even in a document that is never shown: they go in under another name.
  const plain = text.replace(/<style[\s\S]*?<\/style>/gi, "").replace(/\sstyle="([^"]*)"/gi, ' data-style="$1"');
  const body = new DOMParser().parseFromString(plain, "text/html").body;
  return [...body.childNodes].map(copied).filter(Boolean);
}

function copied(node) {
  if (node.nodeType === Node.TEXT_NODE) return document.createTextNode(node.data);
  if (node.nodeType !== Node.ELEMENT_NODE || !ELEMENTS.has(node.tagName)) return null;
  const name = node.tagName === "H1" ? "h3" : node.tagName === "A" ? "span" : node.tagName;
  const made = document.createElementNS(node.namespaceURI, name.toLowerCase() === name || node.namespaceURI.endsWith("svg") ? name : name.toLowerCase());
  for (const { name: attribute, value } of node.attributes) {
    if (ATTRIBUTES.has(attribute)) made.setAttribute(attribute, value);
    if (attribute === "src" && value.startsWith("data:image/")) made.setAttribute("src", value);
  }
  for (const [, property, value] of (node.dataset?.style ?? "").matchAll(/(fill|background)\s*:\s*([^;]+)/g)) made.style[property] = value;
  for (const child of node.childNodes) {
    const inner = copied(child);
    if (inner) made.append(inner);
  }
  return made;
}
