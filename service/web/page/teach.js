// Teach: pictures into boxes by label, one button, a curve, and the result beside it.

import { NAME, h, heading } from "./dom.js";
import { Boxes } from "./examples.js";
import { Training } from "./job.js";
import { Attempt } from "./attempt.js";
import { unsure } from "./unsure.js";

export async function view(name) {
  return name ? workshop(name) : begin();
}

async function begin() {
  const input = h("input", { type: "text", id: "task-name", pattern: NAME, required: true, autocomplete: "off", spellcheck: "false", placeholder: "screws", title: "a to z, 0 to 9, dot, dash and underscore" });
  const form = h("form.stack.tight", { onsubmit: (event) => { event.preventDefault(); location.hash = `#/teach/${input.value}`; } },
    h("label.field", { for: "task-name" }, "What is the task called?"), h("div.line", h("div.narrow", input), h("button.primary", "Go on")));
  return {
    title: "Teach",
    node: h("div.stack.wide",
      heading("Teach a task", "Two labels, a handful of pictures each. A head on the frozen backbone answers within seconds; an adapter that is better on pictures it never saw replaces it."),
      form,
      h("ol.steps", [["Show", "Drop pictures into a box for each label, or drop folders, or hold the camera button."], ["Teach", "Press once. The server goes on answering everybody else meanwhile."], ["Try", "Ask it at once, and tell it where it is wrong: that becomes an example."]].map(([title, text]) => h("li", h("h2", title), h("p.soft", text))))),
  };
}

async function workshop(task) {
  const attempt = new Attempt(task), boxes = new Boxes(task), training = new Training(task);
  boxes.changed = () => training.counts(boxes.counts);
  training.published = () => attempt.known();
  await boxes.load();
  await Promise.all([training.load(), attempt.known()]);
  training.counts(boxes.counts);
  const uncertain = await unsure(task, () => boxes.load());
  return {
    title: `Teach ${task}`,
    node: h("div.stack.wide",
      h("div", h("p.small.soft", h("a", { href: "#/teach" }, "Teach")), h("h1", { tabindex: -1 }, task)),
      h("div.teach", boxes.node, training.node, attempt.node), uncertain),
    leave: () => { boxes.leave(); training.leave(); attempt.leave(); },
  };
}

