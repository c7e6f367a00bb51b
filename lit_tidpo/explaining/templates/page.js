"use strict";
addEventListener("DOMContentLoaded", () => {
  const all = (what, where = document) => [...where.querySelectorAll(what)];
  const note = document.getElementById("note");
  const blank = (token) => token.textContent ? "(blank)" : "(part of a letter)";
  const tell = (event) => {
    const token = event.target.closest(".token");
    if (token) note.textContent = `${token.textContent.trim() || blank(token)}: ${token.title}`;
  };
  document.addEventListener("mouseover", tell);
  document.addEventListener("focusin", tell);

  // One stop of the Tab key for each response; arrows, Home and End go from token to token.
  const steps = { ArrowRight: 1, ArrowLeft: -1, ArrowDown: 10, ArrowUp: -10,
    Home: -Infinity, End: Infinity };
  document.addEventListener("keydown", (event) => {
    if (!(event.key in steps) || !event.target.classList.contains("token")) return;
    const tokens = all(".token", event.target.parentElement);
    const place = tokens.indexOf(event.target) + steps[event.key];
    const next = tokens[Math.max(0, Math.min(tokens.length - 1, place))];
    event.target.tabIndex = -1;
    next.tabIndex = 0;
    next.focus();
    event.preventDefault();
  });

  const form = document.getElementById("view");
  if (!form) return;
  const fields = form.elements, main = document.querySelector("main");
  const pairs = all("article"), tokens = all(".token");
  const shade = () => tokens.forEach((token) => {
    const level = Number(token.dataset.levels.split(" ")[fields.shade.value]);
    token.classList.toggle("minus", level < 0);
    token.style.setProperty("--level", `${Math.abs(level)}%`);
  });
  const sort = () => {
    const key = fields.order.value, sign = key === "index" ? 1 : -1;
    const value = (pair) => Number(pair.dataset[key]);
    main.append(...pairs.toSorted((one, other) => sign * (value(one) - value(other))));
  };
  const filter = () => {
    const words = fields.search.value.toLowerCase();
    const least = fields.least ? Number(fields.least.value) : 0;
    if (fields.least) fields.bound.value = least.toFixed(2);
    const roles = new Set(all("[name=role]:checked", form).map((box) => box.value));
    pairs.forEach((pair) => {
      const text = all("pre", pair).map((each) => each.textContent.toLowerCase());
      pair.hidden = !text.some((each) => each.includes(words)) ||
        Number(pair.dataset.disagreement || 0) < least;
    });
    all("section[data-role]").forEach((each) => { each.hidden = !roles.has(each.dataset.role); });
    form.querySelector("[name=count]").textContent =
      `${pairs.filter((pair) => !pair.hidden).length} of ${pairs.length} pairs`;
  };
  form.addEventListener("input", () => { shade(); sort(); filter(); });
  form.addEventListener("submit", (event) => event.preventDefault());
  form.hidden = false;
  filter();
});
