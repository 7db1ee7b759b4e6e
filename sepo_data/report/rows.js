"use strict";
// Shows one row of a report at a time: tokens coloured by reward, and selected anew exactly as in sepo.
// Texts of the dataset only ever become text nodes.
(() => {
  const data = JSON.parse(document.getElementById("data").textContent);
  const by = (id) => document.getElementById(id);
  const SIDES = ["chosen", "rejected"];
  const LONGEST = 200; // characters shown of a token in a tooltip

  // ---- the arrays

  const bytes = (text) => Uint8Array.from(atob(text), (character) => character.charCodeAt(0));
  const floats = (text) => new Float32Array(bytes(text).buffer);
  const integers = (text, count) => {
    const found = bytes(text);
    return found.length === 2 * count ? new Uint16Array(found.buffer) : new Uint32Array(found.buffer);
  };

  function decoded(side) {
    if (side.decoded) return side.decoded;
    const rewards = floats(side.rewards);
    const count = rewards.length - (side.ended ? 1 : 0); // tokens with characters
    return (side.decoded = {
      rewards,
      count,
      starts: integers(side.starts, count),
      ends: integers(side.ends, count),
      mask: Array.from(bytes(side.mask), Boolean),
      oracle: side.oracle === undefined ? null : floats(side.oracle),
      ref: side.ref === undefined ? null : floats(side.ref),
    });
  }

  // ---- selection, as in sepo_data/selection.py

  // Array.sort is stable, so the earlier of equal rewards wins
  // unknown rewards, of a policy's tokens beyond the oracle's, are NaN and never selected
  const ranked = (rewards, highest) =>
    Array.from(rewards.keys()).filter((i) => !Number.isNaN(rewards[i])).sort((a, b) => (highest ? rewards[b] - rewards[a] : rewards[a] - rewards[b]));

  const first = (order, count, size) => {
    const mask = new Array(size).fill(false);
    for (const token of order.slice(0, count)) mask[token] = true;
    return mask;
  };

  function massCount(rewards, order, share, highest) {
    let carried = 0;
    const sums = order.map((token) => (carried += Math.max(0, highest ? rewards[token] : -rewards[token])));
    const reached = sums.findIndex((sum) => sum >= carried * (share - 1e-12));
    return Math.min(reached + 1, order.length);
  }

  function selected(side, name, rule, amount) {
    const { rewards, mask } = decoded(side);
    const highest = name === "chosen";
    if (rule === "annotated") return mask;
    if (rule === "all") return mask.map((_, i) => !Number.isNaN(rewards[i]));
    if (rule === "threshold") return mask.map((_, i) => (highest ? rewards[i] >= amount : rewards[i] <= -amount));
    const order = ranked(rewards, highest);
    if (rule === "mass") return first(order, massCount(rewards, order, amount, highest), rewards.length);
    return first(order, Math.max(1, Math.floor(amount * order.length + 1e-9)), rewards.length);
  }

  // ---- text

  function element(kind, properties = {}, ...children) {
    const made = document.createElement(kind);
    for (const [name, value] of Object.entries(properties)) {
      if (name in made) made[name] = value;
      else made.setAttribute(name, value);
    }
    made.append(...children);
    return made;
  }

  // invisible and bidirectional control characters, as in `visible` of sepo_data/errors.py
  const HIDDEN =
    "[\\0-\\x08\\x0b-\\x1f\\x7f-\\x9f\\xad\\u061c\\u200b\\u200e\\u200f\\u2028-\\u202e\\u2060-\\u206f\\ufeff\\ufff9-\\ufffb\\u{e0000}-\\u{e007f}]";
  const EACH_HIDDEN = new RegExp(HIDDEN, "gu");
  const PARTS = new RegExp(`(\n|${HIDDEN})`, "u");
  const escaped = (character) => {
    if (character === "\r") return "\\r";
    const code = character.codePointAt(0);
    const [letter, digits] = code < 0x100 ? ["x", 2] : code < 0x10000 ? ["u", 4] : ["U", 8];
    return `\\${letter}${code.toString(16).padStart(digits, "0")}`;
  };
  const visible = (text) => text.replace(EACH_HIDDEN, escaped);
  const blanks = (text) => {
    const marked = visible(text).replaceAll(" ", "␣").replaceAll("\n", "↵").replaceAll("\t", "⇥");
    return marked.replace(/\s/gu, escaped).replace(/^\p{M}/u, "◌$&"); // other blanks, and a combining mark without a letter
  };
  const short = (text) => (text.length > LONGEST ? `${text.slice(0, LONGEST)}…` : text);
  const nats = (value) => Number.isNaN(value) ? "unknown" : (value < 0 ? "−" : "+") + Math.abs(value).toFixed(3);
  const percent = (share) => `${(100 * share).toFixed(0)}%`;

  function addText(target, text) {
    for (const piece of text.split(PARTS)) {
      if (piece === "\n") target.append(element("i", { "aria-hidden": "true" }, "↵"), "\n");
      else if (piece) target.append(visible(piece) === piece ? piece : element("i", {}, escaped(piece)));
    }
  }

  // offsets of code points in a JavaScript string, since spans count code points
  function offsets(text) {
    const found = [0];
    let at = 0;
    for (const character of text) found.push((at += character.length));
    return found;
  }

  // ---- one row

  let current = null; // the row on the screen, and each line of tokens with its selection

  function tokenElement(index, reward) {
    const span = element("span", { className: "token", role: "option", tabIndex: -1 });
    if (reward > 0) span.classList.add("high");
    span.style.setProperty("--heat", Math.min(1, Math.abs(reward || 0) / data.scale).toFixed(3));
    span.dataset.token = index;
    return span;
  }

  function response(side, name) {
    const { rewards, count, starts, ends } = decoded(side);
    const at = offsets(side.text);
    const box = element("div", {
      className: "response", role: "listbox", dir: "auto", "aria-label": `Tokens of the ${name} response${side.layer ? `, ${visible(side.layer)}` : ""}`,
      "aria-multiselectable": "true", "aria-orientation": "horizontal",
    });
    const tokens = [];
    const names = new Map(side.pieces.map(([name, begin]) => [begin, name])); // names of several texts
    let done = 0;
    for (let i = 0; i < count; i++) {
      const span = tokenElement(i, rewards[i]);
      if (starts[i] >= done && names.has(starts[i])) {
        box.append(element("i", { className: "piece", "aria-hidden": "true" }, names.get(starts[i])));
      }
      // byte tokens may share a character, which is shown in the first of them
      if (ends[i] > done) addText(span, side.text.slice(at[Math.max(starts[i], done)], at[ends[i]]));
      else span.append(element("i", {}, "·"));
      if (!span.textContent.trim()) span.setAttribute("aria-label", blanks(span.textContent)); // otherwise it has no accessible name
      done = Math.max(done, ends[i]);
      tokens.push(span);
      box.append(span);
    }
    if (side.ended) {
      const span = tokenElement(count, rewards[count]);
      span.classList.add("turn-end");
      span.append("end of turn");
      tokens.push(span);
      box.append(span);
    }
    tokens[0].tabIndex = 0;
    const rest = side.text.slice(at[done]);
    const cut = side.ended ? [] : [element("p", { className: "cut" }, visible(rest), rest ? " … cut at the maximum length" : "truncated in the source: no end of turn")];
    return { box, tokens, cut };
  }

  function turn([role, text]) {
    return element("p", { className: "turn", dir: "auto" }, element("b", {}, visible(role)), visible(text));
  }

  // a line of tokens: the oracle's, or a layer below it
  function tokensElement(side, name) {
    const { box, tokens, cut } = response(side, name);
    const carried = element("p", { className: "carried" });
    const layer = side.layer ? [element("h4", { className: "layer", dir: "auto" }, visible(side.layer))] : [];
    return { parts: [...layer, carried, ...side.before.map(turn), box, ...cut], side, name, tokens, carried, mask: [] };
  }

  function sideElement(side, name) {
    const lines = [side, ...(side.layers ?? [])].map((one) => tokensElement(one, name));
    const head = element(
      "h3", { className: name }, element("span", {}, name), element("span", {}, `${nats(side.reward)} nats`),
    );
    const made = element("section", { className: "side", "aria-label": `${name} response` }, head);
    made.append(...lines.flatMap((one) => one.parts));
    return { made, lines };
  }

  function show(row) {
    hideTip();
    const article = by("row");
    if (!row) {
      current = null;
      article.replaceChildren(element("p", { className: "empty" }, "No rows match the filters."));
      return;
    }
    const sides = SIDES.map((name) => sideElement(row[name], name));
    const last = row.prompt.length ? row.prompt[row.prompt.length - 1][1] : "";
    const summary = element("summary", { dir: "auto" }, `Prompt: ${visible(last.slice(0, 200)).replaceAll("\n", " ")}`);
    const prompt = element("details", { className: "prompt" }, summary, ...row.prompt.map(turn));
    article.replaceChildren(prompt, element("div", { className: "sides" }, ...sides.map((one) => one.made)));
    current = { row, lines: sides.flatMap((one) => one.lines) };
    mark();
  }

  function mark() {
    if (!current) return;
    const [rule, amount] = [by("rule").value, Number(by("amount").value)];
    for (const one of current.lines) {
      one.mask = selected(one.side, one.name, rule, amount);
      const { rewards } = decoded(one.side);
      let [count, carried, total] = [0, 0, 0];
      one.tokens.forEach((span, i) => {
        span.setAttribute("aria-selected", String(one.mask[i]));
        count += one.mask[i];
        carried += one.mask[i] * Math.abs(rewards[i] || 0);
        total += Math.abs(rewards[i] || 0);
      });
      one.carried.textContent =
        `${count} of ${one.tokens.length} tokens selected, carrying ${percent(total ? carried / total : 0)} of |reward|`;
    }
  }

  // ---- the rule

  function ruleChanged() {
    const [rule, amount] = [by("rule").value, by("amount")];
    const inNats = rule === "threshold";
    if (inNats !== (amount.dataset.unit === "nats")) {
      amount.dataset.unit = inNats ? "nats" : "";
      Object.assign(amount, inNats ? { min: 0, max: data.scale, step: data.scale / 200 } : { min: 0.01, max: 1, step: 0.01 });
      amount.value = inNats ? data.scale / 4 : data.ratio;
    }
    const silent = rule === "annotated" || rule === "all"; // rules without an amount
    by("amount-name").textContent = inNats ? "Threshold" : rule === "mass" ? "Share of the reward" : "Ratio";
    const value = Number(amount.value);
    by("amount-value").textContent = silent ? "" : inNats ? `±${value.toFixed(2)} nats` : percent(value);
    amount.setAttribute("aria-valuetext", inNats ? `${value.toFixed(2)} nats` : percent(value));
    mark();
  }

  // moving the slider selects a rule that uses it
  function amountChanged() {
    if (by("rule").value === "annotated" || by("rule").value === "all") by("rule").value = "ratio";
    ruleChanged();
  }

  // ---- navigation and filters

  let shown = data.rows;
  let place = 0;

  const texts = (row) => [
    ...row.prompt.map((one) => one[1]),
    ...SIDES.flatMap((name) => [...row[name].before.map((one) => one[1]), row[name].text]),
  ];

  function passes(row) {
    const [which, least, most] = [by("which").value, by("least").value, by("most").value];
    const [words, group] = [by("search").value.toLowerCase(), by("group")?.value ?? ""];
    return (
      (which !== "wrong" || row.margin < 0) &&
      (which !== "truncated" || SIDES.some((name) => !row[name].ended)) &&
      (least === "" || row.margin >= Number(least)) &&
      (most === "" || row.margin <= Number(most)) &&
      (group === "" || row.group === Number(group)) &&
      (words === "" || texts(row).some((text) => text.toLowerCase().includes(words)))
    );
  }

  function filter() {
    const before = shown[place];
    shown = data.rows.filter(passes);
    go(Math.max(0, shown.indexOf(before)));
  }

  function go(to, note = "") {
    place = Math.min(Math.max(0, to), Math.max(0, shown.length - 1));
    const row = shown[place];
    by("previous").disabled = place === 0;
    by("next").disabled = place >= shown.length - 1;
    const where = by("where");
    where.replaceChildren(note);
    if (row) {
      where.append(
        element("strong", {}, `Row ${row.row}`), ` · ${place + 1} of ${shown.length} `,
        element("span", { className: "margin" }, `· margin ${nats(row.margin)} nats`),
      );
      if (row.margin < 0) where.append(" ", element("span", { className: "badge" }, "wrong order"));
      if (SIDES.some((name) => !row[name].ended)) where.append(" ", element("span", { className: "badge" }, "truncated"));
      history.replaceState(null, "", `#row-${row.row}`);
    }
    show(row);
  }

  function goToHash() {
    const found = /^#row-(\d+)$/.exec(location.hash);
    if (!found) return false;
    const number = Number(found[1]);
    const at = data.rows.findIndex((row) => row.row === number);
    shown = data.rows;
    document.querySelector(".filters").reset();
    go(Math.max(0, at), at < 0 ? `Row ${number} is not on this page; write it with --row ${number}. ` : "");
    by("rows").scrollIntoView();
    return true;
  }

  // ---- the tooltip

  function hideTip() {
    by("tip").hidden = true;
    for (const span of document.querySelectorAll("[aria-describedby=tip]")) span.removeAttribute("aria-describedby");
  }

  function facts(one, i) {
    const { rewards, count, starts, ends, oracle, ref } = decoded(one.side);
    const rank = ranked(rewards, one.name === "chosen").indexOf(i) + 1;
    const found = [
      ["reward", Number.isNaN(rewards[i]) ? "unknown" : `${nats(rewards[i])} nats`],
      ["rank", !rank ? "none" : `${rank} of ${rewards.length}, from the ${one.name === "chosen" ? "highest" : "lowest"}`],
    ];
    if (i < count) {
      if (oracle) found.push(["oracle log-prob", nats(oracle[i])], ["reference log-prob", nats(ref[i])]);
      found.push(["characters", `${starts[i]} to ${ends[i]}`]);
    }
    found.push(["selected", one.mask[i] ? "yes" : "no"]);
    return found;
  }

  function tokenText(one, i) {
    const { count, starts, ends } = decoded(one.side);
    if (i >= count) return "end of turn";
    const at = (one.offsets ??= offsets(one.side.text));
    return short(blanks(one.side.text.slice(at[starts[i]], at[ends[i]])));
  }

  function showTip(span) {
    hideTip();
    const one = current.lines.find((side) => side.tokens.includes(span));
    const i = Number(span.dataset.token);
    const list = element("dl");
    for (const [name, value] of facts(one, i)) list.append(element("dt", {}, name), element("dd", {}, value));
    const tip = by("tip");
    tip.replaceChildren(element("code", { dir: "auto" }, tokenText(one, i)), list);
    tip.hidden = false;
    span.setAttribute("aria-label", tokenText(one, i));
    span.setAttribute("aria-describedby", "tip");
    placeTip();
  }

  function placeTip() {
    const [span, tip] = [document.querySelector("[aria-describedby=tip]"), by("tip")];
    if (!span) return;
    const boxes = [...span.getClientRects()]; // a token that wraps has two
    const [head, tail] = [boxes[0] ?? span.getBoundingClientRect(), boxes.at(-1) ?? span.getBoundingClientRect()];
    const [width, height] = [tip.offsetWidth, tip.offsetHeight];
    const below = tail.bottom + height + 10 < innerHeight;
    tip.style.left = `${Math.max(8, Math.min(below ? tail.left : head.left, innerWidth - width - 8))}px`;
    tip.style.top = `${below ? tail.bottom + 6 : Math.max(4, head.top - height - 6)}px`;
  }

  // ---- keys and buttons

  function moveInResponse(event) {
    const tokens = current.lines.map((side) => side.tokens).find((some) => some.includes(event.target));
    const at = tokens.indexOf(event.target);
    const to = { ArrowRight: at + 1, ArrowLeft: at - 1, Home: 0, End: tokens.length - 1 }[event.key];
    if (to === undefined || !tokens[to]) return;
    event.preventDefault();
    event.target.tabIndex = -1;
    tokens[to].tabIndex = 0;
    tokens[to].focus();
  }

  function keyPressed(event) {
    if (event.key === "Escape") return hideTip();
    if (event.ctrlKey || event.metaKey || event.altKey || event.target.closest("input, select")) return;
    if (event.target.closest(".token")) moveInResponse(event);
    if (event.key === "j") go(place + 1);
    if (event.key === "k") go(place - 1);
  }

  by("previous").addEventListener("click", () => go(place - 1));
  by("next").addEventListener("click", () => go(place + 1));
  by("rule").addEventListener("change", ruleChanged);
  by("amount").addEventListener("input", amountChanged);
  for (const form of document.forms) form.addEventListener("submit", (event) => event.preventDefault());
  document.querySelector(".filters").addEventListener("input", filter);
  for (const kind of ["mouseover", "focusin"]) {
    by("row").addEventListener(kind, (event) => {
      const span = event.target.closest(".token");
      if (span) showTip(span);
    });
  }
  for (const kind of ["mouseleave", "focusout"]) by("row").addEventListener(kind, hideTip);
  document.addEventListener("keydown", keyPressed);
  document.addEventListener("scroll", placeTip, { passive: true });
  addEventListener("hashchange", goToHash);
  ruleChanged();
  if (!goToHash()) go(0);
})();
