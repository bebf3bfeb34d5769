// One task: what it is, its versions, its training, its file.

import { fetchBlob, get, may, mayTeach, send } from "./api.js";
import { bytes, compact, count, facts, failure, h, heading, percent, plural, say, section, table, twice, when } from "./dom.js";
import { history } from "./history.js";
import { reports } from "./report.js";
import { traffic } from "./traffic.js";
import { useThis } from "./use.js";

const SHOWN = 60; // labels before "all of them"

export async function view(name) {
  const node = h("div.stack.wide"), use = useThis();
  let rule = null, left = false;
  const paint = async () => {
    const [task, kept] = await Promise.all([get(`/v1/tasks/${name}`), get(`/v1/tasks/${name}/versions`)]);
    while (kept.next !== null && kept.next !== undefined) {
      const more = await get(`/v1/tasks/${name}/versions`, [["after", kept.next]]);
      kept.versions.push(...more.versions);
      kept.next = more.next;
    }
    const list = kept.versions.reverse(), [shared, past, more] = await Promise.all([traffic(task, list, paint), history(name), file(task, list)]);
    rule?.leave();
    rule = shared;
    if (left) rule.leave();
    node.replaceChildren(head(task), told(task), task.problem ? failure(new Error(task.problem)) : "", labels(task),
      versions(task, list, paint, use), use.node, shared.node, past, ...more, danger(task));
  };
  try { await paint(); } catch (error) {
    const past = error.kind === "unknown-task" ? await history(name).catch(() => "") : "";
    if (!past) throw error;
    node.replaceChildren(heading(name, "It is deleted."), past);
  }
  return { title: name, node, leave() { left = true; rule?.leave(); } };
}

function head(task) {
  return h("div.spread",
    h("div", h("p.small.soft", h("a", { href: "#/tasks" }, "Tasks")), h("h1", { tabindex: -1 }, task.task),
      h("p.lead", task.modality === "video" ? `Looks at clips: ${task.frames} frames${task.views > 1 ? `, ${task.views} views` : ""}.` : "Looks at pictures.")),
    h("div.line", h("a.button.primary", { href: `#/try/${task.task}` }, "Try it"),
      mayTeach() && h("a.button", { href: `#/teach/${task.task}` }, "Teach it")));
}

function told(task) {
  const rows = [
    ["Version", task.version === null ? "none active" : [`v${task.version} `, h("small", `of ${task.versions}`)]],
    ["Labels", count(task.classes)],
    ["Accuracy, held out", percent(task.accuracy, 1)],
    ["Parameters", [compact(task.parameters), " ", h("small", `${percent(task.share, 2)} of the backbone`)]],
    ["Where it is now", h("span", { class: `where ${task.residency}` }, task.residency)],
    ["Requests", [`${count(task.requests.answered + task.requests.failed)} `, h("small", { class: task.requests.failed ? "bad" : "" }, plural(task.requests.failed, "error"))]],
  ];
  return facts(rows);
}

function labels(task) {
  const list = h("p.labels-all");
  const paint = (most) => list.replaceChildren(task.labels.slice(0, most).join(" · "), most < task.labels.length
    ? h("button.quiet", { onclick: () => paint(task.labels.length) }, `all ${count(task.labels.length)}`) : "");
  paint(SHOWN);
  return section("Labels", list);
}

function versions(task, list, paint, use) {
  const told = h("div");
  const act = async (text, work) => {
    try { await work(); await paint(); say(text); } catch (error) { told.replaceChildren(failure(error)); }
  };
  const base = `/v1/tasks/${task.task}/versions`;
  const activate = (number) => act(`Version ${number} is active`, async () => {
    await send("POST", `${base}/${number}/activate`);
    use.show({ method: "POST", path: `${base}/${number}/activate`, python: [`client.activate(${JSON.stringify(task.task)}, ${number})`] });
  });
  const previous = list.find((version) => task.version !== null && version.version < task.version);
  const row = (version) => h("tr", { class: version.active ? "current" : "", "data-version": version.version },
    h("td", `v${version.version} `, version.active && h("span.tag.on", "active")),
    h("td.soft", when(version.created)), h("td.num", bytes(version.bytes)),
    h("td.mono.soft", { title: version.digest }, version.digest.slice(0, 12)),
    may("admin") && h("td.act",
      !version.active && h("button.quiet", { onclick: () => activate(version.version) }, "Activate"),
      h("button.quiet", { onclick: () => act("Downloaded", () => download(task.task, version)) }, "Download"),
      !version.active && twice("Delete", `Delete v${version.version} for good?`, () => act(`Version ${version.version} is deleted`, () => send("DELETE", `${base}/${version.version}`)))));
  return h("section.stack.tight",
    h("div.spread", h("h2", "Versions"),
      may("admin") && previous && h("button.rollback", { onclick: () => activate(previous.version) }, `Roll back to v${previous.version}`)),
    table("Versions", ["Version", "Made", ">Size", "sha256", ...(may("admin") ? [">What can be done"] : [])], list.map(row)), told);
}

/** Fetched with the key, then handed to the browser as a file. */
async function download(task, version) {
  const blob = await fetchBlob(`/v1/tasks/${task}/versions/${version.version}/adapter`);
  const url = URL.createObjectURL(blob);
  h("a", { href: url, download: `${task}-v${version.version}.safetensors` }).click();
  setTimeout(() => URL.revokeObjectURL(url), 10_000);
}

/** The file's own config, its training in words, and the reports of jobs. */
async function file(task, list) {
  const number = task.version ?? list[0]?.version;
  if (number === undefined) return [];
  const config = await get(`/v1/tasks/${task.task}/versions/${number}/config`).catch(() => null);
  const made = [];
  if (config?.training && Object.keys(config.training).length) made.push(training(config.training, number));
  if (mayTeach()) made.push(await reports(task.task));
  if (config) made.push(h("details", h("summary", `The file of v${number}`), h("pre", { tabindex: 0 }, JSON.stringify(config, null, 2))));
  return made.filter(Boolean);
}

function training(told, number) {
  const share = (value) => percent(value, 1);
  const rows = [
    ["about", told.about], ["verdict", told.verdict], ["method", told.method],
    ["held-out accuracy", told.held_out_accuracy !== undefined && `${share(told.held_out_accuracy)} of ${plural(told.held_out_examples ?? 0, "example")}`],
    ["balanced accuracy", told.held_out_balanced_accuracy !== undefined && share(told.held_out_balanced_accuracy)],
    ["trained on", told.train_examples !== undefined && plural(told.train_examples, "example")],
    ["took", told.seconds !== undefined && `${count(Math.round(told.seconds))} s`], ["when", told.date], ["with", told.tool],
  ].filter(([, value]) => value);
  return section(`How v${number} was trained`,
    h("table.plain", h("tbody", rows.map(([term, value]) => h("tr", h("th", { scope: "row" }, term), h("td", value))))));
}

function danger(task) {
  if (!may("admin")) return "";
  const told = h("div");
  return h("section.stack.tight", h("div.flush",
    twice("Delete this task", `Delete ${task.task}, all its versions and its examples?`, async () => {
      try { await send("DELETE", `/v1/tasks/${task.task}`); location.hash = "#/tasks"; say(`${task.task} is deleted`); } catch (error) { told.replaceChildren(failure(error)); }
    })), told);
}

