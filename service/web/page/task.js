// One task: what it is, its versions, its training, its file.

import { fetchBlob, get, may, mayTeach, send } from "./api.js";
import { bytes, compact, count, failure, h, percent, plural, say, twice, when } from "./dom.js";
import { reports } from "./report.js";
import { useThis } from "./use.js";

const SHOWN = 60; // labels before "all of them"

export async function view(name) {
  const node = h("div", { class: "stack wide" }), use = useThis();
  const paint = async () => {
    const [task, history] = await Promise.all([get(`/v1/tasks/${name}`), get(`/v1/tasks/${name}/versions`)]);
    while (history.next !== null && history.next !== undefined) {
      const more = await get(`/v1/tasks/${name}/versions`, [["after", history.next]]);
      history.versions.push(...more.versions);
      history.next = more.next;
    }
    node.replaceChildren(head(task), facts(task), task.problem ? failure(new Error(task.problem)) : "", labels(task),
      versions(task, history.versions.reverse(), paint, use), use.node, ...(await file(task, history.versions)), danger(task));
  };
  await paint();
  return { title: name, node };
}

function head(task) {
  return h("div", { class: "spread" },
    h("div", {}, h("p", { class: "small soft" }, h("a", { href: "#/tasks" }, "Tasks")), h("h1", { tabindex: -1 }, task.task),
      h("p", { class: "lead" }, task.modality === "video" ? `Looks at clips: ${task.frames} frames${task.views > 1 ? `, ${task.views} views` : ""}.` : "Looks at pictures.")),
    h("div", { class: "line" }, h("a", { class: "button primary", href: `#/try/${task.task}` }, "Try it"),
      mayTeach() && h("a", { class: "button", href: `#/teach/${task.task}` }, "Teach it")));
}

function facts(task) {
  const rows = [
    ["Version", task.version === null ? "none active" : [`v${task.version} `, h("small", {}, `of ${task.versions}`)]],
    ["Labels", count(task.classes)],
    ["Accuracy, held out", percent(task.accuracy, 1)],
    ["Parameters", [compact(task.parameters), " ", h("small", {}, `${percent(task.share, 2)} of the backbone`)]],
    ["Where it is now", h("span", { class: `where ${task.residency}` }, task.residency)],
    ["Requests", [`${count(task.requests.answered + task.requests.failed)} `, h("small", { class: task.requests.failed ? "bad" : "" }, plural(task.requests.failed, "error"))]],
  ];
  return h("dl", { class: "facts" }, rows.map(([term, value]) => h("div", {}, h("dt", {}, term), h("dd", {}, value))));
}

function labels(task) {
  const list = h("p", { class: "labels-all" });
  const paint = (most) => list.replaceChildren(task.labels.slice(0, most).join(" · "), most < task.labels.length
    ? h("button", { type: "button", class: "quiet", onclick: () => paint(task.labels.length) }, `all ${count(task.labels.length)}`) : "");
  paint(SHOWN);
  return h("section", { class: "stack tight" }, h("h2", {}, "Labels"), list);
}

function versions(task, list, paint, use) {
  const told = h("div", {});
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
    h("td", {}, `v${version.version} `, version.active && h("span", { class: "tag on" }, "active")),
    h("td", { class: "soft" }, when(version.created)), h("td", { class: "num" }, bytes(version.bytes)),
    h("td", { class: "mono soft", title: version.digest }, version.digest.slice(0, 12)),
    may("admin") && h("td", { class: "act" },
      !version.active && h("button", { type: "button", class: "quiet", onclick: () => activate(version.version) }, "Activate"),
      h("button", { type: "button", class: "quiet", onclick: () => act("Downloaded", () => download(task.task, version)) }, "Download"),
      !version.active && twice("Delete", `Delete v${version.version} for good?`, () => act(`Version ${version.version} is deleted`, () => send("DELETE", `${base}/${version.version}`)))));
  return h("section", { class: "stack tight" },
    h("div", { class: "spread" }, h("h2", {}, "Versions"),
      may("admin") && previous && h("button", { type: "button", class: "rollback", onclick: () => activate(previous.version) }, `Roll back to v${previous.version}`)),
    h("div", { class: "scroll", tabindex: 0, role: "group", "aria-label": "Versions" }, h("table", {},
      h("thead", {}, h("tr", {}, ["Version", "Made"].map((text) => h("th", { scope: "col" }, text)), h("th", { scope: "col", class: "num" }, "Size"), h("th", { scope: "col" }, "sha256"),
        may("admin") && h("th", { scope: "col" }, h("span", { class: "visually-hidden" }, "What can be done")))),
      h("tbody", {}, list.map(row)))), told);
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
  if (config) made.push(h("details", {}, h("summary", {}, `The file of v${number}`), h("pre", { tabindex: 0 }, JSON.stringify(config, null, 2))));
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
  return h("section", { class: "stack tight" }, h("h2", {}, `How v${number} was trained`),
    h("table", { class: "plain" }, h("tbody", {}, rows.map(([term, value]) => h("tr", {}, h("th", { scope: "row" }, term), h("td", {}, value))))));
}

function danger(task) {
  if (!may("admin")) return "";
  const told = h("div", {});
  return h("section", { class: "stack tight" }, h("div", { class: "flush" },
    twice("Delete this task", `Delete ${task.task}, all its versions and its examples?`, async () => {
      try { await send("DELETE", `/v1/tasks/${task.task}`); location.hash = "#/tasks"; say(`${task.task} is deleted`); } catch (error) { told.replaceChildren(failure(error)); }
    })), told);
}

