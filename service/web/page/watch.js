// Watch: what the server is doing, from the difference of two looks at /v1/stats.

import { get } from "./api.js";
import { bytes, compact, count, facts, h, ms, section, sized, table } from "./dom.js";
import { bins, lines } from "./chart.js";

const EVERY_MS = 2000;
const LOOKS = 90; // three minutes
const STAGES = ["decode", "queue", "compute"];
const MOST_ROWS = 64; // squares of a batch that are drawn
const TINTS = 8;

export async function view() {
  const board = new Board();
  let timer = 0, over = false;
  const look = async () => {
    try {
      board.add(await get("/v1/stats", [["limit", 50]]));
    } catch (error) { board.lost(error); }
    if (!over) timer = setTimeout(look, EVERY_MS);
  };
  await look();
  return { title: "Watch", node: board.node, leave: () => { over = true; clearTimeout(timer); } };
}

/** Counts between bounds that came between two cumulative histograms. */
export function between(before, after) {
  const counts = after.counts.map((value, i) => value - (before?.counts[i] ?? 0));
  return counts.map((value, i) => value - (counts[i - 1] ?? 0));
}

/** The value that a share `q` of the observations does not pass: linear within its bucket, as Prometheus has it. */
export function quantile(q, bounds, counts) {
  const all = counts.reduce((sum, value) => sum + value, 0);
  if (all <= 0) return null;
  let below = 0, low = 0;
  for (const [i, bound] of bounds.entries()) {
    if (counts[i] > 0 && below + counts[i] >= q * all) return bound === null ? low : low + ((bound - low) * (q * all - below)) / counts[i];
    below += counts[i];
    low = bound ?? low;
  }
  return low;
}

class Board {
  constructor() {
    this.last = null;
    this.history = [];
    const seconds = (value) => (value === 0 ? "0" : ms(1000 * value)), ends = ["3 minutes ago", "now"];
    this.rates = lines("Requests a second", { form: (value) => (value === 0 ? "0" : value < 10 ? value.toFixed(1) : value.toFixed(0)), ends });
    this.total = lines("Time of a request", { form: seconds, ends, least: 0.01 });
    this.stages = STAGES.map((name) => [name, lines(`${name[0].toUpperCase()}${name.slice(1)}`, { form: seconds, ends, least: 0.01 })]);
    this.queue = lines("Rows that wait", { form: (value) => compact(Math.round(value)), ends, least: 4 });
    this.rows = bins("Rows in a batch", "batches of the last two seconds, by how many rows");
    this.adapters = bins("Tasks in a batch", "the same batches, by how many different adapters");
    this.state = h("p.lead", { role: "status" });
    this.batch = h("div.batch");
    this.story = h("p.soft");
    this.now = h("div");
    this.tasks = h("div");
    this.node = h("div.stack.wide",
      h("div", h("h1", { tabindex: -1 }, "Watch"), this.state), this.now,
      section("The batch", this.batch, this.story),
      h("section.plots", this.rates.node, this.total.node, ...this.stages.map(([, chart]) => chart.node), this.queue.node, this.rows.node, this.adapters.node),
      section("Tasks", this.tasks));
  }

  lost(error) {
    this.state.textContent = `No numbers now: ${error.message}`;
    this.last = null;
    this.push({});
  }

  push(point) {
    this.history.push(point);
    if (this.history.length > LOOKS) this.history.shift();
  }

  add(now) {
    const before = this.last;
    this.last = now;
    if (before && now.requests.total >= before.requests.total) this.push(difference(before, now)); // else it was started anew
    else if (before) this.push({});
    this.paint(now, this.history.at(-1) ?? {});
  }

  paint(now, point) {
    const series = (read) => this.history.map((one) => read(one) ?? null), length = LOOKS;
    this.state.textContent = now.ready ? "The device answers. Numbers are of the last two seconds." : "The device does not answer.";
    this.rates.draw([{ name: "all", values: series((one) => one.rate), kind: "main" }, { name: "errors", values: series((one) => one.errors), kind: "bad" }], { length });
    const times = (stage) => [{ name: "p50", values: series((one) => one.times?.[stage]?.[0]), kind: "main" }, { name: "p99", values: series((one) => one.times?.[stage]?.[1]), kind: "other" }];
    this.total.draw(times("total"), { length });
    for (const [name, chart] of this.stages) chart.draw(times(name), { length });
    this.queue.draw([{ name: "rows", values: series((one) => one.queue), kind: "main" }], { length });
    if (point.rows) this.rows.draw(...point.rows);
    if (point.adapters) this.adapters.draw(...point.adapters);
    const slots = Object.entries(now.slots).map(([state, number]) => `${count(number)} ${state}`).join(", ");
    const told = [["Requests", count(now.requests.total)], ["Waiting", `${count(now.queue_rows)} rows`], ["Slots on the device", slots || "–"],
      ["Adapters in memory", bytes(now.host_cache_bytes)], now.device_memory_bytes > 0 && ["Device memory", bytes(now.device_memory_bytes)],
      ["Loads", Object.entries(now.loads).map(([tier, number]) => `${compact(number)} ${tier}`).join(", ") || "0"]];
    this.now.replaceChildren(facts(told));
    this.drawBatch(point);
    this.drawTasks(point);
  }

