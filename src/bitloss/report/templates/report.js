"use strict";
(() => {
  const $ = (s, root = document) => root.querySelector(s);
  const $$ = (s, root = document) => [...root.querySelectorAll(s)];
  const data = JSON.parse($("#data").textContent);
  const say = (words) => { $("#live").textContent = words; };
  const el = (tag, css, words) => {
    const made = document.createElement(tag);
    if (css) made.className = css;
    if (words !== undefined) made.textContent = words;
    return made;
  };

  // theme: as the system until somebody chooses; a page from a file may not be allowed to remember
  const remember = (key, value) => {
    try {
      if (value === undefined) return localStorage.getItem(key);
      localStorage.setItem(key, value);
    } catch (e) { /* stays as the system has it */ }
    return null;
  };
  const root = document.documentElement;
  const system = matchMedia("(prefers-color-scheme: dark)");
  const isDark = () => (root.dataset.theme || (system.matches ? "dark" : "light")) === "dark";
  const themeButton = $("#theme");
  const showTheme = () => { themeButton.textContent = isDark() ? "Light" : "Dark"; };
  const kept = remember("bitloss-theme");
  if (kept === "dark" || kept === "light") root.dataset.theme = kept;
  themeButton.hidden = false;
  themeButton.addEventListener("click", () => {
    root.dataset.theme = isDark() ? "light" : "dark";
    remember("bitloss-theme", root.dataset.theme);
    showTheme();
  });
  system.addEventListener("change", showTheme);
  showTheme();

  // which standard error stands after ±
  const measurements = $("#measurements");
  $$("[data-set-u]").forEach((button) => button.addEventListener("click", () => {
    measurements.dataset.u = button.dataset.setU;
    $$("[data-set-u]").forEach((b) => b.setAttribute("aria-pressed", b === button));
  }));

  // what a cell is sorted by: its number with its unit, or its words
  const units = { B: 1, KiB: 2 ** 10, MiB: 2 ** 20, GiB: 2 ** 30, TiB: 2 ** 40, PiB: 2 ** 50, s: 1, min: 60, h: 3600 };
  const value = (cell) => {
    if (cell.dataset.v) return parseFloat(cell.dataset.v);
    const words = cell.textContent.trim();
    const parts = words.split("±")[0].replace("<", "").trim();
    if (!/^-?[\d.]/.test(parts) || /^[0-9a-f]{12}$/.test(parts)) return words;
    const time = [...parts.matchAll(/(-?[\d.]+(?:e[-+]?\d+)?)\s*([A-Za-z]+)?/g)];
    if (time.some((m) => m[2] && !(m[2] in units))) return words;
    return time.reduce((sum, m) => sum + parseFloat(m[1]) * (units[m[2]] || 1), 0);
  };
  const order = (a, b) => {
    if (typeof a === "number" && typeof b === "number") return a - b;
    if (typeof a === "number") return -1;
    if (typeof b === "number") return 1;
    return a.localeCompare(b);
  };
  $$("table[data-sort] thead button").forEach((button) => button.addEventListener("click", () => {
    const th = button.closest("th"), table = th.closest("table"), at = th.cellIndex;
    const up = th.getAttribute("aria-sort") !== "ascending";
    $$("thead th", table).forEach((h) => h.removeAttribute("aria-sort"));
    th.setAttribute("aria-sort", up ? "ascending" : "descending");
    const body = table.tBodies[0];
    const rows = [...body.rows].map((row, i) => ({ row, i, v: value(row.cells[at]) }));
    rows.sort((x, y) => (up ? 1 : -1) * order(x.v, y.v) || x.i - y.i);
    rows.forEach(({ row }) => body.append(row));
    say(`sorted by ${button.textContent}, ${up ? "ascending" : "descending"}`);
  }));

  // the founding table has files across: a metric's button puts them in order
  $$("table[data-sort-columns] tbody button").forEach((button) => button.addEventListener("click", () => {
    const th = button.closest("th"), table = th.closest("table"), mine = th.parentElement;
    const up = !th.classList.contains("up");
    $$("tbody th", table).forEach((h) => h.classList.remove("up", "down"));
    th.classList.add(up ? "up" : "down");
    const columns = [...mine.cells].slice(1).map((cell, i) => ({ at: i + 1, fixed: "fixed" in cell.dataset, v: value(cell) }));
    const files = columns.filter((c) => !c.fixed);
    files.sort((x, y) => (up ? 1 : -1) * order(x.v, y.v) || x.at - y.at);
    const to = [...files, ...columns.filter((c) => c.fixed)].map((c) => c.at);
    [...table.rows].forEach((row) => {
      const cells = [...row.cells];
      to.forEach((at) => row.append(cells[at]));
    });
    say(`files sorted by ${button.textContent}, ${up ? "ascending" : "descending"}`);
  }));

  // copying
  const copy = async (words) => {
    try { await navigator.clipboard.writeText(words); return true; } catch (e) { /* the older way */ }
    const area = el("textarea");
    area.value = words;
    document.body.append(area);
    area.select();
    const done = document.execCommand("copy");
    area.remove();
    return done;
  };
  $$("[data-copy]").forEach((button) => button.addEventListener("click", async () => {
    const [name, form] = button.dataset.copy.split(":");
    const text = data.copies[name];
    const done = await copy(typeof text[form] === "string" ? text[form] : text[form][measurements.dataset.u]);
    const label = button.textContent;
    button.textContent = done ? "Copied" : "Could not copy";
    say(button.textContent);
    setTimeout(() => { button.textContent = label; }, 1500);
  }));

  // a cell without a value says why, in the words of its note
  $$(".missing").forEach((line) => {
    const notes = $$("span", line).map((note) => note.textContent);
    $$(".na", line.nextElementSibling).forEach((cell) => {
      cell.title = `not available: ${notes[(parseInt(cell.getAttribute("aria-label").slice(5), 10) || 1) - 1]}`;
    });
  });

  // a table that goes on to the right, or below, says so
  const edges = (box) => {
    const frame = box.parentElement;
    frame.toggleAttribute("data-right", box.scrollLeft + box.clientWidth < box.scrollWidth - 2);
    frame.toggleAttribute("data-down", box.scrollTop + box.clientHeight < box.scrollHeight - 2);
  };
  const watch = new ResizeObserver((seen) => seen.forEach((each) => edges(each.target.closest(".scroll, #worst-list"))));
  $$(".frame > .scroll, .frame > ol").forEach((box) => {
    watch.observe(box);
    if (box.firstElementChild) watch.observe(box.firstElementChild);
    box.addEventListener("scroll", () => edges(box), { passive: true });
  });

  // pointing at a mark, or reaching it by keyboard
  const tip = $("#tip");
  const showTip = (mark, others = []) => {
    tip.textContent = [mark, ...others].slice(0, 3).map((m) => m.dataset.tip.split(" · ").join("\n")).join("\n\n");
    tip.hidden = false;
    const box = mark.getBoundingClientRect(), width = tip.offsetWidth, height = tip.offsetHeight;
    const left = Math.min(Math.max(8, box.left + box.width / 2 - width / 2), root.clientWidth - width - 8);
    const above = box.top - height - 8;
    tip.style.left = `${left + scrollX}px`;
    tip.style.top = `${(above > 48 ? above : box.bottom + 8) + scrollY}px`;
  };
  const hideTip = () => { tip.hidden = true; };
  const markOf = (event) => event.target instanceof Element && event.target.closest("[data-tip]");
  document.addEventListener("pointerover", (e) => {
    const mark = markOf(e);
    if (!mark) { hideTip(); return; }
    // marks that lie on one another all speak
    const under = document.elementsFromPoint(e.clientX, e.clientY).map((x) => x.closest("[data-tip]"));
    showTip(mark, [...new Set(under)].filter((m) => m && m !== mark));
  });
  document.addEventListener("focusin", (e) => { const m = markOf(e); if (m) showTip(m); });
  document.addEventListener("focusout", hideTip);
  document.addEventListener("keydown", (e) => { if (e.key === "Escape") hideTip(); });

  // a legend's button shows its line alone
  $$(".legend button").forEach((button) => {
    const figure = button.closest("figure");
    const light = (on) => {
      const pressed = $$(".legend button[aria-pressed=true]", figure);
      const shown = new Set([...pressed, ...(on ? [button] : [])].map((b) => b.dataset.s));
      figure.classList.toggle("dim", shown.size > 0);
      $$(".series", figure).forEach((g) => g.classList.toggle("on", shown.has(g.dataset.s)));
    };
    button.addEventListener("click", () => {
      button.setAttribute("aria-pressed", button.getAttribute("aria-pressed") !== "true");
      light(false);
    });
    for (const [event, on] of [["pointerenter", true], ["pointerleave", false], ["focus", true], ["blur", false]])
      button.addEventListener(event, () => light(on));
  });

  // the worst tokens in their text
  const worst = data.worst || [];
  if (worst.length) {
    const choose = $("#worst-of"), list = $("#worst-list"), panel = $("#worst-panel");
    // controls, spaces at the ends and direction marks of a token are shown, not obeyed
    const seen = (piece) => piece.replace(/\n/g, "⏎").replace(/\t/g, "⇥").replace(/[\p{Cc}\p{Cf}\u2028\u2029]/gu,
      (c) => `\\u{${c.codePointAt(0).toString(16)}}`);
    const brief = (piece) => seen(piece).replace(/ /g, "␣") || "∅";
    const tops = (title, entries, target) => {
      const box = el("div");
      box.append(el("h4", "", title));
      const grid = el("div", "top");
      for (const [piece, p, share, id] of entries) {
        const name = el("b", id === target ? "hit-target" : "", brief(piece));
        name.style.setProperty("--w", `${100 * share}%`);
        grid.append(name, el("i", "", p));
      }
      box.append(grid);
      return box;
    };
    const show = (entry, button) => {
      $$("button", list).forEach((b) => b.setAttribute("aria-pressed", b === button));
      panel.replaceChildren();
      panel.append(el("h3", "", `KLD ${entry.kld}`));
      panel.append(el("p", "notes", `chunk ${entry.chunk}, position ${entry.position}; probability of the token that follows: base ${entry.p_base}, file ${entry.p}`));
      if (entry.context.length) {
        const text = el("div", "tokens");
        text.setAttribute("dir", "auto");
        entry.context.forEach(([piece, share, kld], i) => {
          const words = seen(i ? piece : piece.trimStart()).replace(/⏎/g, "⏎\n");
          const span = el("span", i === entry.at ? "here" : "", words);
          if (share > 0) span.style.backgroundColor = `rgb(var(--heat) / ${(0.08 + 0.62 * share).toFixed(2)})`;
          span.dataset.tip = kld ? `${brief(piece)} · KLD ${kld}` : `${brief(piece)} · not scored`;
          text.append(span);
        });
        panel.append(text);
      }
      if (entry.base.length) {
        const pair = el("div", "pair");
        pair.append(tops("the base expects", entry.base, entry.target), tops("the file expects", entry.file, entry.target));
        panel.append(pair);
      }
    };
    const fill = (index) => {
      list.replaceChildren();
      worst[index].tokens.forEach((entry, i) => {
        const item = el("li"), button = el("button");
        button.type = "button";
        button.append(el("span", "notes", `${i + 1}`), el("span", "", brief(entry.word)), el("span", "", entry.kld));
        button.addEventListener("click", () => show(entry, button));
        item.append(button);
        list.append(item);
      });
      list.scrollTop = 0;
      edges(list);
      show(worst[index].tokens[0], $("button", list));
    };
    choose.addEventListener("change", () => fill(choose.selectedIndex));
    fill(0);
  }
})();
