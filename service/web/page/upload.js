// Upload: an adapter file, what it says of itself, its way to the server, and the checks there.

import { get, may, upload } from "./api.js";
import { NAME, bytes, count, facts, failure, h, heading, percent, plural, say, sized } from "./dom.js";
import { dropZone } from "./media.js";
import { useThis } from "./use.js";

/** In the server's order, each with the kinds of problem that come from it. What stands before a failed one has passed. */
const CHECKS = [
  ["sent", "It arrives whole, within the server's bounds", ["body-too-large", "adapter-too-large", "request-timeout", "queue-full", "bad-request", "bad-task-name", "unauthorised", "forbidden", "draining", "too-many-connections"]],
  ["file", "It is a safetensors file", ["not-an-adapter"]],
  ["header", "Its config, names, types and shapes are right", ["broken-adapter"]],
  ["base", "It is made for this backbone", ["wrong-base"]],
  ["trial", "Its values are finite, and a trial run answers", ["bad-scores", "no-room", "loads-behind", "compute-failed", "not-ready", "engine-lost", "deadline-exceeded"]],
  ["kept", "It is on the disk, and survives a crash", ["storage-full", "storage-read-only", "storage-failed", "conflict"]],
];
const MOST_HEADER = 16 * 1024 * 1024;

export async function view() {
  const told = h("div.stack"), use = useThis();
  let file = null;
  const zone = dropZone((files) => files[0] && chosen(files[0]), {
    title: "Drop a .safetensors adapter", hint: "or choose a file. Nobody sees it before every check has passed.", accept: ".safetensors", short: true,
  });

  async function chosen(given) {
    file = given;
    use.show(null);
    const config = await read(file).catch(() => null);
    const name = h("input", { type: "text", id: "task-name", value: config?.task ?? taskName(file.name), pattern: NAME, required: true, autocomplete: "off", spellcheck: "false" });
    const activate = h("input", { type: "checkbox", checked: true });
    const checks = h("div"), existing = h("p.note");
    const look = async () => {
      const found = await get("/v1/tasks", [["prefix", name.value], ["limit", 1]]).catch(() => null);
      const same = found?.tasks.find((task) => task.task === name.value);
      existing.textContent = same ? `${name.value} exists: this becomes its next version${same.version ? `, after v${same.version}` : ""}.` : "A new task.";
    };
    name.addEventListener("change", look);
    const button = h("button.primary", "Upload");
    const form = h("form.columns", { onsubmit: async (event) => {
      event.preventDefault();
      button.disabled = true;
      try { await go(name.value, activate.checked, checks); } finally { button.disabled = false; look(); }
    } },
    h("div.stack", h("div", h("h2", file.name), h("p.soft", bytes(file.size))),
    config ? about(config) : h("p.note.warn", "This page finds no adapter config in it. The server will say what it is."),
    h("div.stack.tight", h("label.field", { for: "task-name" }, "Task"), h("div.narrow", name), existing),
    may("admin") && h("label.check", activate, "Activate it: it answers as soon as it is checked"),
    h("div", button)), checks);
    told.replaceChildren(form);
    await look();
  }

  async function go(task, active, place) {
    const list = h("ul.checks", CHECKS.map(([key, text]) => h("li", { "data-check": key }, h("b", text), h("span"))));
    const bar = sized(h("i"), 0), row = (i) => list.children[i];
    row(0).append(h("span.track", { "aria-hidden": "true" }, bar));
    place.replaceChildren(list);
    const path = `/v1/tasks/${encodeURIComponent(task)}/adapter`, query = active ? [] : [["activate", "false"]];
    try {
      const { data, status } = await upload("PUT", path, { query, body: file, progress: (share) => { sized(bar, share); if (share >= 1) wait(row(1)); } });
      bar.parentElement.remove();
      for (const item of list.children) pass(item);
      const text = status === 200 ? `The task has had these very bytes before: they are v${data.version}.` : data.active
        ? `${task} v${data.version} is live.` : `${task} v${data.version} is staged: it waits to be activated.`;
      list.append(h("li.passed.done", h("b", text), h("span.line",
        h("a.button", { href: `#/try/${task}` }, "Try it"), h("a.button", { href: `#/tasks/${task}` }, "See the task"))));
      say(text);
    } catch (error) {
      bar.parentElement.remove();
      fail(list, error);
      say(error.message);
    }
    use.show({ method: "PUT", path, query, file: { name: file.name }, python: [`made = client.upload(FILE, task=${JSON.stringify(task)}${active ? "" : ", activate=False"})`, "print(made.version, made.digest)"] });
  }
  return {
    title: "Upload",
    node: h("div.stack",
      heading("Upload an adapter", "One file is one task. It is checked and tried first; when the last check has passed it answers, with nothing restarted."),
      zone.node, told, use.node),
  };
}

const pass = (item) => { item.classList.remove("now"); item.classList.add("passed"); };
const wait = (item) => item.classList.add("now");

/** The check that the server's problem belongs to gets its sentence; those before have passed, those after were not made. */
function fail(list, error) {
  let at = CHECKS.findIndex(([, , kinds]) => kinds.includes(error.kind));
  if (error.kind === "adapter-too-large" && !String(error.problem.detail).includes("bytes")) at = 2;
  if (error.kind === "broken-adapter" && error.problem.field === "values") at = 4;
  if (at < 0) at = 0;
  [...list.children].forEach((item, i) => {
    item.classList.remove("now");
    if (i < at) pass(item);
    if (i === at) {
      item.classList.add("failed");
      item.querySelector("span").replaceWith(failure(error));
    }
  });
}

/** The config in a file's header, read here so that one sees what it is before it leaves. */
async function read(file) {
  const length = new DataView(await file.slice(0, 8).arrayBuffer()).getBigUint64(0, true);
  if (length > MOST_HEADER) throw new Error("too long");
  const header = JSON.parse(await file.slice(8, 8 + Number(length)).text());
  return JSON.parse(header.__metadata__.adaptserve);
}

function about(config) {
  const accuracy = config.training?.held_out_accuracy;
  const rows = [config.base && ["Made for", config.base.model], ["Looks at", config.modality === "video" ? "clips" : "pictures"], ["Labels", count(config.labels?.length)],
    ["Sites", (config.sites ?? []).map((site) => `${site.site} × ${site.blocks.length}, rank ${site.rank}`).join("; ") || "head alone"],
    accuracy !== undefined && ["Held-out accuracy", percent(accuracy, 1)]];
  return h("div.stack.tight",
    h("div.small-facts", facts(rows)),
    h("p.note", (config.labels ?? []).slice(0, 12).join(" · "), (config.labels?.length ?? 0) > 12 && ` and ${plural(config.labels.length - 12, "more", "more")}`));
}

const taskName = (name) => name.replace(/\.safetensors$/i, "").toLowerCase().replace(/[^a-z0-9._-]+/g, "-").replace(/^[._-]+|[._-]+$/g, "").slice(0, 64) || "task";
