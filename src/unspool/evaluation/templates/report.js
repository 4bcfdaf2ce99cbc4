"use strict";
(() => {
  const data = JSON.parse(document.getElementById("data").textContent);
  const $ = (id) => document.getElementById(id);
  const PAGE = 100;
  const place = (name) => data.columns.findIndex((column) => column[0] === name);
  const ITEM = place("item"), CATEGORY = place("category"), ARM = place("arm");
  const element = (name, text, kind) => {
    const made = document.createElement(name);
    if (text !== undefined) made.textContent = text;
    if (kind) made.className = kind;
    return made;
  };
  const number = (value) => value === null || value === undefined ? "–"
    : Number.isInteger(value) ? String(value) : Math.abs(value) >= 100 ? value.toFixed(0) : Math.abs(value) >= 10 ? value.toFixed(1)
    : Math.abs(value) >= 0.001 || value === 0 ? value.toFixed(3) : value.toExponential(2);

  let sorted = -1, rising = true, shown = PAGE, order = [];
  const open = new Set();

  for (const [id, column] of [["f-arm", ARM], ["f-category", CATEGORY]]) {
    for (const value of new Set(data.rows.map((row) => row[column]))) {
      const option = element("option", value);
      option.value = value;
      $(id).append(option);
    }
    $(id).addEventListener("change", () => { shown = PAGE; select(); });
  }
  $("f-text").addEventListener("input", () => { shown = PAGE; select(); });
  $("more").addEventListener("click", () => { shown += PAGE; draw(); });

  const heads = data.columns.map(([name, kind], at) => {
    const head = element("th", undefined, kind === "number" ? "n" : "");
    head.scope = "col";
    const button = element("button", name);
    button.type = "button";
    button.addEventListener("click", () => {
      rising = sorted === at ? !rising : kind === "text";
      sorted = at;
      heads.forEach((other) => other.removeAttribute("aria-sort"));
      head.setAttribute("aria-sort", rising ? "ascending" : "descending");
      shown = PAGE;
      select();
    });
    head.append(button);
    return head;
  });
  const line = element("tr");
  line.append(...heads);
  document.querySelector("#rows thead").append(line);

  function select() {
    const arm = $("f-arm").value, category = $("f-category").value, text = $("f-text").value.toLowerCase();
    order = data.rows.map((_, at) => at).filter((at) => {
      const row = data.rows[at];
      return (!arm || row[ARM] === arm) && (!category || row[CATEGORY] === category) && (!text
        || row[ITEM].toLowerCase().includes(text) || data.texts[at].some((said) => said.toLowerCase().includes(text)));
    });
    if (sorted >= 0) {
      const sign = rising ? 1 : -1, words = data.columns[sorted][1] === "text";
      order.sort((a, b) => {
        const x = data.rows[a][sorted], y = data.rows[b][sorted];
        // What is not known comes last either way.
        if (x === null || y === null) return (x === null) - (y === null) || a - b;
        return (words ? sign * x.localeCompare(y, undefined, { numeric: true }) : sign * (x - y)) || a - b;
      });
    }
    draw();
  }

  function draw() {
    const body = document.querySelector("#rows tbody");
    const lines = [];
    for (const at of order.slice(0, shown)) {
      const row = element("tr", undefined, "row");
      data.columns.forEach(([, kind], column) => {
        const value = data.rows[at][column];
        const cell = element("td", kind === "number" ? number(value) : value, kind === "number" ? "n" : "");
        if (column === ITEM) {
          const button = element("button", open.has(at) ? "▾" : "▸", "open");
          button.type = "button";
          button.setAttribute("aria-expanded", String(open.has(at)));
          button.setAttribute("aria-label", "Text of " + value);
          cell.prepend(button);
        }
        row.append(cell);
      });
      row.addEventListener("click", () => {
        if (String(getSelection())) return;
        open.has(at) ? open.delete(at) : open.add(at);
        draw();
      });
      lines.push(row);
      if (open.has(at)) {
        const said = element("tr", undefined, "said"), cell = element("td");
        cell.colSpan = data.columns.length;
        cell.append(...data.texts[at].map((text) => element("pre", text)));
        said.append(cell);
        lines.push(said);
      }
    }
    body.replaceChildren(...lines);
    $("count").textContent = order.length + (order.length === 1 ? " row" : " rows");
    $("more").hidden = order.length <= shown;
    $("more").textContent = "Show " + Math.min(PAGE, order.length - shown) + " more of " + order.length;
  }

  const notes = [];
  if (data.shortened) notes.push("Long texts are cut short here.");
  if (data.left_out) notes.push(data.left_out + " rows are left out to keep the page small.");
  if (notes.length) {
    $("shortened").textContent = notes.join(" ") + " The results file holds everything.";
    $("shortened").hidden = false;
  }
  $("explorer").hidden = false;
  select();
})();
