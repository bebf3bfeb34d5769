// Boxes of labelled examples: dropped, chosen, or held from the camera, and kept by the server.

import { call, get, picture, send, upload } from "./api.js";
import { count, failure, h, plural, say, sized, twice } from "./dom.js";
import { Camera, dropZone, hasCamera, refused, takesDrops } from "./media.js";

const SHOWN = 12; // thumbnails of a box
const TOGETHER = 24, TOGETHER_BYTES = 24e6; // files of one call
const SHOT_MS = 140;
const ARCHIVE = /\.(zip|tar|tgz|tar\.gz)$/i;

export class Boxes {
  constructor(task) {
    this.task = task;
    this.path = `/v1/tasks/${task}/examples`;
    this.counts = {};
    this.changed = () => {};
    this.camera = new Camera();
    this.list = h("div.boxes");
    this.told = h("div");
    this.total = h("p.note", { role: "status" });
    const all = dropZone((files) => this.folders(files), { title: "Drop folders", hint: "one for each label; or a zip of them", accept: ".zip,.tar,image/*,video/*", multiple: true, short: true });
    const more = h("button", { onclick: () => this.box("").focus() }, "Add a label");
    this.node = h("section.stack.tight", { "aria-label": "Examples" }, h("div.spread", h("h2", "Examples"), this.total), this.told, this.list, h("div.line", more), all.node);
  }

  async load() {
    const found = await get(this.path, [["limit", 1]]).catch((error) => { if (error.status === 404) return { counts: {} }; throw error; });
    this.counts = found.counts;
    this.list.replaceChildren();
    const labels = Object.keys(found.counts);
    for (const label of labels) {
      const box = this.box(label);
      const part = await get(this.path, [["label", label], ["limit", SHOWN]]);
      box.thumbnails(part.examples);
    }
    while (this.list.childElementCount < 2) this.box("");
    this.toldCounts();
  }

  toldCounts() {
    const labels = Object.keys(this.counts).length;
    const all = Object.values(this.counts).reduce((sum, value) => sum + value, 0);
    this.total.textContent = all ? `${plural(all, "example")} of ${plural(labels, "label")}` : "";
    for (const node of this.list.children) node.box.told(this.counts[node.box.label] ?? 0);
    this.changed();
  }

  box(label) {
    const box = new Box(this, label);
    this.list.append(box.node);
    return box;
  }

  of(label) {
    return [...this.list.children].map((node) => node.box).find((box) => box.label === label) ?? this.empty(label) ?? this.box(label);
  }

  empty(label) {
    const free = [...this.list.children].map((node) => node.box).find((box) => !box.label);
    free?.name(label);
    return free;
  }

  /** Files with the folder that each was in; an archive goes as it is. */
  async folders(files) {
    for (const [label, part] of Map.groupBy(files, folder)) {
      const archive = part.find((file) => ARCHIVE.test(file.name));
      if (archive) await this.archive(archive);
      else if (!label) this.told.replaceChildren(failure(new Error("These files are in no folder: drop them into the box of a label, or drop folders named as the labels.")));
      else await this.of(label).add(part);
    }
  }

  async archive(file) {
    try {
      const { data } = await call("POST", this.path, { body: file, type: "application/octet-stream" });
      this.took(data);
      await this.load();
    } catch (error) { this.told.replaceChildren(failure(error)); }
  }

  /** What the server says it took. */
  took(answer) {
    this.counts = { ...this.counts, ...answer.counts };
    const words = [answer.duplicates && `${plural(answer.duplicates, "was", "were")} there before`, answer.moved && `${count(answer.moved)} moved here from another label`].filter(Boolean).join(", ");
    this.told.replaceChildren(
      words ? h("p.note", `Of these files ${words}.`) : "",
      answer.rejected?.length ? h("details.failure", h("summary", `${plural(answer.rejected.length, "file")} could not be taken`),
        h("ul", answer.rejected.slice(0, 20).map(({ name, problem }) => h("li.small", h("code", name), " ", problem.detail)))) : "");
    this.toldCounts();
  }

  leave() { this.camera.close(); }
}

const folder = (file) => file.folder ?? file.webkitRelativePath?.split("/").at(-2) ?? "";

/** The examples of one label. */
class Box {
  constructor(boxes, label) {
    this.boxes = boxes;
    this.label = label;
    this.head = h("div.spread");
    this.pictures = h("div.thumbs");
    this.progress = h("i");
    this.bar = h("span.track", { hidden: true, "aria-hidden": "true" }, sized(this.progress, 0));
    this.error = h("div");
    this.live = h("div.live", { hidden: true });
    const picker = h("input", { type: "file", multiple: true, accept: "image/*,video/*", hidden: true, tabindex: -1, onchange: () => { this.add([...picker.files]); picker.value = ""; } });
    this.hold = h("button.hold", { hidden: !hasCamera() }, "Hold to record");
    this.holding();
    this.actions = h("div.line", h("button", { onclick: () => this.label ? picker.click() : this.missing() }, "Add pictures"), this.hold, picker);
    this.node = h("div.box", { role: "group" }, this.head, this.live, this.pictures, this.bar, this.actions, this.error);
    this.node.box = this;
    takesDrops(this.node, (files) => this.add(files));
    this.name(label);
  }

