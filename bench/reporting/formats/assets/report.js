"use strict";

// Headings become buttons that sort, and a field above the table filters its rows.
const order = new Intl.Collator("en", { sensitivity: "base" });
for (const table of document.querySelectorAll("table.leaderboard")) {
  const rows = [...table.tBodies[0].rows]; // in the order of the report, which ties keep
  const headings = [...table.querySelectorAll("th[data-column]")];
  for (const heading of headings) {
    const cell = (row) => row.cells[heading.dataset.column];
    const numeric = rows.some((row) => "value" in cell(row).dataset);
    const button = document.createElement("button");
    button.type = "button";
    button.append(...heading.childNodes);
    heading.append(button);
    button.addEventListener("click", () => {
      const first = "descending" in heading.dataset ? "descending" : "ascending";
      const second = first === "ascending" ? "descending" : "ascending";
      const direction = heading.getAttribute("aria-sort") === first ? second : first;
      for (const other of headings) other.removeAttribute("aria-sort");
      heading.setAttribute("aria-sort", direction);
      const sign = direction === "ascending" ? 1 : -1;
      const compare = (a, b) => {
        if (!numeric) return sign * order.compare(a.textContent.trim(), b.textContent.trim());
        const [x, y] = [a.dataset.value, b.dataset.value];
        // Cells without a figure stay at the end in both directions.
        return (x === undefined) - (y === undefined) || sign * (x - y) || 0;
      };
      table.tBodies[0].append(...[...rows].sort((a, b) => compare(cell(a), cell(b))));
    });
  }
  const controls = document.createElement("div"); // outside the region, so that it stays while the table scrolls
  controls.className = "controls";
  controls.innerHTML = '<label>Filter <input type="search"></label><output></output>';
  const [field, count] = [controls.querySelector("input"), controls.querySelector("output")];
  const filter = () => {
    const words = field.value.toLowerCase().split(/\s+/);
    for (const row of rows) row.hidden = !words.every((word) => row.textContent.toLowerCase().includes(word));
    const shown = rows.filter((row) => !row.hidden).length;
    count.value = shown < rows.length ? `${shown} of ${rows.length} rows` : `${shown} ${shown === 1 ? "row" : "rows"}`;
  };
  field.addEventListener("input", filter);
  filter();
  table.closest(".scroll").before(controls);
}

// Pointing at a row, or moving the focus into it, leaves its series in the figures and dims the others.
for (const board of document.querySelectorAll(".board")) {
  const light = (row) => {
    for (const series of board.querySelectorAll("svg .series")) {
      series.classList.toggle("dimmed", row !== null && series.dataset.row !== row.dataset.row);
    }
  };
  const table = board.querySelector(".leaderboard tbody");
  for (const [enter, leave] of [["mouseover", "mouseleave"], ["focusin", "focusout"]]) {
    table.addEventListener(enter, (event) => light(event.target.closest("tr[data-row]")));
    table.addEventListener(leave, () => light(null));
  }
}

// A region takes part in the order of the keyboard only where there is something to scroll.
const watch = new ResizeObserver((entries) => {
  for (const { target } of entries) target.tabIndex = target.scrollWidth > target.clientWidth ? 0 : -1;
});
for (const region of document.querySelectorAll(".scroll, pre.copy")) watch.observe(region);

if (navigator.clipboard) {
  for (const text of document.querySelectorAll("pre.copy")) {
    const frame = document.createElement("div");
    const button = document.createElement("button");
    frame.className = "copied";
    button.type = "button";
    button.textContent = "Copy";
    button.setAttribute("aria-label", `Copy: ${text.getAttribute("aria-label")}`);
    button.addEventListener("click", async () => {
      await navigator.clipboard.writeText(text.textContent);
      button.textContent = "Copied";
      setTimeout(() => (button.textContent = "Copy"), 2000);
    });
    text.replaceWith(frame);
    frame.append(text, button);
  }
}
