// Shows the value of the heatmap cell under the pointer or the focus; arrow keys move the focus.
for (const heat of document.querySelectorAll(".heat")) {
  const output = heat.querySelector("output");
  const rows = [...heat.querySelectorAll("tbody tr")].map((row) => [...row.querySelectorAll("td")]);
  const show = (event) => {
    const cell = event.target.closest("tbody td");
    if (cell) output.textContent = cell.title;
  };
  heat.addEventListener("mouseover", show);
  heat.addEventListener("focusin", show);
  heat.addEventListener("keydown", (event) => {
    const move = { ArrowUp: [-1, 0], ArrowDown: [1, 0], ArrowLeft: [0, -1], ArrowRight: [0, 1] }[event.key];
    const cell = event.target.closest("tbody td");
    if (!move || !cell) return;
    event.preventDefault();
    const layer = rows.findIndex((row) => row.includes(cell));
    const next = rows[layer + move[0]]?.[rows[layer].indexOf(cell) + move[1]];
    if (!next) return;
    cell.tabIndex = -1;
    next.tabIndex = 0;
    next.focus();
  });
}
