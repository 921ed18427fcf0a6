// The table of every case: sorting by a column, and showing one system or class. And folds that open for the printer.
(() => {
  const section = document.getElementById("cases");
  const body = section.querySelector("tbody"), headers = [...section.querySelectorAll("thead th")];
  const filters = [...section.querySelectorAll("select")];
  const text = (row, column) => row.cells[column].textContent;

  const compare = (one, other) => {
    const difference = Number(one) - Number(other);
    return Number.isNaN(difference) ? one.localeCompare(other, undefined, { numeric: true }) : difference;
  };

  const sort = (column) => {
    const ascending = headers[column].getAttribute("aria-sort") !== "ascending";
    headers.forEach((header) => header.removeAttribute("aria-sort"));
    headers[column].setAttribute("aria-sort", ascending ? "ascending" : "descending");
    const sign = ascending ? 1 : -1;
    body.append(...[...body.rows].sort((one, other) => sign * compare(text(one, column), text(other, column))));
  };

  const filter = () => {
    for (const row of body.rows) {
      row.hidden = filters.some(({ value, dataset }) => value && text(row, Number(dataset.column)) !== value);
    }
  };

  headers.forEach((header, column) => header.addEventListener("click", () => sort(column)));
  filters.forEach((select) => select.addEventListener("input", filter));

  let opened = [];
  window.addEventListener("beforeprint", () => {
    opened = [...document.querySelectorAll("details:not([open])")];
    opened.forEach((fold) => { fold.open = true; });
  });
  window.addEventListener("afterprint", () => opened.forEach((fold) => { fold.open = false; }));
})();
