"use strict";
// Tables sort by the column whose heading is clicked: numbers first, empty cells last, ties as they were.
for (const table of document.querySelectorAll("table.sortable")) {
  const headings = [...table.querySelectorAll("th")];
  const body = table.tBodies[0];
  headings.forEach((heading, column) => heading.querySelector("button").addEventListener("click", () => {
    const falling = heading.getAttribute("aria-sort") === "ascending";
    for (const one of headings) one.setAttribute("aria-sort", "none");
    heading.setAttribute("aria-sort", falling ? "descending" : "ascending");
    const key = (row) => {
      const cell = row.cells[column];
      return "value" in cell.dataset ? Number(cell.dataset.value) : cell.textContent.trim();
    };
    const sign = falling ? -1 : 1;
    const compare = (a, b) => {
      const one = key(a), other = key(b);
      if (one === "" || other === "") return (one === "") - (other === "");
      if (typeof one !== typeof other) return typeof one === "number" ? -1 : 1;
      return sign * (typeof one === "number" ? one - other : one.localeCompare(other, "en", { numeric: true }));
    };
    body.append(...[...body.rows].sort(compare));
  }));
}
