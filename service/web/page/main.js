// The frame around the views: which one is shown, who may see it, light or dark.

import { caller, get, hasKey, identify, may, mayTeach, mayWatch } from "./api.js";
import { NAME, count, failure, h, plural } from "./dom.js";
import { keys } from "./keys.js";

const VIEWS = [
  { name: "try", label: "Try", load: () => import("./try.js"), open: () => may("predict") },
  { name: "teach", label: "Teach", load: () => import("./teach.js"), open: mayTeach },
  { name: "tasks", label: "Tasks", load: () => import("./tasks.js"), open: () => may("predict") },
  { name: "upload", label: "Upload", load: () => import("./upload.js"), open: mayTeach },
  { name: "watch", label: "Watch", load: () => import("./watch.js"), open: mayWatch },
];

const main = document.getElementById("main");
let leave = null, turn = 0;

/** Show what the address asks for; a view is a node, a title, and what to do when it is left. */
async function show() {
  const [name = "", ...rest] = location.hash.replace(/^#\/?/, "").split("/").map(decoded);
  const mine = ++turn;
  const locked = caller.required && !caller.name;
  const view = VIEWS.find((one) => one.name === name && one.open()) ?? VIEWS.find((one) => one.open());
  mark(locked || name === "keys" ? "keys" : view?.name);
  let made;
  try {
    if (locked || name === "keys" || !view) made = keys(changed);
    else made = await (await view.load()).view(...rest.slice(0, 1).filter(Boolean).map(named));
  } catch (error) {
    made = { title: "Failed", node: h("div.stack", h("h1", { tabindex: -1 }, "That did not work"), failure(error)) };
  }
  if (mine !== turn) { made.leave?.(); return; }
  leave?.();
  leave = made.leave ?? null;
  const first = main.childElementCount === 0 || main.querySelector("noscript");
  main.replaceChildren(made.node);
  main.dataset.view = [name, ...rest].join("/");
  document.title = `${made.title} · AdaptServe`;
  made.shown?.();
  foot();
  if (!first) {
    scrollTo(0, 0);
    (main.querySelector("h1") ?? main).focus({ preventScroll: true });
  }
}

/** A part of the address as a name; what is no encoding stays as it is. */
function decoded(part) {
  try { return decodeURIComponent(part); } catch { return part; }
}

/** A link may name a task, and nothing that a path could be made of. */
function named(text) {
  if (!new RegExp(`^${NAME}$`).test(text)) throw new Error(`“${text.slice(0, 80)}” is no task name`);
  return text;
}

function mark(name) {
  const nav = document.getElementById("nav");
  nav.replaceChildren(...VIEWS.filter((one) => one.open() && !(caller.required && !caller.name)).map((one) =>
    h("a", { href: `#/${one.name}`, "aria-current": one.name === name && "page" }, one.label)));
  const key = document.getElementById("key");
  key.hidden = !caller.required;
  key.textContent = hasKey() ? `Key: ${caller.name}` : "Key";
}

/** Anew with each view and each change: tasks come and go. */
async function foot() {
  const place = document.getElementById("foot");
  try {
    if (caller.required && !caller.name) { place.replaceChildren(); return; }
    const told = await get("/v1/tasks", [["limit", 1]]);
    place.replaceChildren(
      h("span", told.backbone), h("span", `${count(told.parameters)} parameters`),
      h("span", `${told.input_size[1]} × ${told.input_size[0]} px`), h("span", told.dtype), h("span", plural(told.count, "task")));
  } catch { place.replaceChildren(); }
}

/** Another key, or none. */
function changed() {
  if (location.hash === "#/try") show(); else location.hash = "#/try";
}

function theme() {
  const button = document.getElementById("theme"), root = document.documentElement;
  const system = matchMedia("(prefers-color-scheme: dark)");
  const dark = () => (root.dataset.theme ?? (system.matches ? "dark" : "light")) === "dark";
  const paint = () => {
    button.textContent = dark() ? "Light" : "Dark";
    button.setAttribute("aria-label", dark() ? "Change to light colours" : "Change to dark colours");
  };
  button.addEventListener("click", () => {
    root.dataset.theme = dark() ? "light" : "dark";
    try { localStorage.setItem("adaptserve-theme", root.dataset.theme); } catch { /* not kept */ }
    paint();
  });
  system.addEventListener("change", paint);
  paint();
}

theme();
document.querySelector(".skip").addEventListener("click", (event) => { event.preventDefault(); main.focus(); });
addEventListener("hashchange", show);
addEventListener("changed", foot);
// What is dropped beside a drop zone must not replace the page.
for (const kind of ["dragover", "drop"]) addEventListener(kind, (event) => event.preventDefault());
try {
  await identify();
  await show();
} catch (error) {
  main.replaceChildren(failure(error));
}
