// A training: one button, then its progress, curves, and what it published.

import { call, get, send } from "./api.js";
import { lines } from "./chart.js";
import { failure, h, percent, plural, say, sized } from "./dom.js";
import { reported } from "./report.js";
import { useThis } from "./use.js";

const EVERY_MS = 500;
const STAGES = { features: "The backbone looks at the examples", head: "A head on its features", adapter: "An adapter within the backbone", publish: "Publishing" };
const METHODS = [["auto", "A head at once, then an adapter if it is better"], ["linear", "A head alone"], ["adaptformer", "AdaptFormer"], ["lora", "LoRA"]];
const LEAST_LABELS = 2, LEAST_EXAMPLES = 2;

export class Training {
  constructor(task) {
    this.task = task;
    this.published = () => {};
    this.seen = 0;
    this.button = h("button.primary.large", { onclick: () => this.start() }, "Teach");
    this.hint = h("p.note");
    this.method = h("select", { "aria-label": "How it is taught" }, METHODS.map(([value, text]) => h("option", { value }, text)));
    this.progress = h("i");
    this.state = h("p", { role: "status" });
    this.bar = h("span.track", { role: "progressbar", "aria-label": "Progress of the training", "aria-valuemin": 0, "aria-valuemax": 100 }, sized(this.progress, 0));
    this.stop = h("button.quiet.danger", { onclick: () => this.cancel() }, "Stop");
    this.loss = lines("Loss", { form: (value) => value.toFixed(2), ends: ["first epoch", "now"] });
    this.accuracy = lines("Held-out accuracy", { form: (value) => percent(value), ends: ["first epoch", "now"] });
    this.made = h("div.stack.tight");
    this.told = h("div");
    this.use = useThis();
    this.running = h("div.stack.tight", { hidden: true }, h("div.spread.tightly", this.state, this.stop), this.bar);
    this.curves = h("div.stack.tight", { hidden: true }, this.accuracy.node, this.loss.node);
    this.node = h("section.stack.tight.training", { "aria-label": "Training" }, h("h2", "Teach"),
      h("div.stack.tight", this.button, this.hint, h("details", h("summary.small", "How"), h("div.narrow", this.method))), this.told, this.running, this.made, this.curves, this.use.node);
  }

  /** What there is to learn from decides whether it can begin. */
  counts(counts) {
    const labels = Object.values(counts).filter((number) => number > 0), few = labels.filter((number) => number < LEAST_EXAMPLES).length;
    this.lacks = labels.length < LEAST_LABELS ? "It takes two labels at least." : few ? `${plural(few, "label needs", "labels need")} two examples at least.` : "";
    this.paint();
  }

  paint() {
    const busy = this.job && ["waiting", "running"].includes(this.job.state);
    this.button.disabled = Boolean(this.lacks) || Boolean(busy);
    this.button.textContent = this.seen && !busy ? "Teach again" : "Teach";
    this.hint.textContent = busy ? "" : this.lacks ?? "";
  }

  async load() {
    const found = await get("/v1/jobs", [["task", this.task], ["limit", 1]]).catch(() => ({ jobs: [] }));
    if (found.jobs[0]) this.show(found.jobs[0]);
  }

  async start() {
    this.told.replaceChildren();
    const json = { method: this.method.value }, path = `/v1/tasks/${this.task}/training`;
    try {
      this.seen = 0;
      const { data } = await call("POST", path, { body: JSON.stringify(json), type: "application/json" });
      this.show(data);
      this.use.show({ method: "POST", path, json, query: [], python: [`training = client.train_task(${JSON.stringify(this.task)}, ${JSON.stringify(json.method)})`, "print(training.id, training.state)"] });
    } catch (error) { this.told.replaceChildren(failure(error)); }
  }

  async cancel() {
    try { await send("DELETE", `/v1/jobs/${this.job.id}`); await this.look(); } catch (error) { this.told.replaceChildren(failure(error)); }
  }

  async look() {
    try { this.show(await get(`/v1/jobs/${this.job.id}`)); } catch (error) {
      this.told.replaceChildren(failure(error));
      this.timer = setTimeout(() => this.look(), 4 * EVERY_MS);
    }
  }

  show(job) {
    clearTimeout(this.timer);
    this.job = job;
    const busy = ["waiting", "running"].includes(job.state);
    this.running.hidden = !busy;
    this.state.textContent = sentence(job);
    this.bar.setAttribute("aria-valuenow", Math.round(100 * job.progress));
    sized(this.progress, job.progress);
    this.told.replaceChildren(job.problem ? failure({ message: job.problem.detail, requestId: null }) : "");
    const { accuracy = [], train_loss: train = [], held_out_loss: held = [] } = job.curves ?? {};
    this.curves.hidden = !(accuracy.length || train.length);
    this.accuracy.draw([{ name: "held out", values: accuracy, kind: "main" }], { most: 1 });
    this.loss.draw([{ name: "training", values: train, kind: "other" }, { name: "held out", values: held, kind: "main" }]);
    if (job.published.length !== this.made.childElementCount || !busy) this.made.replaceChildren(...job.published.map((one) => published(one)), !busy && job.verdict ? h("p.verdict-line", job.verdict) : "");
    if (job.published.length > this.seen) {
      this.seen = job.published.length;
      const last = job.published.at(-1);
      say(`Version ${last.version} by ${last.method}: ${percent(last.accuracy, 1)} on held-out examples`);
      this.published();
    }
    this.paint();
    if (busy) this.timer = setTimeout(() => this.look(), EVERY_MS);
  }

  leave() { clearTimeout(this.timer); }
}

function published(one) {
  return h("div.made",
    h("p.verdict", h("span.word", percent(one.accuracy, 1)), h("span", { class: `tag${one.active ? " on" : ""}` }, one.active ? `v${one.version} active` : `v${one.version} staged`)),
    h("p.note", `right, of ${plural(one.held_out, "held-out example")} · ${one.method}`), reported(one, "Report"));
}

function sentence(job) {
  if (job.state === "waiting") return "It waits for its turn.";
  if (job.state !== "running") return "";
  const epoch = job.epochs ? `, epoch ${job.epoch} of ${job.epochs}` : "";
  const left = job.seconds_left === null ? "" : ` · ${job.seconds_left < 90 ? `${Math.ceil(job.seconds_left)} s` : `${Math.ceil(job.seconds_left / 60)} min`} left`;
  return `${STAGES[job.stage] ?? "It begins"}${epoch}${left}`;
}
