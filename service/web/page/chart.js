// Lines and bars as SVG, for numbers that change: axes from zero, few marks, the last value in words.

import { h, svg } from "./dom.js";

const WIDTH = 480, HEIGHT = 140, LEFT = 44, RIGHT = 8, TOP = 8, BOTTOM = 18;

/** A round number that is not less. */
export function roof(value) {
  if (!(value > 0)) return 1;
  const size = 10 ** Math.floor(Math.log10(value));
  return [1, 2, 4, 6, 8, 10].map((step) => step * size).find((step) => step >= value * 0.999);
}

/** One chart; `draw(series, options)` puts numbers in. Series: {name, values, kind}, gaps where a value is null. */
export function lines(title, { form = String, ends = ["", ""], least = 0 } = {}) {
  const drawing = svg("svg", { role: "img", class: "chart" });
  const legend = h("div.legend");
  const node = h("figure.plot", h("figcaption.spread", h("h3", title), legend), drawing);
  let last = [];
  const draw = (series, { length, most } = {}) => {
    last = [series, { length, most }];
    const size = length ?? Math.max(2, ...series.map(({ values }) => values.length));
    const top = most ?? roof(Math.max(least, ...series.flatMap(({ values }) => values.filter((value) => value !== null))));
    const width = drawing.clientWidth || WIDTH; // as wide as it is shown, so that its words keep their size
    drawing.setAttribute("viewBox", `0 0 ${width} ${HEIGHT}`);
    const x = (i) => LEFT + ((width - LEFT - RIGHT) * i) / Math.max(1, size - 1);
    const y = (value) => TOP + (HEIGHT - TOP - BOTTOM) * (1 - Math.min(1, value / top));
    drawing.replaceChildren(
      ...[0, 0.5, 1].flatMap((share) => [
        svg("line", { x1: LEFT, x2: width - RIGHT, y1: y(top * share), y2: y(top * share), class: "grid" }),
        svg("text", { x: LEFT - 8, y: y(top * share) + 4, "text-anchor": "end" }, form(top * share))]),
      svg("text", { x: LEFT, y: HEIGHT - 3 }, ends[0]), svg("text", { x: width - RIGHT, y: HEIGHT - 3, "text-anchor": "end" }, ends[1]),
      ...series.map(({ values, kind }) => svg("path", { class: `curve ${kind}`, d: path(values, x, y, size) })),
      ...series.flatMap(({ values, kind }) => alone(values).map((i) => svg("circle", { class: `dot ${kind}`, cx: x(size - values.length + i), cy: y(values[i]), r: 2.5 }))));
    const words = series.map(({ name, values }) => `${name} ${values.length && values.at(-1) !== null ? form(values.at(-1)) : "–"}`);
    legend.replaceChildren(...series.map(({ kind }, i) => h("span", { class: `key ${kind}` }, words[i])));
    drawing.setAttribute("aria-label", `${title}: ${words.join(", ")}`);
  };
  draw([]);
  new ResizeObserver(() => draw(...last)).observe(drawing);
  return { node, draw };
}

/** Values stand at the right end, where now is. */
function path(values, x, y, size) {
  let made = "", pen = false;
  values.forEach((value, i) => {
    if (value === null) { pen = false; return; }
    made += `${pen ? "L" : "M"}${x(size - values.length + i).toFixed(1)} ${y(value).toFixed(1)}`;
    pen = true;
  });
  return made;
}

const alone = (values) => values.flatMap((value, i) => (value !== null && (values[i - 1] ?? null) === null && (values[i + 1] ?? null) === null ? [i] : []));

/** A histogram of counts between bounds, as bars with their bound below. */
export function bins(title, note) {
  const place = h("div.bins", { role: "img", "aria-label": `${title}: none yet` });
  const node = h("figure.plot", h("figcaption", h("h3", title), h("p.note", note)), place);
  return {
    node,
    draw(bounds, counts) {
      const most = Math.max(1, ...counts), all = counts.reduce((sum, value) => sum + value, 0);
      place.setAttribute("aria-label", `${title}: ${bounds.map((bound, i) => `${counts[i]} of up to ${bound}`).join(", ")}`);
      place.replaceChildren(...bounds.map((bound, i) => {
        const bar = h("i");
        bar.style.height = `${(100 * counts[i]) / most}%`;
        return h("div.bin", { title: `${counts[i]} of ${all}` }, h("div.shaft", bar), h("span", bound));
      }));
    },
  };
}
