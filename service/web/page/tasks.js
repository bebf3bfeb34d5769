// Tasks: a list made for ten thousand. Only the rows that are seen are drawn; pages come as one scrolls.

import { get } from "./api.js";
import { compact, count, failure, h, percent, plural } from "./dom.js";

const MARGIN = 8; // rows drawn beyond what is seen
const PAGE = 500; // tasks asked for at a time once the first page is there
const kept = { prefix: "", scroll: 0 };

export async function view(name) {
  if (name) return (await import("./task.js")).view(name);
  const list = new List();
  const search = h("input", { type: "search", placeholder: "Name begins with …", "aria-label": "Find tasks whose name begins with", value: kept.prefix, autocomplete: "off", spellcheck: "false" });
  const told = h("p.small.soft", { role: "status" });
  let timer = 0;
  const find = async () => {
    kept.prefix = search.value.trim();
    await list.open(kept.prefix);
    told.textContent = kept.prefix ? `${plural(list.total, "task")} of that name` : `${plural(list.total, "task")} on ${list.backbone}`;
  };
  search.addEventListener("input", () => { clearTimeout(timer); timer = setTimeout(find, 120); });
  await find();
  return {
    title: "Tasks",
    node: h("div.stack",
      h("div.spread", h("div", h("h1", { tabindex: -1 }, "Tasks"), told), h("div.find", search)), list.node),
    shown: () => list.shown(),
    leave: () => list.leave(),
  };
}

class List {
  constructor() {
    this.rows = [];
    this.total = 0;
    this.next = null;
    this.turn = 0;
    this.body = h("div.body", { role: "rowgroup" });
    const heads = [["Task"], ["Kind"], ["Labels"], ["Version"], ["Accuracy", "num"], ["Share", "num"], ["Where"], ["Requests", "num"], ["Errors", "num"]];
    this.table = h("div.list", { role: "table", "aria-label": "Tasks" },
      h("div", { role: "rowgroup" }, h("div.head", { role: "row" }, heads.map(([text, kind]) => h("div", { role: "columnheader", class: kind }, text)))), this.body);
    this.said = h("div");
    this.node = h("div", this.table, this.said);
    this.paint = this.paint.bind(this);
  }

  async open(prefix) {
    const mine = ++this.turn;
    this.prefix = prefix;
    const page = await get("/v1/tasks", [["prefix", prefix]]);
    if (mine !== this.turn) return;
    Object.assign(this, { rows: page.tasks, total: page.count, next: page.next, backbone: page.backbone });
    this.said.replaceChildren(this.total ? "" : h("p.empty", prefix ? "No task's name begins so." : "No tasks yet."));
    this.paint();
  }

  /** The pages up to a row, one after the other: each begins after the last name of the one before. */
  async reach(row) {
    if (this.reaching || this.next === null || row < this.rows.length) return;
    const mine = this.turn;
    this.reaching = true;
    try {
      while (this.next !== null && this.rows.length <= row && mine === this.turn) {
        const page = await get("/v1/tasks", [["prefix", this.prefix], ["after", this.next], ["limit", PAGE]]);
        if (mine !== this.turn) break;
        this.rows.push(...page.tasks);
        this.next = page.next;
        if (this.next === null) this.total = this.rows.length;
      }
    } catch (error) { this.said.replaceChildren(failure(error)); this.next = null; } finally { this.reaching = false; }
    this.paint();
  }

  shown() {
    addEventListener("scroll", this.paint, { passive: true });
    addEventListener("resize", this.paint);
    this.paint();
    if (kept.scroll) scrollTo(0, kept.scroll);
  }

  leave() {
    kept.scroll = scrollY;
    this.turn++;
    removeEventListener("scroll", this.paint);
    removeEventListener("resize", this.paint);
  }

  paint() {
    if (!this.body.isConnected) return;
    const height = parseFloat(getComputedStyle(document.documentElement).getPropertyValue("--row"));
    this.body.style.height = `${height * this.total}px`;
    const top = -this.body.getBoundingClientRect().top;
    const first = Math.max(0, Math.floor(top / height) - MARGIN), last = Math.min(this.total, Math.ceil((top + innerHeight) / height) + MARGIN);
    this.table.setAttribute("aria-rowcount", this.total + 1);
    const there = new Map([...this.body.children].map((node) => [Number(node.dataset.row), node]));
    for (let row = first; row < last; row++) {
      const task = this.rows[row], old = there.get(row);
      there.delete(row);
      if (old && old.task === task) continue;
      const node = item(task, row);
      node.task = task;
      node.style.top = `${row * height}px`;
      if (old) old.replaceWith(node); else this.place(node, row);
    }
    // A row that has the focus stays until that goes elsewhere.
    for (const node of there.values()) if (!node.contains(document.activeElement)) node.remove();
    for (const node of this.body.children) node.style.top = `${node.dataset.row * height}px`;
    this.reach(last - 1);
  }

  /** In the order of the rows, which is that of the Tab key. */
  place(node, row) {
    const after = [...this.body.children].find((other) => Number(other.dataset.row) > row);
    this.body.insertBefore(node, after ?? null);
  }
}

function item(task, row) {
  const cell = (name, ...inside) => h("div", { role: "cell", class: name }, ...inside);
  const shell = { class: "item", role: "row", "aria-rowindex": row + 2, "data-row": row };
  if (!task) return h("div", shell, cell("name soft", "…"));
  return h("div", shell,
    cell("name", h("a", { href: `#/tasks/${task.task}` }, task.task), task.problem && h("span.bad", ` · ${task.problem}`)),
    cell("soft hide", task.modality === "video" ? "clip" : task.modality === "image" ? "picture" : "–"),
    cell("labels soft", task.classes === null ? "–" : `${count(task.classes)} · ${task.labels.slice(0, 6).join(", ")}${task.classes > 6 ? " …" : ""}`),
    cell("hide", task.version === null ? h("span.soft", "none active") : [`v${task.version}`, task.versions > 1 && h("span.soft", ` of ${task.versions}`)]),
    cell("num accuracy", percent(task.accuracy, 1)),
    cell("num hide", percent(task.share, 2)),
    cell(`tier where ${task.residency}`, task.residency),
    cell("num reqs", compact(task.requests.answered + task.requests.failed), h("span.visually-hidden", " requests")),
    cell(`num hide${task.requests.failed ? " bad" : " soft"}`, compact(task.requests.failed)));
}
