// The server's HTTP API: one function for calls, one for uploads with progress, and who the caller is.

/** Where the server's addresses begin, also behind a proxy that puts a path before them. */
export const ROOT = new URL("../", import.meta.url);

let secret = ""; // in this page's memory alone: gone with a reload, and never in an address

/** Whether keys are needed, and what this one may do; null until asked. */
export const caller = { required: false, name: null, may: ["predict", "admin"], tasks: null };

export class Failure extends Error {
  constructor(status, problem) {
    super(problem.detail ?? `the server answered ${status}`);
    Object.assign(this, { status, problem, kind: (problem.type ?? "").split(":").pop(), requestId: problem.request_id });
  }
}

export const hasKey = () => secret !== "";
export const may = (scope) => caller.may.includes(scope);
/** What tells of all tasks at once is not for a key of some. */
export const mayWatch = () => may("admin") && caller.tasks === null;
/** Putting adapters and examples: the scope upload where the server has it. */
export const mayTeach = () => may("upload") || may("admin");

/** The address of a call, `/v1/…`; one that the server gave is whole already, and is a URL. */
export function address(path, query = []) {
  const url = path instanceof URL ? path : new URL(path.replace(/^\//, ""), ROOT);
  for (const [name, value] of query) if (value !== null && value !== undefined) url.searchParams.append(name, value);
  return url;
}

const headers = () => (secret ? { Authorization: `Bearer ${secret}` } : {});

async function document_(response) {
  const text = await response.text();
  try { return text ? JSON.parse(text) : null; } catch { return { detail: text.slice(0, 300) }; }
}

async function answered(method, path, { query, body, type, signal } = {}) {
  const began = performance.now();
  let response;
  try {
    response = await fetch(address(path, query), {
      method, body, signal, headers: { ...headers(), ...(type ? { "Content-Type": type } : {}) }, cache: "no-store",
    });
  } catch (error) {
    if (error.name === "AbortError") throw error;
    throw new Failure(0, { detail: "The server does not answer. Is it still running?" });
  }
  if (!response.ok) throw new Failure(response.status, (await document_(response)) ?? {});
  return { response, began };
}

/** A call whose answer is JSON: the data, the stages in ms that the server tells, and ms as seen from here. */
export async function call(method, path, options) {
  const { response, began } = await answered(method, path, options);
  const data = await document_(response);
  return { data, status: response.status, stages: stagesOf(response), took: performance.now() - began };
}

export const get = async (path, query, signal) => (await call("GET", path, { query, signal })).data;
/** A call that changes something. */
export async function send(method, path, body) {
  const { data } = await call(method, path, { body: body && JSON.stringify(body), type: body && "application/json" });
  dispatchEvent(new Event("changed"));
  return data;
}
export const fetchBlob = async (path) => (await answered("GET", path)).response.blob();
export const fetchText = async (path) => (await answered("GET", path)).response.text();

/** An address that the server gave in an answer. */
export const given = (path) => new URL(path, ROOT.origin);

/** A source for an image element: the address itself, or with a key, which an element cannot send, the bytes. */
export async function picture(path) {
  if (!secret) return given(path).href;
  const blob = await fetchBlob(given(path));
  return new Promise((done, failed) => {
    const reader = new FileReader();
    reader.onload = () => done(reader.result);
    reader.onerror = () => failed(reader.error);
    reader.readAsDataURL(blob);
  });
}

function stagesOf(response) {
  const found = {};
  for (const part of (response.headers.get("Server-Timing") ?? "").split(",")) {
    const match = /^\s*([\w-]+);dur=([\d.]+)/.exec(part);
    if (match) found[match[1]] = Number(match[2]);
  }
  return found;
}

/** A body with progress, 0 to 1, as it leaves; fetch cannot tell. */
export function upload(method, path, { query, body, progress }) {
  return new Promise((resolve, reject) => {
    const request = new XMLHttpRequest();
    request.open(method, address(path, query));
    for (const [name, value] of Object.entries(headers())) request.setRequestHeader(name, value);
    request.upload.onprogress = (event) => event.lengthComputable && progress(event.loaded / event.total);
    request.onerror = () => reject(new Failure(0, { detail: "The connection broke before the server had answered." }));
    request.onload = () => {
      let data = {};
      try { data = JSON.parse(request.responseText); } catch { data = { detail: request.responseText.slice(0, 300) }; }
      if (request.status >= 400) reject(new Failure(request.status, data));
      else {
        dispatchEvent(new Event("changed"));
        resolve({ data, status: request.status });
      }
    };
    request.send(body);
  });
}

/** Ask who the caller is; with a new key only once the server has said that it knows it. Raises Failure. */
export async function identify(key = secret) {
  const before = secret;
  secret = key;
  try { Object.assign(caller, await get("/v1/key")); } catch (error) { secret = before; throw error; }
}
