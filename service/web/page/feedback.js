// A wrong answer becomes an example of the right label.

import { call, get } from "./api.js";
import { count, failure, h, say } from "./dom.js";

/** Opens in `place`, or closes there. */
export async function correct(place, one, task, result) {
  if (place.childElementCount) { place.replaceChildren(); return; }
  const labels = task.labels.length < task.classes ? (await get(`/v1/tasks/${task.task}`)).labels : task.labels;
  const said = result.predictions[0]?.label;
  const list = h("datalist", { id: `labels-${task.task}` }, labels.map((label) => h("option", { value: label })));
  const choice = h("input", { type: "text", list: list.id, required: true, "aria-label": `The right label for ${task.task}`, placeholder: "The right label", autocomplete: "off" });
  const told = h("div");
  const form = h("form", {
    class: "stack tight", onsubmit: async (event) => {
      event.preventDefault();
      try {
        const { data } = await call("POST", `/v1/tasks/${task.task}/feedback`, {
          query: [["label", choice.value]], body: one.blob, type: "application/octet-stream",
        });
        const text = `Kept as an example of “${data.label}”, which has ${count(data.counts[data.label])} now.`;
        form.replaceWith(h("p.note", { role: "status" }, text, " ", h("a", { href: `#/teach/${task.task}` }, "Teach again")));
        say(text);
      } catch (error) { told.replaceChildren(failure(error)); }
    },
  },
  h("p.note", `It said “${said ?? "nothing"}”. What is right?`),
  labels.length <= 12 && h("div.chips", labels.filter((label) => label !== said).map((label) =>
    h("button.small", { type: "submit", onclick: () => { choice.value = label; } }, label))),
  labels.length > 12 && h("div.line", choice, list, h("button.primary", "Keep as an example")), told);
  place.replaceChildren(form);
}
