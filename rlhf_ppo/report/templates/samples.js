"use strict";
// The table of samples: search, filter, sort, pages. Texts of a run are only ever set as
// textContent, so nothing in them is read as HTML.
(() => {
  const PAGE = window.matchMedia("(max-width: 760px)").matches ? 5 : 10;
  const LONG = 700; // characters of an answer that are shown at first

  // Everything folded is printed too.
  let opened = [];
  window.addEventListener("beforeprint", () => {
    opened = [...document.querySelectorAll("details:not([open])")];
    for (const item of opened) item.open = true;
  });
  window.addEventListener("afterprint", () => {
    for (const item of opened) item.open = false;
  });

  const source = document.getElementById("sample-data");
  if (!source) return;
  const data = JSON.parse(source.textContent);
  const find = (id) => document.getElementById(id);
  const NUMBERS = [
    { key: "score", title: "Δ score" },
    { key: "gold", title: "Δ gold" },
    { key: "length", title: "Δ length" },
    { key: "kl", title: "KL" },
  ];
  const whole = new Set(["length"]);
  const known = (row, column, key) => {
    const cell = row.cells[column];
    return cell && cell[key] !== undefined ? cell[key] : null;
  };
  const rows = data.rows.map(([place, prompt, cells]) => ({
    place,
    prompt,
    cells,
    words: [...prompt.map((message) => message[1]), ...cells.map((cell) => (cell ? cell.text : ""))]
      .join("\n")
      .toLowerCase(),
  }));
  const state = { left: 0, right: Math.min(1, data.columns.length - 1), sort: null, down: true, page: 0 };

  const make = (tag, className, text) => {
    const element = document.createElement(tag);
    if (className) element.className = className;
    if (text !== undefined) element.textContent = text;
    return element;
  };
  // One format for a number, whatever its value: +3.00 beside +3.58.
  const shown = (value, key) => {
    if (value === null) return "–";
    return (whole.has(key) ? value.toFixed(0) : value.toFixed(2)).replace("-", "−");
  };
  // What a row is sorted by: KL of the right answer as it is, else the difference of the two.
  const value = (row, key) => {
    const right = known(row, state.right, key);
    if (key === "kl") return right;
    const left = known(row, state.left, key);
    return right === null || left === null ? null : right - left;
  };
  const present = NUMBERS.filter(({ key }) =>
    data.columns.some((_, column) => rows.some((row) => known(row, column, key) !== null)),
  );
  const has = (key) => present.some((item) => item.key === key);

  const FILTERS = [
    ["all", "all prompts", () => true, true],
    ["gold-up", "gold better", (row) => value(row, "gold") > 0, has("gold")],
    ["gold-down", "gold worse", (row) => value(row, "gold") < 0, has("gold")],
    ["cheated", "score up, gold down", (row) => value(row, "score") > 0 && value(row, "gold") < 0, has("gold") && has("score")],
    ["score-up", "score better", (row) => value(row, "score") > 0, has("score")],
    ["score-down", "score worse", (row) => value(row, "score") < 0, has("score")],
    ["changed", "answers differ", (row) => text(row, state.left) !== text(row, state.right), true],
    ["cut", "right one cut at the limit", (row) => Boolean(known(row, state.right, "cut")), true],
  ].filter((item) => item[3]);
  const text = (row, column) => (row.cells[column] ? row.cells[column].text : null);

  const option = (select, id, label) => {
    const item = make("option", "", label);
    item.value = id;
    select.append(item);
  };
  for (const [id, label] of FILTERS) option(find("filter"), id, label);
  for (const side of ["left", "right"]) {
    data.columns.forEach((label, column) => option(find(side), column, label));
    find(side).value = state[side];
    find(side).addEventListener("change", () => {
      state[side] = Number(find(side).value);
      heads();
      update();
    });
  }
  for (const [id, event] of [["filter", "change"], ["search", "input"]]) {
    find(id).addEventListener(event, () => update());
  }
  find("controls").addEventListener("submit", (event) => event.preventDefault());
  for (const [id, by] of [["previous", -1], ["next", 1]]) {
    find(id).addEventListener("click", () => {
      state.page += by;
      draw();
      find("samples").scrollIntoView();
    });
  }

  function heads() {
    const line = find("heads");
    const focused = document.activeElement && document.activeElement.dataset.key;
    line.replaceChildren();
    const words = ["Prompt", data.columns[state.left], data.columns[state.right]];
    for (const label of words) {
      const head = make("th", "words", label);
      const column = data.columns.indexOf(label);
      if (column >= 0) head.prepend(make("i", "swatch " + data.styles[column]));
      head.scope = "col";
      head.setAttribute("role", "columnheader");
      line.append(head);
    }
    for (const { key, title } of present) {
      const head = make("th", "n");
      head.scope = "col";
      head.setAttribute("role", "columnheader");
      const sorted = state.sort === key ? (state.down ? "descending" : "ascending") : "none";
      head.setAttribute("aria-sort", sorted);
      const button = make("button", "", title);
      button.type = "button";
      button.dataset.key = key;
      button.title = "sort by " + title;
      button.addEventListener("click", () => sortBy(key));
      head.append(button);
      line.append(head);
      if (focused === key) button.focus();
    }
  }

  // First click: largest first; second: smallest first; third: as in the file.
  function sortBy(key) {
    if (state.sort !== key) [state.sort, state.down] = [key, true];
    else if (state.down) state.down = false;
    else state.sort = null;
    heads();
    update();
  }

  let chosen = [];
  function update() {
    const words = find("search").value.trim().toLowerCase();
    const passes = FILTERS.find(([id]) => id === find("filter").value)[2];
    chosen = rows.filter((row) => (!words || row.words.includes(words)) && passes(row));
    if (state.sort) {
      const sign = state.down ? -1 : 1;
      const keyed = chosen.map((row) => [value(row, state.sort), row]);
      // Rows without that number come last, whichever way.
      keyed.sort(([a, one], [b, other]) => {
        if (a === null || b === null) return (a === null) - (b === null) || one.place - other.place;
        return sign * (a - b) || one.place - other.place;
      });
      chosen = keyed.map(([, row]) => row);
    }
    state.page = 0;
    draw();
  }

  function draw() {
    const pages = Math.max(1, Math.ceil(chosen.length / PAGE));
    state.page = Math.min(Math.max(state.page, 0), pages - 1);
    const start = state.page * PAGE;
    find("rows").replaceChildren(...chosen.slice(start, start + PAGE).map(tableRow));
    find("status").textContent = chosen.length === 1 ? "1 prompt" : chosen.length + " prompts";
    const last = Math.min(start + PAGE, chosen.length);
    find("page").textContent = chosen.length ? start + 1 + "–" + last + " of " + chosen.length : "none";
    find("previous").disabled = state.page === 0;
    find("next").disabled = state.page >= pages - 1;
  }

  function tableRow(row) {
    const line = make("tr");
    line.setAttribute("role", "row");
    const prompt = make("td");
    prompt.append(make("span", "place", "#" + row.place));
    for (const [role, content] of row.prompt) {
      if (role) prompt.append(make("span", "who", role));
      prompt.append(bubble(content, role === "system" ? "system" : role === "assistant" ? "" : "user"));
    }
    line.append(prompt, answer(row, "left"), answer(row, "right"));
    for (const { key, title } of present) {
      const found = value(row, key);
      const cell = make("td", "n", found > 0 && key !== "kl" ? "+" + shown(found, key) : shown(found, key));
      if (found && (key === "score" || key === "gold")) cell.classList.add(found > 0 ? "up" : "down");
      cell.dataset.label = title;
      line.append(cell);
    }
    for (const cell of line.children) cell.setAttribute("role", "cell");
    return line;
  }

  function answer(row, side) {
    const cell = row.cells[state[side]];
    const box = make("td");
    box.append(make("span", "who", data.columns[state[side]]));
    if (!cell) {
      box.append(make("span", "facts", "no answer"));
      return box;
    }
    box.append(bubble(cell.text || "(empty)", side + " " + data.styles[state[side]]));
    const facts = [];
    for (const [key, name] of [["score", "score "], ["gold", "gold "], ["length", ""], ["kl", "KL "]]) {
      if (cell[key] !== undefined) facts.push(name + shown(cell[key], key) + (key === "length" ? " tokens" : ""));
    }
    if (cell.cut) facts.push("cut at the limit");
    for (const [name, amount] of Object.entries(cell.parts || {})) {
      facts.push(name.replaceAll("_", " ") + (amount === 1 ? "" : " " + shown(amount, name)));
    }
    box.append(make("div", "facts", facts.join(" · ")));
    return box;
  }

  function bubble(content, style) {
    const box = make("div", "bubble " + style);
    box.dir = "auto"; // right-to-left scripts read as they should
    if (content.length <= LONG) {
      box.textContent = content;
      return box;
    }
    // Cut between characters, not inside one of two code units.
    const words = make("span", "", [...content.slice(0, LONG)].slice(0, -1).join("") + "… ");
    const more = make("button", "more", "show all");
    more.type = "button";
    more.setAttribute("aria-expanded", "false");
    more.addEventListener("click", () => {
      words.textContent = content;
      more.remove();
      box.tabIndex = -1;
      box.focus();
    });
    box.append(words, more);
    return box;
  }

  heads();
  update();
})();
