"use strict";

// Figures sort by their `data-order`; what has none stays at the end, whichever way the others go.
const last = (compare) => (a, b) => Number.isNaN(a) - Number.isNaN(b) || compare(a, b) || 0;
DataTable.type("figure", {
  order: {
    pre: (text) => (text === "" ? NaN : Number(text)),
    asc: last((a, b) => a - b),
    desc: last((a, b) => b - a),
  },
});

for (const table of document.querySelectorAll("table.leaderboard")) {
  new DataTable(table, {
    paging: false,
    autoWidth: false,
    order: [],
    layout: {
      topStart: { search: { text: "Filter _INPUT_" } },
      topEnd: "info",
      bottomStart: null,
      bottomEnd: null,
    },
    language: {
      info: "_TOTAL_ rows",
      infoEmpty: "0 rows",
      infoFiltered: "of _MAX_",
      zeroRecords: "No row contains this.",
    },
  });
  const region = table.closest(".scroll");
  const controls = region.querySelector(".dt-layout-row:not(.dt-layout-table)");
  controls.className = "controls"; // outside the region, so that they stay while the table scrolls
  region.before(controls);
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
