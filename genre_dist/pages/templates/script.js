"use strict";
// Sorting: every header of a sortable table is a button. Cells carry data-v where their text does not sort.
const value = (row, at) => row.cells[at].dataset.v ?? row.cells[at].textContent.trim();
function sortBy(header) {
  const table = header.closest("table"), body = table.tBodies[0], at = header.cellIndex;
  const rows = [...body.rows], sorted = header.getAttribute("aria-sort");
  const numeric = rows.every((row) => value(row, at) === "" || !Number.isNaN(Number(value(row, at))));
  const falling = sorted ? sorted === "ascending" : numeric;   // figures: the largest first
  for (const other of header.parentElement.cells) other.removeAttribute("aria-sort");
  header.setAttribute("aria-sort", falling ? "descending" : "ascending");
  rows.sort((one, two) => {
    const [a, b] = [value(one, at), value(two, at)];
    if (a === "" || b === "") return (a === "") - (b === "");   // what is missing stays last
    return (numeric ? a - b : a.localeCompare(b)) * (falling ? -1 : 1);
  });
  body.append(...rows);
}
document.addEventListener("click", (event) => {
  const button = event.target.closest("th button");
  if (button) sortBy(button.parentElement);
});

// Choices: a select or radio shows the blocks of its group that carry its value.
document.addEventListener("change", (event) => {
  const group = event.target.dataset.shows, name = event.target.dataset.class;
  if (name) document.documentElement.classList.toggle(name, event.target.checked);   // a checkbox sets a class of the page
  if (group) for (const block of document.querySelectorAll(`[data-group="${group}"]`)) block.hidden = block.dataset.key !== event.target.value;
});

// Tooltips: by pointer, touch and keyboard.
const tip = document.getElementById("tip");
function showTip(text, x, y) {
  tip.textContent = text;
  tip.hidden = false;
  const box = tip.getBoundingClientRect();
  tip.style.left = `${Math.max(8, Math.min(x + 12, innerWidth - box.width - 8))}px`;
  tip.style.top = `${y - box.height - 12 < 8 ? y + 18 : y - box.height - 12}px`;
}
const hideTip = () => { tip.hidden = true; };
let pointer = null;
function showUnder(x, y) {
  const under = document.elementFromPoint(x, y), curve = under?.closest(".curve");
  if (curve) return follow(curve, x, y);
  const marked = under?.closest("[data-tip]");
  if (marked) showTip(marked.dataset.tip, x, y); else hideTip();
}
document.addEventListener("pointermove", (event) => {
  pointer = [event.clientX, event.clientY];
  showUnder(...pointer);
});
document.addEventListener("pointerdown", (event) => { if (!event.target.closest("[data-tip], .curve")) hideTip(); });
function showFocused() {
  const marked = document.activeElement?.closest("[data-tip]");
  if (!marked) return hideTip();
  const box = marked.getBoundingClientRect();
  showTip(marked.dataset.tip, box.left + box.width / 2, box.top);
}
document.addEventListener("focusin", showFocused);
document.addEventListener("focusout", hideTip);
addEventListener("scroll", () => {   // what the focus or the pointer is on has moved
  if (document.activeElement?.closest("[data-tip]")) showFocused(); else if (pointer) showUnder(...pointer);
}, { passive: true });

// Curves: a cursor at the nearest point of all lines; the arrow keys move it.
const series = new WeakMap();
function dataOf(curve) {
  if (!series.has(curve)) series.set(curve, JSON.parse(curve.querySelector("script").textContent));
  return series.get(curve);
}
function readOut(curve, across, x, y) {
  const data = dataOf(curve), lines = [];
  for (const one of data.series) {
    let best = one.data[0];
    for (const point of one.data) if (Math.abs(point[0] - across) < Math.abs(best[0] - across)) best = point;
    if (Math.abs(best[0] - across) < 60) lines.push(`${one.name}: ${best[3]} (${data.unit(best[2])})`);
  }
  const cursor = curve.querySelector(".cursor");
  cursor.setAttribute("x1", across); cursor.setAttribute("x2", across);
  cursor.removeAttribute("visibility");
  if (lines.length) showTip(lines.join("\n"), x, y); else hideTip();
}
const units = { steps: (at) => `step ${at}`, time: (at) => (at >= 1 ? `${at.toFixed(2)} h` : `${(60 * at).toFixed(1)} min`) };
for (const curve of document.querySelectorAll(".curve")) dataOf(curve).unit = units[curve.dataset.axis];
function follow(curve, x, y) {
  const box = curve.getBoundingClientRect();
  curve.dataset.at = 1000 * Math.min(1, Math.max(0, (x - box.left) / box.width));
  readOut(curve, Number(curve.dataset.at), x, y);
}
document.addEventListener("keydown", (event) => {
  if (event.key === "Escape") hideTip();
  const curve = event.target.closest?.(".curve"), step = { ArrowLeft: -25, ArrowRight: 25 }[event.key];
  if (!curve || !step) return;
  event.preventDefault();
  const at = Math.min(1000, Math.max(0, Number(curve.dataset.at ?? 500) + step)), box = curve.getBoundingClientRect();
  curve.dataset.at = at;
  readOut(curve, at, box.left + box.width * at / 1000, box.top + 40);
});

// Print everything.
addEventListener("beforeprint", () => { for (const one of document.querySelectorAll("details")) one.open = true; });
