"use strict";
// Every page: sortable tables and a choice of theme.
(() => {
  const button = document.getElementById("theme");

  function sortBy(head) {
    const [table, column] = [head.closest("table"), head.cellIndex];
    const way = head.getAttribute("aria-sort") === "descending" ? "ascending" : "descending";
    for (const other of head.parentElement.children) other.removeAttribute("aria-sort");
    head.setAttribute("aria-sort", way);
    const value = (row) => {
      const text = row.cells[column].textContent.trim();
      return column ? Number(text.replace(/[,%]/g, "").replace("−", "-")) : text;
    };
    const sorted = [...table.tBodies[0].rows].sort((a, b) => (value(a) < value(b) ? -1 : Number(value(a) > value(b))));
    table.tBodies[0].append(...(way === "ascending" ? sorted : sorted.reverse()));
  }

  function nextTheme() {
    const themes = ["system", "light", "dark"];
    const root = document.documentElement;
    const theme = themes[(themes.indexOf(root.dataset.theme ?? "system") + 1) % themes.length];
    root.dataset.theme = theme;
    button.setAttribute("aria-label", `Colour theme: ${theme}`);
  }

  button.addEventListener("click", nextTheme);
  for (const head of document.querySelectorAll(".sortable thead th")) {
    head.firstElementChild.addEventListener("click", () => sortBy(head));
  }
})();
