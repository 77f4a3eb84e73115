"use strict";

// Two runs, chosen in two lists: figures side by side, their paired difference, and their curves in the same panels.
const data = JSON.parse(document.getElementById("data").textContent);
const lists = [document.getElementById("a"), document.getElementById("b")];
const output = document.getElementById("comparison");
const SVG = "http://www.w3.org/2000/svg";
const [WIDTH, HEIGHT, LEFT, BOTTOM, TOP] = [360, 220, 34, 24, 8]; // of a panel, in its own units

const number = (value, sign = false) => {
  const text = Math.abs(value).toFixed(2);
  const zero = Number(text) === 0;
  return (value < 0 && !zero ? "−" : sign && !zero ? "+" : "") + text;
};

function element(parent, name, attributes = {}, text = "") {
  const svg = parent instanceof SVGElement || name === "svg";
  const made = svg ? document.createElementNS(SVG, name) : document.createElement(name);
  for (const [key, value] of Object.entries(attributes)) made.setAttribute(key, value);
  made.textContent = text;
  parent.append(made);
  return made;
}

function table(parent, label, headings) {
  const region = element(parent, "div", { class: "scroll", role: "region", "aria-label": label, tabindex: 0 });
  const made = element(region, "table", { class: "plain" });
  const head = element(element(made, "thead"), "tr");
  headings.forEach((text, index) => element(head, "th", { scope: "col", class: index < 2 ? "text" : "number" }, text));
  return element(made, "tbody");
}

function figures(parent, runs, pair) {
  const attacks = data.boards[runs[0].board].attacks;
  const body = table(parent, "Figures", ["Attack", "Checkpoint", "A, %", "95 %", "B, %", "95 %", "A − B", "95 %", "p"]);
  const interval = (low, high, sign) => `${number(low, sign)} to ${number(high, sign)}`;
  attacks.forEach((attack, index) => {
    ["best", "last", "gap"].forEach((checkpoint, which) => {
      const both = runs.map((run) => run.figures[index][which]);
      if (both.includes(null)) return;
      const row = element(body, "tr");
      element(row, "th", { scope: "row" }, attack);
      element(row, "td", {}, checkpoint);
      for (const [mean, low, high] of both) {
        element(row, "td", { class: "number figure" }, number(mean));
        element(row, "td", { class: "number" }, interval(low, high));
      }
      const difference = pair?.differences[index][checkpoint];
      const cells = ["–", "–", "–"];
      if (difference) {
        const [mean, low, high, p] = difference;
        const ends = pair.sign > 0 ? [low, high] : [-high, -low];
        cells[0] = number(pair.sign * mean, true);
        cells[1] = interval(...ends, true);
        cells[2] = p < 1e-4 ? "<0.0001" : p.toFixed(4);
      }
      const look = difference?.[3] < 0.05 ? "number separated" : "number";
      for (const text of cells) element(row, "td", { class: look }, text);
    });
  });
}

function ticks(low, high, count) {
  const rough = (high - low) / count || 1;
  const power = 10 ** Math.floor(Math.log10(rough));
  const step = [1, 2, 5, 10].map((factor) => factor * power).find((size) => size >= rough * 0.999);
  const first = Math.ceil(low / step);
  return Array.from({ length: Math.floor(high / step) - first + 1 }, (_, index) => (first + index) * step);
}

function panel(parent, title, runs, name, range) {
  const figure = element(parent, "figure", { class: "curve" });
  element(figure, "figcaption", {}, title);
  const svg = element(figure, "svg", { viewBox: `0 0 ${WIDTH} ${HEIGHT}`, role: "img", "aria-label": title });
  const x = (epoch) => LEFT + ((epoch - 0.5) / range.epochs) * (WIDTH - LEFT - 6);
  const y = (value) => TOP + ((range.high - value) / (range.high - range.low)) * (HEIGHT - TOP - BOTTOM);
  for (const value of ticks(range.low, range.high, 4)) {
    element(svg, "path", { class: "grid", d: `M${LEFT} ${y(value)}H${WIDTH - 6}` });
    element(svg, "text", { x: LEFT - 5, y: y(value) + 3.5, "text-anchor": "end" }, String(Math.round(value)));
  }
  for (const epoch of ticks(1, range.epochs, 5).filter((epoch) => epoch >= 1 && Number.isInteger(epoch))) {
    element(svg, "text", { x: x(epoch), y: HEIGHT - 7, "text-anchor": "middle" }, String(epoch));
  }
  runs.forEach((run, side) => {
    const curve = run.curves[name];
    if (!curve) return;
    const letter = "ab"[side];
    const points = curve.flatMap((value, index) =>
      value === null ? [] : [`${x(index + 1).toFixed(1)} ${y(value).toFixed(1)}`]); // null: the epoch is not tracked
    element(svg, "path", { class: `line ${letter}`, d: `M${points.join("L")}` });
    for (const [end, look] of [[data.boards[run.board].best, "best"], ["last", "last"]]) {
      const value = curve[run.ends[end] - 1];
      if (value === undefined || value === null) continue;
      const spot = element(svg, "circle", { class: `spot ${letter} ${look}`, cx: x(run.ends[end]), cy: y(value), r: 4 });
      element(spot, "title", {}, `${"AB"[side]}, ${look}: ${number(value)} % at epoch ${run.ends[end]}`);
    }
  });
}

