// Two versions of a task side by side on the same input, with what differs marked.

import { call, get } from "./api.js";
import { verdict, word } from "./answer.js";
import { failure, h, score, sized } from "./dom.js";

const TOP = 50;

/** Opens in `place`, or closes there. */
export async function compare(place, one, task) {
  if (place.childElementCount) { place.replaceChildren(); return; }
  try {
    const { versions } = await get(`/v1/tasks/${task.task}/versions`);
    const numbers = versions.map((version) => version.version).reverse();
    const active = task.version ?? numbers[0];
    const other = numbers.find((number) => number !== active) ?? active;
    const sides = [choice("One version", numbers, active, task.version), choice("The other version", numbers, other, task.version)];
    const found = h("div");
    const run = async () => {
      try {
        const answers = await Promise.all(sides.map((side) => asked(one, task.task, Number(side.value))));
        found.replaceChildren(beside(answers, task));
      } catch (error) { found.replaceChildren(failure(error)); }
    };
    for (const side of sides) side.addEventListener("change", run);
    place.replaceChildren(h("div.stack.tight.compared", h("div.pair", sides), found));
    await run();
  } catch (error) { place.replaceChildren(failure(error)); }
}

function choice(label, numbers, chosen, active) {
  return h("select", { "aria-label": label }, numbers.map((number) =>
    h("option", { value: number, selected: number === chosen }, `v${number}${number === active ? " (active)" : ""}`)));
}

async function asked(one, task, version) {
  const { data } = await call("POST", `/v1/tasks/${task}/predict`, {
    query: [["top_k", TOP], ["version", version]], body: one.blob, type: "application/octet-stream",
  });
  return data;
}

/** Each label once, its two scores as bars, the difference in points; the largest differences stand out. */
export function beside([left, right], task) {
  const scores = new Map();
  for (const [side, answer] of [left, right].entries()) {
    for (const { label, score: value } of answer.predictions) {
      if (!scores.has(label)) scores.set(label, [null, null]);
      scores.get(label)[side] = value;
    }
  }
  const rows = [...scores].map(([label, pair]) => ({ label, pair, by: (pair[1] ?? 0) - (pair[0] ?? 0) }))
    .sort((a, b) => Math.max(...b.pair.map(Number)) - Math.max(...a.pair.map(Number))).slice(0, 6);
  const same = word(left, task).text === word(right, task).text;
  return h("div.stack.tight",
    h("p", { class: `note ${same ? "" : "warn"}` }, same ? "Both give the same answer." : "The answers differ."),
    h("div.pair", verdict(left, task), verdict(right, task)),
    h("table.diff",
      h("thead", h("tr", h("th", { scope: "col" }, "label"), h("th", { scope: "col" }, `v${left.version}`), h("th", { scope: "col" }, `v${right.version}`), h("th", { scope: "col", class: "num" }, "change"))),
      h("tbody", rows.map(({ label, pair, by }) => h("tr", { class: Math.abs(by) >= 0.1 ? "differs" : "" },
        h("th", { scope: "row" }, label), pair.map((value) => h("td", value === null ? "–" : [h("span", score(value)), h("span.track", { "aria-hidden": "true" }, sized(h("i"), value))])),
        h("td.num", points(by)))))));
}

function points(by) {
  const rounded = Math.round(100 * by);
  return rounded === 0 ? "0" : `${rounded > 0 ? "+" : "−"}${Math.abs(rounded)}`;
}

