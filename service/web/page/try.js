// Try: one picture or clip, many tasks at once.

import { caller, get, mayTeach } from "./api.js";
import { ask, bars, notes, stages, verdict } from "./answer.js";
import { compare } from "./compare.js";
import { failure, h, heading, plural, say } from "./dom.js";
import { correct } from "./feedback.js";
import { Camera, dropZone, hasCamera, input, refused, release, sample, strip, takesPastes } from "./media.js";
import { useThis } from "./use.js";

const CHOSEN = 12; // tasks of a kind that are asked at first
const SAMPLES = [
  "digits-9.png", "digit-collage-0-3-7.png", "animal-or-vehicle-animal.png", "moving-digit-left.mp4",
];

/** What was tried last, so that it is there when one comes back. */
const kept = { one: null, tasks: new Map(), chosen: new Set(), total: 0 };

export async function view(only) {
  await learn(only);
  const results = h("div.stack"), side = h("div.stack.tight"), tellings = h("div");
  const use = useThis(), chips = h("div.stack.tight");
  const zone = dropZone((files) => files[0] && take(files[0]), { title: "Drop a picture or a clip", hint: "or choose a file, or paste one" });
  const camera = new Camera();
  let running = null;

  const take = async (file) => set(await input(file, file.name || "picture.png"));
  function set(one) {
    if (kept.one && kept.one !== one) release(kept.one);
    kept.one = one;
    zone.show(one);
    for (const button of samples.children) button.setAttribute("aria-pressed", one.sample && button.dataset.name === one.name);
    run();
  }

  async function run() {
    running?.abort();
    const mine = (running = new AbortController()), one = kept.one;
    if (!one) return;
    const groups = one.kinds.map((kind) => ({ kind, names: chosen(kind) })).filter((group) => group.names.length);
    tellings.replaceChildren();
    for (const chip of chips.querySelectorAll(".chip")) chip.classList.toggle("aside", !one.kinds.includes(chip.dataset.kind));
    if (groups.length === 0) {
      use.show(null);
      results.replaceChildren(h("p.empty", nobody(one)));
      return;
    }
    results.replaceChildren(h("div.answers", groups.flatMap(({ names }) => names.map(waiting))));
    const answers = [], failures = [];
    for (const { kind, names } of groups) {
      try { answers.push(await ask(one, names, { kind, signal: mine.signal, sampled: kind === "video" })); } catch (error) {
        if (error.name === "AbortError") return;
        if (!(groups.length > 1 && error.kind === "wrong-modality")) failures.push(error);
      }
    }
    if (mine !== running) return;
    results.replaceChildren(
      ...failures.map(failure),
      h("div.answers", answers.flatMap((found) => found.results).map((result) => block(result, one))));
    if (answers.length) {
      tellings.replaceChildren(stages(answers[0]));
      use.show(theCall(one, answers[0]));
      say(answers.flatMap((found) => found.results).map((result) => `${result.task}: ${result.predictions[0]?.label ?? "no label"}`).join("; "));
    } else use.show(null);
  }

  function block(result, one) {
    const task = kept.tasks.get(result.task), below = h("div"), beside = h("div");
    return h("article.answer", { "data-task": result.task },
      h("h3", h("a", { href: `#/tasks/${result.task}` }, result.task), h("span", `v${result.version}`)),
      verdict(result, task), result.sampled?.length > 0 && strip(one, result.sampled), bars(result, task), notes(result),
      h("div.line",
        task?.versions > 1 && h("button.quiet.compare", { onclick: () => compare(beside, one, task) }, "Compare versions"),
        mayTeach() && task && h("button.quiet.wrong", { onclick: () => correct(below, one, task, result) }, "Wrong?")),
      below, beside);
  }

  const samples = h("div.samples", { role: "group", "aria-label": "Samples" }, SAMPLES.map(sampleButton));
  function sampleButton(name) {
    const source = new URL(name, import.meta.url).href;
    return h("button", { "data-name": name, "aria-label": `Sample ${name}`, title: name, onclick: async () => set(await sample(name)) },
      name.endsWith(".mp4") ? h("video", { src: source, muted: true, preload: "metadata", tabindex: -1 }) : h("img", { src: source, alt: "" }));
  }

  const shoot = h("button", { hidden: !hasCamera() }, "Camera");
  shoot.addEventListener("click", async () => {
    try {
      if (camera.stream) {
        await take(await camera.shot());
        camera.close();
        shoot.textContent = "Camera";
        return;
      }
      zone.zone.replaceChildren(await camera.open());
      zone.zone.classList.add("filled");
      shoot.textContent = "Take the picture";
    } catch (error) { tellings.replaceChildren(failure(refused(error))); }
  });

  side.append(zone.node, h("div.line", h("button", { onclick: () => zone.picker.click() }, "Choose a file"), shoot), samples, tellings);
  picker(chips, run);
  const unpaste = takesPastes((files) => take(files[0]));
  if (kept.one) zone.show(kept.one);
  const title = only ? `Try ${only}` : "Drop a picture. Every task answers.";
  return {
    title: "Try",
    node: h("div.stack.wide",
      heading(title, kept.total
        ? "It is decoded once. Each task puts its own small adapter on one frozen backbone, and all of them share a batch."
        : "There are no tasks yet. Teach one from pictures, or upload an adapter."),
      h("div.split", h("div.stage", side), h("div.stack", chips, results, use.node))),
    shown: () => { if (kept.one) run(); else results.replaceChildren(h("p.empty", "Answers appear here, with the time that each stage took. Nothing leaves this server.")); },
    leave: () => { unpaste(); running?.abort(); camera.close(); },
  };
}

