// What was done to a task, newest first: when, by whom, and why where the server did it by itself.

import { get, may } from "./api.js";
import { failure, h, percent, plural, section, table, when } from "./dom.js";

const SHOWN = 12;
const parts = (weights) => (weights ? Object.entries(weights).map(([number, weight]) => `v${number} ${weight}`).join(" : ") : "all to the active version");

function sentence({ what, version, detail }) {
  const it = `v${version}`, instead = Number.isInteger(detail.before) ? ` instead of v${detail.before}` : "";
  return {
    published: `${it} published${instead}`, staged: `${it} staged`, activated: `${it} activated${instead}`,
    deactivated: "no version active", version_deleted: `${it} deleted`, rolled_back: `${it} rolled back`,
    deleted: `deleted, with ${plural(detail.versions, "version")}`, copied: "copied from another store",
    traffic: `traffic: ${parts(detail.weights)}`,
    shadow: detail.share ? `${it} sees ${percent(detail.share)} as shadow` : `${it} is no shadow any more`,
  }[what] ?? `${what.replaceAll("_", " ")}${version ? ` ${it}` : ""}`;
}

const row = (event) => h("tr", { "data-what": event.what },
  h("td.soft", when(event.time)),
  h("td", sentence(event), event.why && h("p.note.warn", event.why)),
  h("td.soft", event.by && h("b", event.by, " "), event.origin), h("td.soft", event.server));

/** The section; nothing for a key that may not see it. */
export async function history(task) {
  if (!may("admin")) return "";
  const body = h("tbody"), told = h("div");
  const more = h("button.quiet", { onclick: () => add().catch((error) => told.replaceChildren(failure(error))) }, "Older");
  let next = null;
  const add = async () => {
    const page = await get(`/v1/tasks/${task}/history`, [["limit", SHOWN], ["after", next]]);
    body.append(...page.events.map(row));
    next = page.next;
    more.hidden = next === null;
  };
  await add();
  return section("History", body.firstChild ? table("History", ["When", "What", "By", "Server"], body) : h("p.soft", "Nothing has changed since histories are kept."),
    h("div.flush", more), told);
}
