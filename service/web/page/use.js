// Use this: what was just done, as curl, Python and JavaScript. A key is never in it: it is taken from the environment.

import { address, hasKey, ROOT } from "./api.js";
import { h, say } from "./dom.js";

const shell = (text) => `'${text.replaceAll("'", `'\\''`)}'`;
const literal = (text) => JSON.stringify(text);
const KEY = "ADAPTSERVE_API_KEY";

/**
 * A call: `method`, `path`, `query` as pairs, and what is sent: `file` {name, sample} or `json`; `python` are the
 * lines within `with Client(...)`, with FILE where the file's name or bytes stand.
 */
export function snippets(call) {
  return { curl: curl(call), Python: python(call), JavaScript: javascript(call) };
}

const sampleUrl = (file) => new URL(`page/${file.name}`, ROOT).href;

function curl({ method, path, query, file, json }) {
  const url = shell(address(path, query).href);
  const key = hasKey() ? ` -H "Authorization: Bearer $${KEY}"` : "";
  const end = `${key} \\\n  ${url}`;
  if (file?.sample) return `curl -s ${shell(sampleUrl(file))} |\n  curl --data-binary @-${end}`;
  if (file && method === "PUT") return `curl -T ${shell(safe(file.name))}${end}`;
  if (file) return `curl --data-binary @${shell(safe(file.name))}${end}`;
  if (json) return `curl --json ${shell(JSON.stringify(json))}${end}`;
  return `curl${method === "GET" ? "" : ` -X ${method}`}${key} ${url}`;
}

/** A name that neither curl nor a shell takes for something else. */
const safe = (name) => (/^[-@.<]/.test(name) ? `./${name}` : name);

function python({ file, python: lines }) {
  const head = [file?.sample && "import httpx", "from adaptserve_client import Client", ""].filter((line) => line !== undefined && line !== false);
  const key = hasKey() ? [`# the key is read from ${KEY}`] : [];
  const fetched = file?.sample ? [`picture = httpx.get(${literal(sampleUrl(file))}).content`] : [];
  const body = lines.map((line) => `    ${line.replaceAll("FILE", file?.sample ? "picture" : literal(file?.name ?? ""))}`);
  return [...head, ...key, ...fetched, `with Client(${literal(ROOT.href.replace(/\/$/, ""))}) as client:`, ...body].join("\n");
}

function javascript({ method, path, query, file, json }) {
  const options = [], head = [];
  if (method !== "GET") options.push(`  method: ${literal(method)},`);
  if (hasKey()) options.push(`  headers: { Authorization: \`Bearer \${process.env.${KEY}}\`${json ? ', "Content-Type": "application/json"' : ""} },`);
  else if (json) options.push('  headers: { "Content-Type": "application/json" },');
  if (file?.sample) head.push(`const body = await (await fetch(${literal(sampleUrl(file))})).blob();`, "");
  else if (file) head.push('import { readFile } from "node:fs/promises";', "", `const body = await readFile(${literal(file.name)});`);
  if (file) options.push("  body,");
  if (json) options.push(`  body: JSON.stringify(${JSON.stringify(json)}),`);
  const given = options.length ? `, {\n${options.join("\n")}\n}` : "";
  return [...head, `const response = await fetch(${literal(address(path, query).href)}${given});`, "console.log(await response.json());"].join("\n");
}

let language = "curl"; // the one that was looked at last

/** The section; `show(call)` puts another call in. */
export function useThis() {
  const pre = h("pre", { tabindex: 0, "aria-label": "Code" });
  const copy = h("button", { class: "copy" }, "Copy");
  const tabs = h("div.tabs", { role: "tablist", "aria-label": "Language" });
  const panel = h("div.code", { role: "tabpanel", id: "use-code" }, pre, copy);
  const node = h("section.use.stack.tight", { hidden: true }, h("div.spread", h("h2", "Use this"), tabs), panel);
  let texts = {};
  copy.addEventListener("click", async () => {
    try { await navigator.clipboard.writeText(pre.textContent); } catch {
      const range = document.createRange();
      range.selectNodeContents(pre);
      getSelection().removeAllRanges();
      getSelection().addRange(range);
      document.execCommand("copy");
    }
    copy.textContent = "Copied";
    say(`${language} copied`);
    setTimeout(() => { copy.textContent = "Copy"; }, 1500);
  });
  const paint = () => {
    pre.textContent = texts[language];
    for (const tab of tabs.children) {
      const on = tab.textContent === language;
      tab.setAttribute("aria-selected", on);
      tab.tabIndex = on ? 0 : -1;
    }
  };
  tabs.addEventListener("keydown", (event) => {
    const step = { ArrowRight: 1, ArrowLeft: -1 }[event.key];
    if (!step) return;
    const all = [...tabs.children], next = all[(all.findIndex((tab) => tab.textContent === language) + step + all.length) % all.length];
    next.click();
    next.focus();
  });
  return {
    node,
    show(call) {
      node.hidden = !call;
      if (!call) return;
      texts = snippets(call);
      tabs.replaceChildren(...Object.keys(texts).map((name) =>
        h("button", { role: "tab", "aria-controls": "use-code", onclick: () => { language = name; paint(); } }, name)));
      paint();
    },
  };
}
