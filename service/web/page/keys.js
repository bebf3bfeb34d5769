// Keys: paste one, and see what it may do.

import { caller, hasKey, identify } from "./api.js";
import { failure, h, heading, plural, say } from "./dom.js";

const MEANING = {
  predict: "ask tasks about pictures and clips, and see what there is",
  upload: "put adapters, and teach tasks with examples",
  admin: "publish, activate and delete, and watch the server",
};

export function keys(changed) {
  const told = h("div");
  const input = h("input", {
    type: "password", autocomplete: "off", spellcheck: "false", placeholder: "as_…", id: "secret", required: true,
  });
  const paint = () => told.replaceChildren(hasKey() ? known(paint, changed) : "");
  const form = h("form", {
    class: "stack tight", onsubmit: async (event) => {
      event.preventDefault();
      try {
        await identify(input.value.trim());
        input.value = "";
        say(`Key ${caller.name} is in use`);
        changed();
      } catch (error) { input.value = ""; told.replaceChildren(failure(error)); }
    },
  },
  h("label.field", { for: "secret" }, "Key"), h("div.line", h("div", input), h("button.primary", "Use this key")),
  h("p.small.soft", "It stays in the memory of this tab until you reload or close it: in no address, no cookie, no storage."));
  paint();
  const title = !caller.required ? "No key is needed" : hasKey() ? "Your key" : "This server asks for a key";
  return {
    title: "Key",
    node: h("div.stack",
      heading(title, !caller.required
        ? "This server has no keys: whoever reaches it may do everything."
        : "Whoever runs this server makes keys with ", caller.required && h("code", "adaptserve keys create"), caller.required && "."),
      told, caller.required && form),
  };
}

function known(paint, changed) {
  const forget = async () => { await identify(""); say("The key is forgotten"); changed(); };
  return h("div.stack.tight",
    h("p", h("b", caller.name), " may:"),
    h("ul.checks", Object.entries(MEANING).filter(([scope]) => caller.may.includes(scope)).map(([scope, text]) =>
      h("li.passed", h("b", scope), h("span", text)))),
    caller.tasks && h("p", `Only for ${plural(caller.tasks.length, "task")}: `, h("code", caller.tasks.join(", "))),
    h("div", h("button", { onclick: forget }, "Forget it")));
}
