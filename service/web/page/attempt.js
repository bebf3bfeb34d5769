// The result beside the training: a picture or the camera, asked of one task as soon as it answers.

import { get } from "./api.js";
import { ask, bars, notes, verdict } from "./answer.js";
import { failure, h } from "./dom.js";
import { correct } from "./feedback.js";
import { Camera, dropZone, hasCamera, input, refused, release } from "./media.js";

const LIVE_MS = 250;

export class Attempt {
  constructor(name) {
    this.name = name;
    this.camera = new Camera();
    this.zone = dropZone((files) => files[0] && this.take(files[0]), { title: "Drop a picture", hint: "one that it has not seen" });
    this.found = h("div.stack.tight");
    this.live = h("button", { hidden: !hasCamera(), onclick: () => this.look() }, "Try the camera");
    this.hint = h("p.note");
    this.node = h("section.stack.tight", { "aria-label": "Result" }, h("h2", "Try"), this.zone.node, h("div.line", this.live), this.hint, this.found);
  }

  /** Something was published: the task may answer now, or otherwise than before. */
  async known() {
    const found = await get("/v1/tasks", [["prefix", this.name], ["limit", 1]]);
    this.task = found.tasks.find((task) => task.task === this.name) ?? null;
    const ready = Boolean(this.task && this.task.version !== null);
    this.zone.zone.disabled = this.live.disabled = !ready;
    this.hint.textContent = ready ? "" : "It answers here as soon as it has learnt something.";
    if (ready && this.one) await this.run();
  }

  async take(file) {
    this.stop();
    release(this.one);
    this.one = await input(file, file.name || "picture.png");
    this.zone.show(this.one);
    await this.run();
  }

  async run() {
    if (!this.task) return;
    try {
      const { results: [result] } = await ask(this.one, [this.name], { kind: this.task.modality });
      const below = h("div");
      this.found.replaceChildren(h("article.answer", h("h3", "Answer", h("span", `v${result.version}`)), verdict(result, this.task), bars(result, this.task), notes(result),
        h("div", h("button.quiet.wrong", { onclick: () => correct(below, this.one, this.task, result) }, "Wrong?")), below));
    } catch (error) { this.found.replaceChildren(failure(error)); }
  }

  /** The camera, again and again, until it is pressed again. */
  async look() {
    if (this.camera.stream) { this.stop(); return; }
    try {
      this.zone.zone.replaceChildren(await this.camera.open());
      this.zone.zone.classList.add("filled");
      this.live.textContent = "Stop the camera";
      while (this.camera.stream) {
        const shot = await this.camera.shot();
        release(this.one);
        this.one = await input(shot, shot.name);
        await this.run();
        await new Promise((done) => setTimeout(done, LIVE_MS));
      }
    } catch (error) { this.found.replaceChildren(failure(refused(error))); this.stop(); }
  }

  stop() {
    if (this.camera.stream) this.zone.show(null);
    this.camera.close();
    this.live.textContent = "Try the camera";
  }

  leave() {
    this.stop();
    release(this.one);
  }
}
