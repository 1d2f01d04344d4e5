"use strict";
/* Sorting and filtering of tables. Without this script they are plain tables in their original order. */
for (const table of document.querySelectorAll("table[data-sortable]")) {
  const body = table.tBodies[0];
  const rows = Array.from(body.rows);
  const heads = Array.from(table.tHead.rows[0].cells);

  const key = (row, column) => {
    const cell = row.cells[column];
    return "key" in cell.dataset ? Number(cell.dataset.key) : cell.textContent;
  };
  const compare = (a, b) => {
    const empty = (value) => value === "" || Number.isNaN(value);
    if (empty(a) || empty(b)) return empty(a) - empty(b);
    return typeof a === "number" && typeof b === "number" ? a - b : String(a).localeCompare(String(b));
  };
  const sort = (column) => {
    const descending = heads[column].getAttribute("aria-sort") === "ascending";
    heads.forEach((head) => head.removeAttribute("aria-sort"));
    heads[column].setAttribute("aria-sort", descending ? "descending" : "ascending");
    const sorted = rows.slice().sort((a, b) => (descending ? -1 : 1) * compare(key(a, column), key(b, column)));
    body.append(...sorted);
  };
  heads.forEach((head, column) => {
    const button = document.createElement("button");
    button.type = "button";
    button.append(...head.childNodes);
    button.addEventListener("click", () => sort(column));
    head.append(button);
  });

  const label = document.createElement("label");
  const input = document.createElement("input");
  const shown = document.createElement("span");
  input.type = "search";
  label.append("Filter rows ", input);
  shown.setAttribute("aria-live", "polite");
  const filter = () => {
    const words = input.value.toLowerCase().split(/\s+/).filter(Boolean);
    let kept = 0;
    for (const row of rows) {
      const cells = Array.from(row.cells, (cell) => cell.textContent.toLowerCase());
      row.hidden = !words.every((word) => cells.some((cell) => cell === word || cell.includes(word) && Number.isNaN(Number(word))));
      kept += row.hidden ? 0 : 1;
    }
    shown.textContent = words.length ? `${kept} of ${rows.length} rows` : "";
  };
  input.addEventListener("input", filter);
  const line = document.createElement("div");
  line.className = "filter";
  line.append(label, shown);
  table.closest(".scroll").before(line);
}
