"""How the page looks, and the few lines that sort its table."""

CSS = """
:root { color-scheme: light dark; --ink: #1c2024; --soft: #5d6670; --line: #d9dde1; --paper: #fff;
  --band: #f5f6f8; --best: #0b62c4; --rest: #7b838c; --gain: 11 98 196; --loss: 206 92 0; }
@media (prefers-color-scheme: dark) {
  :root { --ink: #e6e8ea; --soft: #9aa4ae; --line: #363c43; --paper: #15181b; --band: #1e2226;
    --best: #6cb2ff; --rest: #949da6; --gain: 70 150 255; --loss: 255 145 50; } }
* { box-sizing: border-box; }
body { margin: 0 auto; padding: 1.5rem; max-width: 84rem; background: var(--paper);
  color: var(--ink); font: 16px/1.5 system-ui, "Segoe UI", Roboto, sans-serif; }
h1 { font-size: 1.6rem; line-height: 1.2; margin: 0 0 .3rem; overflow-wrap: anywhere; }
h2 { font-size: 1.15rem; margin: 2rem 0 .5rem; }
p { margin: .3rem 0; max-width: 46rem; overflow-wrap: anywhere; }
.soft, dt { color: var(--soft); }
.scroll { overflow-x: auto; width: fit-content; max-width: 100%;
  border: 1px solid var(--line); border-radius: 6px; }
table { border-collapse: collapse; font-size: .875rem; font-variant-numeric: tabular-nums;
  white-space: nowrap; }
th, td { padding: .4rem .5rem; text-align: right; border-bottom: 1px solid var(--line); }
tr:last-child > * { border-bottom: 0; }
tbody tr:hover > * { background: var(--band); }
thead th { background: var(--band); font-weight: 600; vertical-align: bottom; white-space: normal; }
.changes thead th { min-width: 5.2rem; max-width: 9rem; overflow-wrap: anywhere; }
th:first-child { position: sticky; left: 0; z-index: 1; background: var(--paper); text-align: left;
  max-width: 16rem; min-width: 8.5rem; white-space: normal; overflow-wrap: anywhere; }
thead th:first-child { background: var(--band); }
th button { all: unset; cursor: pointer; }
th button:focus-visible { outline: 2px solid var(--best); outline-offset: 2px; }
th button::after { content: "\\2195"; opacity: .35; margin-left: .3em; }
th[aria-sort=ascending] button::after { content: "\\2191"; opacity: 1; }
th[aria-sort=descending] button::after { content: "\\2193"; opacity: 1; }
.pictures { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(100%, 22rem), 1fr));
  gap: 1rem; }
figure { margin: 0; max-width: 38rem; border: 1px solid var(--line); border-radius: 6px;
  padding: .5rem; }
svg { display: block; width: 100%; height: auto; }
svg text { fill: var(--soft); font: 12px system-ui, "Segoe UI", Roboto, sans-serif;
  paint-order: stroke; stroke: var(--paper); stroke-width: 3px; stroke-linejoin: round; }
.axis, .across { text-anchor: middle; } .up { text-anchor: end; }
.grid { stroke: var(--line); }
.front { fill: none; stroke: var(--best); stroke-width: 1.5; stroke-dasharray: 4 3; }
g.best { fill: var(--best); stroke: var(--best); }
g.rest { fill: var(--rest); stroke: var(--rest); }
.lead { stroke: var(--soft); stroke-width: .7; }
g line { opacity: .45; }
svg text.best { fill: var(--best); font-weight: 600; }
td.gain { background: rgb(var(--gain) / var(--part)); }
td.loss { background: rgb(var(--loss) / var(--part)); }
dl { display: grid; grid-template-columns: max-content 1fr; gap: .2rem 1rem; font-size: .9rem; }
dd { margin: 0; overflow-wrap: anywhere; }
@media (max-width: 40rem) { body { padding: 1rem .75rem; } dl { grid-template-columns: 1fr; }
  dd { margin-bottom: .4rem; } th:first-child { max-width: 8.5rem; min-width: 7rem; } }
td small { display: block; color: var(--soft); font-size: .78rem; }
summary { cursor: pointer; color: var(--soft); margin: .3rem 0; }
.changes th:first-child { min-width: 4rem; }
.changes thead th:nth-child(2) { white-space: nowrap; min-width: 6rem; }
@media print { .scroll { overflow: visible; } }
"""

# Rows without a value stay at the end in both directions. #sort=KEY in the address sorts, too.
SCRIPT = """
"use strict";
const table = document.querySelector("table.results");
const heads = [...table.tHead.rows[0].cells];
function sortBy(head, direction) {
  const column = heads.indexOf(head), body = table.tBodies[0];
  const value = row => {
    const text = row.cells[column].dataset.value;
    return text === "" ? null : head.dataset.kind === "text" ? text : Number(text);
  };
  const sign = direction === "ascending" ? 1 : -1;
  const rows = [...body.rows].sort((one, two) => {
    const a = value(one), b = value(two);
    if (a === null || b === null) return (a === null) - (b === null);
    return sign * (typeof a === "string" ? a.localeCompare(b) : a === b ? 0 : a - b);
  });
  heads.forEach(other => other.removeAttribute("aria-sort"));
  head.setAttribute("aria-sort", direction);
  body.append(...rows);
}
heads.forEach(head => head.querySelector("button").addEventListener("click", () => {
  const ascending = head.getAttribute("aria-sort") === "ascending";
  sortBy(head, ascending ? "descending" : "ascending");
}));
function followAddress() {
  const key = new URLSearchParams(location.hash.slice(1)).get("sort") || "";
  const head = heads.find(one => one.dataset.key === key.replace(/^-/, ""));
  if (head) sortBy(head, key.startsWith("-") ? "descending" : "ascending");
}
addEventListener("hashchange", followAddress);
followAddress();
"""