  /** The product's own story: one batch, each square a row, each tint an adapter. */
  drawBatch(point) {
    const rows = Math.max(0, Math.round(point.meanRows ?? 0)), adapters = Math.min(rows, Math.max(1, Math.round(point.meanAdapters ?? 1)));
    const drawn = Math.min(rows, MOST_ROWS);
    this.batch.classList.toggle("idle", drawn === 0);
    this.batch.setAttribute("aria-hidden", "true");
    this.batch.replaceChildren(...Array.from({ length: Math.max(drawn, 1) }, (_, i) =>
      h("i", { class: drawn ? `t${Math.floor((i * adapters) / drawn) % TINTS}` : "" })));
    this.story.textContent = drawn
      ? `The usual batch of the last two seconds: ${point.meanRows.toFixed(1)} rows of ${point.meanAdapters.toFixed(1)} tasks through one backbone. There were ${count(point.batches)} of them.`
      : "No batch in the last two seconds. Try something, and look again.";
  }

  drawTasks(point) {
    const busy = (point.tasks ?? []).slice(0, 12);
    if (!busy.length) { this.tasks.replaceChildren(h("p.soft", "Nobody was asked in the last two seconds.")); return; }
    const most = Math.max(...busy.map((task) => task.rate)), slowest = Math.max(...busy.map((task) => task.mean));
    const named = (task) => (task.startsWith("_") ? h("span.soft", { _unknown: "names that do not exist", _other: "all others" }[task] ?? task) : h("a", { href: `#/tasks/${task}` }, task));
    const bar = (share, kind = "") => h("span", { class: `track ${kind}`, "aria-hidden": "true" }, sized(h("i"), share));
    const shown = table("The busiest tasks", ["Busiest", "Requests a second", "Mean time", ">Errors"], busy.map((task) => {
      const slow = task.mean === slowest && busy.length > 1;
      return h(slow ? "tr.slowest" : "tr", h("th", { scope: "row" }, named(task.task), slow && h("span.tag", "slowest")),
        h("td", task.rate.toFixed(1), bar(task.rate / most)), h("td", ms(1000 * task.mean), bar(task.mean / (slowest || 1), "time")),
        h(task.errors ? "td.num.bad" : "td.num", count(task.errors)));
    }));
    shown.classList.add("busy");
    this.tasks.replaceChildren(shown);
  }
}

/** What happened between two looks. */
function difference(before, now) {
  const seconds = Math.max(0.1, now.time - before.time);
  const failed = (stats) => Object.entries(stats.requests.by_code).reduce((sum, [code, number]) => sum + (/^[45]/.test(code) ? number : 0), 0);
  const times = {};
  for (const [stage, after] of Object.entries(now.stages)) {
    const counts = between(before.stages[stage], after);
    times[stage] = [quantile(0.5, after.bounds, counts), quantile(0.99, after.bounds, counts)];
  }
  const parts = (name) => [named(now.batch[name].bounds), between(before.batch[name], now.batch[name])];
  const rows = parts("rows"), adapters = parts("adapters"), batches = rows[1].reduce((sum, value) => sum + value, 0);
  const mean = (name) => (batches ? (now.batch[name].total - before.batch[name].total) / batches : null);
  const old = new Map(before.tasks.map((task) => [task.task, task]));
  const tasks = now.tasks.map((task) => {
    const was = old.get(task.task) ?? { requests: 0, errors: 0, seconds: 0 }, asked = task.requests - was.requests;
    return { task: task.task, rate: asked / seconds, errors: task.errors - was.errors, mean: asked ? (task.seconds - was.seconds) / asked : 0 };
  }).filter((task) => task.rate > 0).sort((a, b) => b.rate - a.rate);
  return {
    rate: (now.requests.total - before.requests.total) / seconds, errors: (failed(now) - failed(before)) / seconds, times, queue: now.queue_rows, batches,
    meanRows: mean("rows"), meanAdapters: mean("adapters"), tasks, rows, adapters,
  };
}

/** Upper bounds as words. */
const named = (bounds) => bounds.map((bound, i) => (bound === null ? `> ${bounds[i - 1]}` : bound === 1 || bound === 0 ? `${bound}` : `≤ ${bound}`));