function curves(parent, runs) {
  const values = runs.flatMap((run) => Object.values(run.curves).flat()).filter((value) => value !== null);
  if (!values.length) return;
  const epochs = Math.max(...runs.flatMap((run) => Object.values(run.curves).map((curve) => curve.length)));
  const [low, high] = [values.reduce((a, b) => Math.min(a, b)), values.reduce((a, b) => Math.max(a, b))];
  const margin = Math.max(1, (high - low) * 0.05);
  const range = { epochs, low: Math.max(0, low - margin), high: Math.min(100, high + margin) };
  element(parent, "h2", {}, "Curves");
  const tracking = [...new Set(runs.map((run) => data.boards[run.board].tracking))].join(" and ");
  element(parent, "p", {}, `Accuracy in percent under ${tracking} after each epoch; training images under the attack of ` +
    "training. A is solid, B dashed. Filled marks: best; hollow marks: last.");
  const grid = element(parent, "div", { class: "panels" });
  for (const name of ["training", "validation", "test"]) {
    if (runs.some((run) => run.curves[name])) panel(grid, `${name[0].toUpperCase()}${name.slice(1)} images`, runs, name, range);
  }
}

function difference(places) {
  const [first, second] = places;
  const differences = data.pairs[`${Math.min(first, second)}-${Math.max(first, second)}`];
  return differences && { differences, sign: first < second ? 1 : -1 };
}

function show() {
  const places = lists.map((list) => data.runs.findIndex((run) => run.id === list.value));
  const runs = places.map((place) => data.runs[place]);
  const say = (text) => element(output, "p", { class: "caveat" }, text);
  output.replaceChildren();
  const legend = element(output, "ul", { class: "legend" });
  runs.forEach((run, side) => {
    const line = element(legend, "li");
    element(line, "span", { class: `letter ${"ab"[side]}` }, "AB"[side]);
    element(line, "a", { href: run.page }, run.name);
    element(line, "span", { class: "source" }, data.boards[run.board].title);
  });
  if (places[0] === places[1]) say("A and B are the same run.");
  const same = runs[0].board === runs[1].board;
  if (!same) say("The two runs have different protocols, so their figures cannot be compared.");
  const without = runs.filter((run) => !run.figures);
  for (const run of new Set(without)) say(`${run.name} has no results for every final attack.`);
  if (same && !without.length) {
    const pair = difference(places);
    element(output, "h2", {}, "Figures");
    figures(output, runs, pair);
    element(output, "p", { class: "source" }, pair
      ? "A − B: paired over the test images, with its 95 % interval and p; both cover the choice of test images, not of " +
        "the seed. Bold: p below 5 %."
      : "The paired difference is not part of this page; this command computes it:");
    if (!pair) element(output, "pre", {}, `bench compare ${runs[0].folder} ${runs[1].folder}`);
  }
  curves(output, runs);
}

function restore() {
  const ids = location.hash.slice(1).split(",");
  const known = ids.filter((id) => data.runs.some((run) => run.id === id));
  const first = known[0] ?? data.runs[0].id;
  const board = data.runs.find((run) => run.id === first).board;
  const other = data.runs.find((run) => run.board === board && run.id !== first) ?? data.runs[0];
  [lists[0].value, lists[1].value] = [first, known[1] ?? other.id];
  show();
}

for (const list of lists) {
  list.addEventListener("change", () => {
    history.replaceState(null, "", `#${lists.map((one) => one.value).join(",")}`);
    show();
  });
}
addEventListener("hashchange", restore);
restore();
