// What the server was least sure of, to be labelled; nothing where it keeps none.

import { get, picture, send } from "./api.js";
import { failure, h, score, section } from "./dom.js";

export async function unsure(task, changed) {
  const found = await get(`/v1/tasks/${task}/uncertain`).catch(() => null);
  if (!found?.items?.length) return "";
  const labels = (await get(`/v1/tasks/${task}`)).labels;
  const place = h("div.unsure", found.items.map((item) => row(task, item, labels, changed)));
  return section("What it was least sure of", h("p.soft", "Say what is right, and it becomes an example."), place);
}

function row(task, item, labels, changed) {
  const image = h("img", { alt: "" }), told = h("div");
  picture(item.thumbnail).then((source) => { image.src = source; }, () => {});
  const guess = item.predictions.slice(0, 2).map((one) => `${one.label} ${score(one.score)}`).join(", ");
  const right = async (label) => {
    try {
      await send("POST", `/v1/tasks/${task}/feedback`, { request_id: item.request_id, label });
      node.replaceChildren(h("p.note", `Kept as “${label}”.`));
      changed();
    } catch (error) { told.replaceChildren(failure(error)); }
  };
  const choices = labels.length <= 12 ? h("div.chips", labels.map((label) => h("button.small", { onclick: () => right(label) }, label)))
    : h("select", { "aria-label": "The right label", onchange: (event) => event.target.value && right(event.target.value) }, h("option", { value: "" }, "The right label"), labels.map((label) => h("option", label)));
  const node = h("div.stack.tight", image, h("p.note", guess), choices, told);
  return node;
}