/** Which tasks there are: the first page of them, and whoever was named. */
async function learn(only) {
  const page = await get("/v1/tasks");
  kept.total = page.count;
  const known = new Map(page.tasks.map((task) => [task.task, task]));
  for (const name of kept.chosen) {
    const mine = caller.tasks === null || caller.tasks.includes(name); // the key may be another one by now
    const task = known.get(name) ?? (mine ? await get(`/v1/tasks/${name}`).catch(() => null) : null);
    if (task) known.set(name, task); else kept.chosen.delete(name);
  }
  if (only && !known.has(only)) known.set(only, await get(`/v1/tasks/${only}`));
  kept.tasks = known;
  if (only) kept.chosen = new Set([only]);
  else if (kept.chosen.size === 0) {
    for (const kind of ["image", "video"]) {
      const fit = page.tasks.filter((task) => task.modality === kind && task.version !== null && !task.problem);
      for (const task of fit.slice(0, CHOSEN)) kept.chosen.add(task.task);
    }
  }
}

const chosen = (kind) => [...kept.chosen].filter((name) => kept.tasks.get(name)?.modality === kind);

function nobody(one) {
  const kind = one.kinds[0] === "video" ? "clips" : "pictures";
  return kept.total ? `None of the chosen tasks looks at ${kind}. Choose one above.` : "There is no task to ask yet.";
}

function waiting(name) {
  return h("article.answer.waiting", { "aria-busy": "true" }, h("h3", name), h("p.verdict.soft", "…"));
}

/** The tasks that are asked, as chips, and a search for more of them where there are many. */
function picker(place, run) {
  const shown = [...new Set([...kept.chosen, ...[...kept.tasks.keys()].slice(0, CHOSEN)])];
  const chip = (name) => h("label.chip", { "data-kind": kept.tasks.get(name)?.modality }, h("input", {
    type: "checkbox", value: name, checked: kept.chosen.has(name),
    onchange: (event) => { if (event.target.checked) kept.chosen.add(name); else kept.chosen.delete(name); run(); },
  }), name);
  const list = h("div.chips", { role: "group", "aria-label": "Tasks to ask" }, shown.map(chip));
  place.replaceChildren(list);
  if (kept.total <= shown.length) return;
  const options = h("datalist", { id: "more-tasks" });
  const search = h("input", { type: "search", list: "more-tasks", placeholder: `Add one of ${plural(kept.total, "task")}`, "aria-label": "Add a task by its name", autocomplete: "off" });
  search.addEventListener("input", async () => {
    const found = await get("/v1/tasks", [["prefix", search.value], ["limit", 10]]).catch(() => ({ tasks: [] }));
    options.replaceChildren(...found.tasks.map((task) => h("option", { value: task.task })));
    const exact = found.tasks.find((task) => task.task === search.value);
    if (exact && !kept.chosen.has(exact.task)) {
      kept.tasks.set(exact.task, exact);
      kept.chosen.add(exact.task);
      search.value = "";
      list.append(chip(exact.task));
      run();
    }
  });
  place.append(h("div.field.more", search, options));
}

function theCall(one, found) {
  const names = found.query.filter(([name]) => name === "task").map(([, value]) => value);
  const print = 'print(answer.task, answer.best.label, f"{answer.best.score:.2f}")';
  const single = names.length === 1;
  return {
    method: "POST", file: { name: one.name, sample: one.sample },
    path: single ? `/v1/tasks/${names[0]}/predict` : "/v1/predict",
    query: found.query.filter(([name]) => !(single && name === "task")),
    python: single
      ? [`answer = client.predict(FILE, task=${JSON.stringify(names[0])})`, print]
      : [`for answer in client.predict_many(FILE, tasks=${JSON.stringify(names)}):`, `    ${print}`],
  };
}
