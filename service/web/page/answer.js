// One task's answer: the word and the number first, bars second; and the stages that it took.

import { call } from "./api.js";
import { h, ms, score, sized } from "./dom.js";

const YES = 0.5;
const MOST_PER_CALL = 32;

/** Ask tasks of one kind about an input, as few calls as the server allows: decoded once, computed together. */
export async function ask(one, names, { kind, top = 5, signal, sampled = false }) {
  const query = [...names.slice(0, MOST_PER_CALL).map((name) => ["task", name]), ["top_k", top], ...(sampled ? [["sampled", "true"]] : [])];
  const first = await call("POST", "/v1/predict", { query, body: one.blob, type: "application/octet-stream", signal });
  const found = { results: first.data.results, stages: first.stages, took: first.took, query, kind };
  if (names.length > MOST_PER_CALL) {
    const rest = await ask(one, names.slice(MOST_PER_CALL), { kind, top, signal, sampled });
    found.results = [...found.results, ...rest.results];
  }
  return found;
}

/** The word for an answer: the best label, or of many labels all that are likely. */
export function word(result, task) {
  const [best] = result.predictions;
  if (!best) return { text: "no label", value: null };
  if (task?.score !== "sigmoid") return { text: best.label, value: best.score };
  const yes = result.predictions.filter((one) => one.score >= YES).sort((a, b) => a.index - b.index);
  return yes.length ? { text: yes.map((one) => one.label).join(", "), value: null } : { text: "none", value: null };
}

export function verdict(result, task) {
  const { text, value } = word(result, task);
  return h("p.verdict", h("span", { class: `word${text.length > 16 ? " long" : ""}` }, text), value !== null && h("span.score", score(value)));
}

export function bars(result, task) {
  return h("ol.bars", result.predictions.map((one, i) =>
    h("li", { class: task?.score === "sigmoid" ? (one.score >= YES ? "yes" : "") : i === 0 ? "first" : "" },
      h("span.name", { title: one.label }, one.label), h("span.value", score(one.score)),
      h("span.track", { "aria-hidden": "true" }, sized(h("i"), one.score)))));
}

/** What an answer says beside its labels. */
export function notes(result) {
  return [
    result.accepted === false && h("p.note.warn", "Below this task's threshold: ask a person."),
    result.bad_frames > 0 && h("p.note.warn", `${result.bad_frames} frames could not be decoded.`),
  ];
}

/** Where the time went, as the server tells it; the rest is the way there and back. */
export function stages(found) {
  const parts = [["decode", found.stages.decode ?? 0], ["queue", found.stages.queue ?? 0], ["compute", found.stages.compute ?? 0]];
  const rest = Math.max(0, found.took - parts.reduce((sum, [, value]) => sum + value, 0));
  const all = [...parts, ["network and the rest", rest]], total = all.reduce((sum, [, value]) => sum + value, 0) || 1;
  return h("div.stages",
    h("div.track", { "aria-hidden": "true" }, all.map(([, value], i) => sized(h("i", { class: `k${i}` }), value / total))),
    h("div.legend", all.map(([name, value], i) => h("span", { class: `key k${i}` }, `${name} ${ms(value)}`))));
}
