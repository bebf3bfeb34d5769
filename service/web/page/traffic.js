// Traffic: which versions share a task's requests and how each does, a shadow, and where they disagree.

import { get, may, send } from "./api.js";
import { count, failure, h, ms, percent, plural, say, sized, table, when } from "./dom.js";

const EVERY_MS = 2000;
const HEADS = ["Version", "Weight", ">Share", ">Requests", ">Errors", ">p50", ">p99", ">Agrees"];

/** The section, and what ends its looks; `repaint` shows the whole task anew. */
export async function traffic(task, list, repaint) {
  const base = `/v1/tasks/${task.task}`, admin = may("admin"), first = await get(`${base}/traffic`);
  const others = list.map((one) => one.version).filter((number) => !(number in first.weights)), ruled = first.since !== null;
  let timer = 0, over = false;
  const leave = () => { over = true; clearTimeout(timer); };
  if (task.version === null || (list.length < 2 && !first.rolled_back)) return { node: "", leave };
  const told = h("div"), seen = h("div.stack.tight"), rows = h("tbody"), cells = new Map();
  const number = (label, value, more) => h("input", { type: "number", min: 0, max: 1e6, value, "aria-label": label, disabled: !admin, ...more });
  const pick = (label, none) => h("select", { "aria-label": label }, none && h("option", { value: "" }, none), others.map((other) => h("option", { value: other }, `v${other}`)));
  const act = async (text, method, path, body) => {
    try { await send(method, base + path, body); await repaint(); say(text); } catch (error) { told.replaceChildren(failure(error)); }
  };
  const form = (name, done, ...inside) => admin && h("form", { class: `line ${name}`, onsubmit: (event) => { event.preventDefault(); done(); } }, inside);
  const row = (version, kind, given) => {
    cells.set(version, HEADS.slice(2).map(() => h("td.num")));
    rows.append(h("tr", { "data-version": version }, h("td", `v${version} `, kind && h("span.tag.on", kind)), h("td", given), cells.get(version)));
  };
  const weight = (version, value) => number(`Weight of v${version}`, value, { "data-weight": version });
  for (const version of Object.keys(first.weights).map(Number)) {
    row(version, version === first.active && "active", ruled ? weight(version, first.weights[version]) : "all");
  }
  if (first.shadow) row(first.shadow.version, "shadow", `sees ${percent(first.shadow.share, 1)}`);
  const newer = pick("Another version", ruled && "no other"), part = number("Weight of that version", ruled ? 1 : 5);
  const shade = pick("Shadow", "no shadow"), share = number("Percent that the shadow sees", first.shadow ? 100 * first.shadow.share : 10, { step: "any", max: 100 });
  shade.value = first.shadow?.version ?? "";
  const direct = () => act("The traffic is shared", "PUT", "/traffic", Object.fromEntries(
    [...[...node.querySelectorAll("[data-weight]")].map((one) => [one.dataset.weight, Number(one.value)]), [newer.value, Number(part.value)]].filter(([version, weight]) => version && weight)));
  const darken = () => (shade.value ? act(`v${shade.value} is the shadow`, "PUT", "/shadow", { version: Number(shade.value), share: share.value / 100 }) : act("There is no shadow", "DELETE", "/shadow"));
  const node = h("section.stack.tight.traffic",
    h("div.spread", h("h2", "Traffic"), admin && ruled && h("button.all", { onclick: () => act("The active version answers all", "DELETE", "/traffic") }, `All to v${first.active}`)),
    first.rolled_back && h("div.failure", h("p", `v${first.rolled_back.version} was rolled back: ${first.rolled_back.why}`), h("p.small", when(first.rolled_back.time))),
    table("Traffic", HEADS, rows),
    (ruled || others.length > 0) && form("share", direct, !ruled && [`v${first.active}`, weight(first.active, 95)], others.length > 0 && [ruled ? "Share with" : "to", newer, part], h("button", ruled ? "Set the weights" : "Share the traffic")),
    others.length > 0 && form("shade", darken, "Shadow", shade, "sees", share, "%", h("button", "Set")), told, seen);

  function show({ weights, versions }) {
    const all = Object.values(weights).reduce((sum, value) => sum + value, 0);
    for (const one of versions) {
      const texts = [weights[one.version] ? percent(weights[one.version] / all, 1) : "–", count(one.requests), count(one.errors + one.not_finite),
        ...[one.p50_ms, one.p99_ms].map((value) => (value === null ? "–" : ms(value))), one.compared ? `${percent(one.agreement, 1)} of ${count(one.compared)}` : "–"];
      cells.get(one.version)?.forEach((cell, i) => { cell.textContent = texts[i]; });
    }
  }
  const rules = (state) => JSON.stringify([state.since, state.active, state.shadow, state.rolled_back]);
  async function look() {
    try {
      const state = await get(`${base}/traffic`);
      if (over) return;
      if (rules(state) !== rules(first)) return await repaint();
      show(state);
      await agreements();
    } catch { /* the next look tells */ }
    if (!over) timer = setTimeout(look, EVERY_MS);
  }
  async function agreements() {
    const compared = [...Object.keys(ruled ? first.weights : {}), first.shadow?.version, first.rolled_back?.version].filter((version) => admin && version && Number(version) !== first.active);
    const found = await Promise.all(compared.map((version) => get(`${base}/agreement`, [["version", version]]).catch(() => null)));
    const open = [...seen.querySelectorAll("details[open]")].map((one) => Number(one.dataset.version));
    seen.replaceChildren(...found.filter((one) => one?.compared).map((one) => agreement(one, open.includes(one.version))));
  }
  show(first);
  await agreements();
  if (ruled || first.shadow) timer = setTimeout(look, EVERY_MS);
  return { node, leave };
}

/** How often one version's best label is the active one's: a bar for each label, and the inputs where it is not. */
const agreement = (told, open) => h("div.stack.tight.agreement",
  h("h3", `v${told.version} agrees with v${told.against} on ${percent(told.agreement, 1)} of ${plural(told.compared, "answer")}`),
  h("ol.bars", told.labels.slice(0, 12).map((one) => h(one.agreed === one.compared ? "li.first" : "li",
    h("span.name", { title: one.label }, one.label), h("span.value", `${count(one.agreed)} of ${count(one.compared)}`),
    h("span.track", { "aria-hidden": "true" }, sized(h("i"), one.agreed / one.compared))))),
  told.disagreements.length > 0 && h("details", { "data-version": told.version, open }, h("summary", `Where they differ: the last ${told.disagreements.length}`),
    table("Where they differ", ["sha256 of the input", `v${told.against}`, `v${told.version}`, "When"], told.disagreements.map((one) =>
      h("tr", h("td.mono.soft", { title: one.digest }, one.digest.slice(0, 12)), h("td", one.label), h("td", one.other), h("td.soft", when(one.created)))))));
