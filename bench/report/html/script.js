// Sorts and filters the leaderboard, and opens the details of cells. It computes no figure.
"use strict";
document.documentElement.classList.add("script");

// --- the leaderboard: filters ---------------------------------------------------------------------------------------
const filters = document.querySelector(".filters");
const rows = [...document.querySelectorAll("#board tbody tr")];

function filter() {
  const { dataset, norm, family, strength } = filters.elements;
  for (const row of rows) {
    const data = row.dataset;
    row.hidden = !(
      (!dataset.value || data.dataset === dataset.value) &&
      (!norm.value || data.norm === norm.value) &&
      (!family.value || data.family === family.value) &&
      (strength.value ? data.strength === strength.value : "largest" in data)
    );
  }
  const shown = rows.filter((row) => !row.hidden).map((row) => row.textContent);
  filters.querySelector("output").value = shown.length === 1 ? "1 row" : `${shown.length} rows`;
  // a note is shown where a visible row or a later note has its number
  for (const note of [...document.querySelectorAll("#leaderboard .notes li")].reverse()) {
    note.hidden = !shown.some((text) => text.includes(`(${note.value})`));
    if (!note.hidden) shown.push(note.textContent);
  }
}

filters.addEventListener("change", ({ target }) => {
  const { norm, strength } = filters.elements;
  // each strength belongs to one norm, so the two filters must agree
  if (target === strength && strength.value) norm.value = strength.value.split(" ")[0];
  if (target === norm && strength.value.split(" ")[0] !== norm.value) strength.value = "";
  filter();
});
filters.addEventListener("submit", (event) => event.preventDefault());
filter();

// --- the leaderboard: sorting ---------------------------------------------------------------------------------------
const heads = [...document.querySelectorAll("#board thead th")];

function sort(column) {
  const head = heads[column];
  const numeric = "numeric" in head.dataset;
  // the first click sorts figures in descending order, names and ranks in ascending order
  const first = head.dataset.first ?? (numeric ? "descending" : "ascending");
  const other = first === "ascending" ? "descending" : "ascending";
  const order = head.getAttribute("aria-sort") === first ? other : first;
  heads.forEach((one) => one.removeAttribute("aria-sort"));
  head.setAttribute("aria-sort", order);
  const sign = order === "ascending" ? 1 : -1;
  const key = (row) => (numeric ? parseFloat(row.cells[column].dataset.value) : row.cells[column].textContent.trim());
  rows.sort((a, b) => {
    const [x, y] = [key(a), key(b)];
    if (!numeric) return sign * x.localeCompare(y, "en", { numeric: true });
    if (Number.isNaN(x) || Number.isNaN(y)) return Number.isNaN(x) - Number.isNaN(y); // rows without a figure come last
    return x === y ? 0 : sign * (x < y ? -1 : 1);
  });
  document.querySelector("#board tbody").append(...rows);
}

heads.forEach((head, column) => {
  const button = document.createElement("button");
  button.append(...head.childNodes);
  button.addEventListener("click", () => sort(column));
  head.append(button);
});

// --- cells: a link to a cell opens its details in a dialog -----------------------------------------------------------
const dialog = document.querySelector("dialog");
let place = null; // marks where the shown article goes back to

function show() {
  const article = document.getElementById(location.hash.slice(1));
  if (dialog.open) dialog.close();
  if (!article?.matches(".cells > article")) return;
  place = document.createComment("shown in the dialog");
  article.replaceWith(place);
  dialog.lastElementChild.replaceChildren(article);
  dialog.setAttribute("aria-labelledby", `${article.id}-title`);
  dialog.showModal();
}

dialog.addEventListener("close", () => {
  const link = `#${dialog.querySelector("article").id}`;
  place.replaceWith(dialog.querySelector("article"));
  if (location.hash === link) history.replaceState(null, "", location.pathname + location.search);
  document.querySelector(`.heat a[href="${link}"]`)?.focus();
});
dialog.addEventListener("click", (event) => event.target === dialog && dialog.close()); // a click on the backdrop
addEventListener("hashchange", show);
addEventListener("beforeprint", () => dialog.open && dialog.close());

// --- what is folded is printed too -----------------------------------------------------------------------------------
const folded = [];
addEventListener("beforeprint", () => {
  folded.push(...document.querySelectorAll("details:not([open])"));
  folded.forEach((one) => { one.open = true; });
});
addEventListener("afterprint", () => folded.splice(0).forEach((one) => { one.open = false; }));

// --- commands: copied, or selected where the browser does not allow that ---------------------------------------------
for (const button of document.querySelectorAll("button.copy")) {
  button.addEventListener("click", async () => {
    const code = button.parentElement.querySelector("code");
    try {
      await navigator.clipboard.writeText(code.textContent);
    } catch {
      getSelection().selectAllChildren(code);
      if (!document.execCommand("copy")) return;
    }
    button.textContent = "Copied";
  });
}
show();