  name(label) {
    this.label = label;
    this.number = h("span.soft");
    if (label) {
      this.head.replaceChildren(h("h3", label), h("span.line", this.number, twice("Remove", `Remove all of “${label}”?`, () => this.remove())));
      this.node?.setAttribute("aria-label", `Examples of ${label}`);
      return;
    }
    this.input = h("input", { type: "text", placeholder: "Label", "aria-label": "The label of this box", maxlength: 256, autocomplete: "off" });
    const done = () => this.input.value.trim() && !this.label && this.name(this.input.value.trim());
    this.input.addEventListener("change", done);
    this.input.addEventListener("keydown", (event) => event.key === "Enter" && done());
    this.head.replaceChildren(this.input);
  }

  focus() { this.input?.focus(); }
  told(number) { this.number.textContent = number ? count(number) : ""; }

  missing() {
    this.error.replaceChildren(failure(new Error("Name the label first.")));
    this.focus();
  }

  async add(files) {
    if (!files.length) return;
    if (!this.label) { this.missing(); return; }
    this.error.replaceChildren();
    this.bar.hidden = false;
    let sent = 0;
    try {
      for (const part of portions(files)) {
        const form = new FormData();
        for (const file of part) form.append("file", file, file.name);
        const { data } = await upload("POST", this.boxes.path, { query: [["label", this.label]], body: form, progress: (share) => sized(this.progress, (sent + share * part.length) / files.length) });
        sent += part.length;
        for (const file of part.slice(-SHOWN)) this.local(file);
        this.boxes.took(data);
      }
      say(`${this.label}: ${count(this.boxes.counts[this.label])} examples`);
    } catch (error) {
      this.error.replaceChildren(failure(error));
    }
    this.bar.hidden = true;
    this.thumbnails((await get(this.boxes.path, [["label", this.label], ["limit", SHOWN]]).catch(() => ({ examples: [] }))).examples);
  }

  /** At once, before the server's own thumbnail is there. */
  local(file) {
    const url = URL.createObjectURL(file);
    if (file.type.startsWith("image/")) this.pictures.append(h("span.thumb", h("img", { src: url, alt: "", onload: () => URL.revokeObjectURL(url) })));
  }

  thumbnails(examples) {
    this.pictures.replaceChildren(...examples.map((one) => {
      const image = h("img", { alt: "" });
      picture(one.thumbnail).then((source) => { image.src = source; }, () => image.classList.add("none"));
      return h("button.thumb", { title: "Remove", "aria-label": `Remove this example of ${this.label}`, onclick: (event) => this.drop(one, event.currentTarget) }, image);
    }));
  }

  async drop(one, node) {
    try {
      await send("DELETE", `${this.boxes.path}/${one.digest}`);
      (node.nextElementSibling ?? node.previousElementSibling)?.focus();
      node.remove();
      this.boxes.counts[this.label] -= 1;
      this.boxes.toldCounts();
    } catch (error) { this.error.replaceChildren(failure(error)); }
  }

  async remove() {
    try {
      await call("DELETE", this.boxes.path, { query: [["label", this.label]] });
      delete this.boxes.counts[this.label];
      this.node.remove();
      this.boxes.toldCounts();
    } catch (error) { this.error.replaceChildren(failure(error)); }
  }

  /** As long as the button is held, by hand or by key, the camera gives a picture every moment. */
  holding() {
    let shots = null;
    const start = async (event) => {
      if (event.type === "keydown" && (event.repeat || ![" ", "Enter"].includes(event.key))) return;
      event.preventDefault();
      if (!this.label) { this.missing(); return; }
      if (shots) return;
      shots = [];
      const mine = shots, camera = this.boxes.camera;
      try {
        if (!camera.stream) await camera.open();
        this.live.replaceChildren(camera.video);
        this.live.hidden = false;
        this.hold.classList.add("on");
        while (shots === mine) {
          mine.push(await camera.shot());
          this.hold.textContent = `${mine.length} …`;
          await new Promise((done) => setTimeout(done, SHOT_MS));
        }
      } catch (error) { this.error.replaceChildren(failure(refused(error))); }
      this.hold.classList.remove("on");
      this.hold.textContent = "Hold to record";
      this.live.hidden = true;
      await this.add(mine);
    };
    const stop = () => { shots = null; };
    for (const kind of ["pointerdown", "keydown"]) this.hold.addEventListener(kind, start);
    for (const kind of ["pointerup", "pointercancel", "pointerleave", "keyup", "blur"]) this.hold.addEventListener(kind, stop);
  }
}

/** Files in portions that a call can carry. */
function* portions(files) {
  let part = [], size = 0;
  for (const file of files) {
    if (part.length && (part.length >= TOGETHER || size + file.size > TOGETHER_BYTES)) {
      yield part;
      [part, size] = [[], 0];
    }
    part.push(file);
    size += file.size;
  }
  if (part.length) yield part;
}
