// Pictures and clips on their way in: dropped, pasted, chosen, from the camera; and how they are shown.

import { ROOT } from "./api.js";
import { h, say } from "./dom.js";

const CLIPS = /\.(mp4|m4v|mov|3gp|webm|mkv|avi|ts|mts|m2ts|mpe?g|vob)$/i;

/** A picture or clip: its bytes, its name, how it can be shown, and whether it may be asked as a clip. */
export async function input(blob, name, sample = false) {
  const clip = blob.type.startsWith("video/") || CLIPS.test(name);
  return { blob, name, sample, kinds: clip ? ["video"] : (await moves(blob)) ? ["image", "video"] : ["image"], url: URL.createObjectURL(blob) };
}

export const release = (one) => one && URL.revokeObjectURL(one.url);

/** A GIF may hold more than one picture, a WebP says whether it does: then tasks of both kinds can look at it. */
async function moves(blob) {
  const head = new Uint8Array(await blob.slice(0, 32).arrayBuffer());
  const text = String.fromCharCode(...head);
  return text.startsWith("GIF8") || (text.startsWith("RIFF") && text.slice(8, 16) === "WEBPVP8X" && (head[20] & 2) !== 0);
}

export async function sample(name) {
  const response = await fetch(new URL(`page/${name}`, ROOT));
  return input(await response.blob(), name, true);
}

/** The element that shows it; what the browser cannot show, the server may read all the same. */
export function preview(one) {
  const strange = () => node.replaceWith(h("span.hint", h("b", one.name), "This browser cannot show it. The server may well read it."));
  let node;
  if (one.kinds[0] === "video") {
    node = h("video", { src: one.url, muted: true, loop: true, autoplay: !matchMedia("(prefers-reduced-motion: reduce)").matches, playsinline: true, "aria-label": `The clip ${one.name}` });
    node.muted = true;
    node.addEventListener("loadedmetadata", () => node.classList.toggle("tiny", node.videoWidth < 128));
  } else {
    node = h("img", { src: one.url, alt: `The picture ${one.name}` });
    node.addEventListener("load", () => node.classList.toggle("tiny", node.naturalWidth < 128));
  }
  node.addEventListener("error", strange);
  return node;
}

/** Let files be dropped on a node. */
export function takesDrops(node, files) {
  const over = (on) => node.classList.toggle("over", on);
  node.addEventListener("dragover", (event) => { event.preventDefault(); over(true); });
  node.addEventListener("dragleave", () => over(false));
  node.addEventListener("drop", async (event) => {
    event.preventDefault();
    over(false);
    files(await dropped(event.dataTransfer));
  });
}

const MOST_DROPPED = 5000;

/** The files of a drop, those in dropped folders too. */
async function dropped(transfer) {
  const entries = [...transfer.items].map((item) => item.webkitGetAsEntry?.()).filter(Boolean);
  if (!entries.some((entry) => entry.isDirectory)) return [...transfer.files];
  const found = [];
  const walk = async (entry) => {
    if (found.length >= MOST_DROPPED || entry.name.startsWith(".")) return;
    if (entry.isFile) {
      const file = await new Promise((done, failed) => entry.file(done, failed));
      file.folder = entry.fullPath.split("/").at(-2);
      found.push(file);
      return;
    }
    const reader = entry.createReader();
    for (;;) {
      const part = await new Promise((done, failed) => reader.readEntries(done, failed));
      if (part.length === 0) return;
      for (const one of part) await walk(one);
    }
  };
  for (const entry of entries) await walk(entry);
  return found;
}

/** A drop zone that is a button too; `files` gets what came. */
export function dropZone(files, { title, hint, accept = "image/*,video/*,.mkv,.avi,.ts,.heic,.tiff", multiple = false, short = false }) {
  const picker = h("input", { type: "file", accept, multiple, hidden: true, "aria-hidden": "true", tabindex: -1, onchange: () => { files([...picker.files]); picker.value = ""; } });
  const rest = h("span.hint", h("b", title), h("span", hint));
  const zone = h("button", { class: `drop${short ? " short" : ""}`, onclick: () => picker.click() }, rest);
  takesDrops(zone, files);
  return {
    node: h("div", zone, picker), picker, zone,
    show(one) {
      zone.classList.toggle("filled", Boolean(one));
      zone.replaceChildren(one ? preview(one) : rest);
      zone.setAttribute("aria-label", one ? `${one.name}. Choose another` : `${title} ${hint}`);
    },
  };
}

/** Pasted pictures, for as long as the view is there; returns what ends it. */
export function takesPastes(files) {
  const pasted = (event) => {
    const found = [...(event.clipboardData?.files ?? [])];
    if (found.length) { event.preventDefault(); files(found); }
  };
  addEventListener("paste", pasted);
  return () => removeEventListener("paste", pasted);
}

export const hasCamera = () => Boolean(navigator.mediaDevices?.getUserMedia);

/** The camera's picture, and shots of it as JPEG files. */
export class Camera {
  async open() {
    this.stream = await navigator.mediaDevices.getUserMedia({ video: { facingMode: "environment", width: { ideal: 640 } }, audio: false });
    this.video = h("video", { muted: true, playsinline: true, autoplay: true, "aria-label": "The camera's picture" });
    this.video.srcObject = this.stream;
    await this.video.play();
    return this.video;
  }

  async shot() {
    const { videoWidth: width, videoHeight: height } = this.video;
    const canvas = h("canvas", { width, height });
    canvas.getContext("2d").drawImage(this.video, 0, 0);
    const blob = await new Promise((done) => canvas.toBlob(done, "image/jpeg", 0.9));
    return new File([blob], `camera-${Date.now()}.jpg`, { type: "image/jpeg" });
  }

  close() {
    this.stream?.getTracks().forEach((track) => track.stop());
    this.stream = null;
  }
}

export function refused(error) {
  const text = error.name === "NotAllowedError" ? "The camera was not allowed." : error.name === "NotFoundError" ? "There is no camera." : `The camera does not open: ${error.message}`;
  say(text);
  return new Error(text);
}

const SIDE = 104;

/** A strip of the frames at these seconds, drawn by this browser from the clip where it can show it. */
export function strip(one, seconds) {
  const cells = seconds.map((time) => h("figure", h("canvas", { width: SIDE, height: SIDE, "aria-hidden": "true" }), h("figcaption", time.toFixed(2))));
  const node = h("div.strip", { role: "group", "aria-label": `The ${seconds.length} frames that were looked at, by their second` }, cells);
  draw(one, seconds, cells).then(() => node.classList.add("drawn"), () => node.classList.add("blind"));
  return node;
}

async function draw(one, seconds, cells) {
  const video = h("video", { src: one.url, muted: true, preload: "auto" });
  const event = (name) => new Promise((done, failed) => {
    video.addEventListener(name, done, { once: true });
    video.addEventListener("error", () => failed(new Error("unreadable")), { once: true });
  });
  if (one.kinds[0] === "image") throw new Error("a picture that moves cannot be wound");
  await event("loadeddata");
  for (const [i, time] of seconds.entries()) {
    const sought = event("seeked");
    video.currentTime = Math.min(time + 0.001, Math.max(0, video.duration - 0.001));
    await sought;
    const scale = Math.max(SIDE / video.videoWidth, SIDE / video.videoHeight);
    const [width, height] = [video.videoWidth * scale, video.videoHeight * scale];
    const context = cells[i].firstChild.getContext("2d");
    context.imageSmoothingEnabled = scale < 1;
    context.drawImage(video, (SIDE - width) / 2, (SIDE - height) / 2, width, height);
  }
}
